"""The candidates of EvoGrad by hand: their noise, masks, losses, weights and coefficients."""

import gc
import itertools
import weakref

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients import EvoGrad
from metatoolkit.hypergradients.candidates import Candidates
from metatoolkit.hypergradients.noise import stream_noise
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded

F64 = torch.float64


def perturbed(state, **options):
    given = {
        "names": list(state.parameters),
        "number": 3,
        "sigma": 0.5,
        "temperature": 0.25,
        "noise": "gaussian",
        "common_random_numbers": True,
        "seed": 0,
        "key": state.key,
    }
    return Candidates(state=state, **(given | options))


def walk(case, steps):
    """The states of a run, the first included."""
    states = [case.state]
    for batch in case.batches(steps):
        meta = case.problem.meta_parameters()
        states.append(case.inner.step(case.problem, states[-1], meta, batch)[0])
    return states


def noise_of(candidates, candidate):
    return torch.cat([e.flatten() for _, e in candidates.perturbations(candidate)])


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
def test_every_step_candidate_seed_and_run_has_noise_of_its_own(kind):
    case = bank.small_net()
    other = case.inner.init(case.problem, seed=6)
    draws = [
        noise_of(perturbed(state, noise=kind, seed=seed), candidate)
        for state in [*walk(case, 3), other]
        for seed in (0, 1)
        for candidate in (0, 1)
    ]
    for one, two in itertools.combinations(draws, 2):
        agreement = float(torch.nn.functional.cosine_similarity(one, two, dim=0))
        # Over 91 entries independent noise has a cosine of 0.1.
        assert abs(agreement) < 0.5
    again = noise_of(perturbed(case.state, noise=kind), 0)
    assert torch.equal(again, draws[0])


def test_the_hypergradients_of_a_run_span_more_than_one_direction():
    # Noise that does not change with the step gives the same direction all training long.
    case = bank.quadratic(size=12)
    rows = []
    for state in walk(case, 6):
        coefficients = case.call(EvoGrad(2, 0.1, 0.5, noise="gaussian"), state)
        rows.append(coefficients.gradient["value"])
    matrix = torch.stack(rows)
    values = torch.linalg.svdvals(matrix / matrix.norm(dim=1, keepdim=True))
    assert float(values[1]) > 0.1


def test_the_masks_of_candidates_are_those_of_the_inner_step():
    case = recorded()
    state = walk(case, 2)[-1]
    case.seen.clear()
    case.inner.step(case.problem, state, case.problem.meta_parameters(), 2.0)
    meta = case.problem.meta_parameters()
    common, independent = (
        perturbed(state, common_random_numbers=common) for common in (True, False)
    )
    for candidates in (common, independent, independent):
        for candidate in range(3):
            candidates.train_loss(case.problem, candidate, meta, 2.0)
    step, *draws = case.draws("train")
    assert draws[:3] == [step] * 3
    assert len({step, *draws[3:6]}) == 4
    # They are replayed.
    assert draws[6:] == draws[3:6]
    assert {one.batch for one in case.seen} == {2.0}


def fixed(values):
    return lambda candidate, name, parameter: parameter.new_tensor(values[candidate])


def test_losses_weights_offspring_and_coefficients_by_hand():
    case = recorded()
    noise, sigma, temperature, batch = (0.5, -1.0, 2.0), 0.5, 0.25, 3.0
    candidates = perturbed(case.state, noise=fixed(noise))
    theta, meta = 0.7, -0.4
    points = torch.tensor([theta + sigma * e for e in noise], dtype=F64)
    expected = points.square() / 2 + batch * meta * points
    leaves = case.problem.meta_leaves()
    losses, kept = candidates.score(case.problem, leaves, batch, False)
    assert kept and all(loss.requires_grad for loss in losses)
    losses = torch.stack(losses).detach()
    torch.testing.assert_close(losses, expected, rtol=1e-14, atol=0)

    scores = (-expected / temperature).exp()
    weights = scores / scores.sum()
    torch.testing.assert_close(candidates.weights(losses), weights, rtol=1e-13, atol=0)
    offspring = float(candidates.offspring(weights)["value"])
    assert offspring == pytest.approx(float(weights @ points), rel=1e-14)

    slope = 1.7
    given = candidates.coefficients(weights, {"value": torch.tensor(slope, dtype=F64)}, 2.0)
    by_hand = -(weights / temperature) * slope * (points - weights @ points) * 2.0
    torch.testing.assert_close(given, by_hand, rtol=1e-12, atol=1e-15)
    nothing = candidates.coefficients(weights, {}, 2.0)
    assert torch.equal(nothing, torch.zeros(3, dtype=F64))


def test_only_named_parameters_are_perturbed():
    case = bank.small_net()
    state = case.state
    candidates = perturbed(state, names=["4.weight"])
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    offspring = candidates.offspring(weights)
    assert list(offspring) == list(state.parameters)
    for name, parameter in state.parameters.items():
        assert torch.equal(offspring[name], parameter) == (name != "4.weight")


def test_noise_of_its_own_type_and_weights_in_higher_precision():
    case = bank.small_net()
    state = case.state.to(torch.bfloat16)
    candidates = perturbed(state, noise="sign")
    offspring = candidates.offspring(torch.tensor([0.2, 0.3, 0.5]))
    assert {tensor.dtype for tensor in offspring.values()} == {torch.bfloat16}
    weights = torch.tensor([0.2, 0.3, 0.5])
    gradient = {name: torch.randn_like(tensor) for name, tensor in state.parameters.items()}
    given = candidates.coefficients(weights, gradient, 1.0)
    assert given.dtype == torch.float32
    # A product that is summed in bfloat16 has two or three digits.
    slopes = torch.stack(
        [
            sum(
                (gradient[n].double() * e.double()).sum()
                for n, e in candidates.perturbations(candidate)
            )
            for candidate in range(3)
        ]
    )
    expected = -weights / 0.25 * 0.5 * (slopes - weights.double() @ slopes)
    torch.testing.assert_close(given.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [4, 200, 201, 400])
def test_graphs_are_kept_where_they_are_small(width):
    # θ has 32,000 bytes. The graph of a candidate holds at least one tensor of `width` numbers.
    def train_loss(model, meta, batch):
        return (meta.value * batch).exp().sum() + model.value.square().sum()

    model = bank.Value([0.1] * 4000)
    problem = mt.BilevelProblem(model, bank.Value(0.3), train_loss, train_loss)
    inner = mt.inner.SGD(lr=0.1)
    batch = torch.ones(width, dtype=F64)
    for streamed, expected in ((None, width <= 200), (True, False), (False, True)):
        # The batch and the exponential are saved: 2 · 8 · 200 bytes for all ten are those of θ.
        candidates = perturbed(inner.init(problem), number=10)
        losses, kept = candidates.score(problem, problem.meta_leaves(), batch, streamed)
        assert kept == expected and len(losses) == 10
        assert all(loss.requires_grad == expected for loss in losses)


def test_a_single_number_keeps_its_type_whatever_that_of_the_weights():
    state = bank.illustration().state.to(torch.bfloat16)
    candidates = perturbed(state)
    for dtype in (torch.float32, F64):
        offspring = candidates.offspring(torch.tensor([0.2, 0.3, 0.5], dtype=dtype))
        assert offspring["value"].dtype == torch.bfloat16 and offspring["value"].dim() == 0


def test_a_graph_that_was_kept_goes_with_the_losses():
    seen = []

    def train_loss(model, meta, batch):
        powers = (meta.value * batch).exp()
        seen.append(weakref.ref(powers))
        return powers.sum() + model.value.square().sum()

    problem = mt.BilevelProblem(bank.Value([0.1] * 400), bank.Value(0.3), train_loss, train_loss)
    candidates = perturbed(mt.inner.SGD(lr=0.1).init(problem))
    batch = torch.ones(3, dtype=F64)
    losses, kept = candidates.score(problem, problem.meta_leaves(), batch, None)
    assert kept and len(seen) == 3
    del losses
    gc.collect()
    assert [powers() for powers in seen] == [None] * 3


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
def test_the_noise_of_published_runs_stays_what_it_was(kind):
    state = walk(bank.small_net(), 2)[-1]
    candidates = perturbed(state, noise=kind, seed=7, key=1234)
    for candidate in (0, 2):
        key = fold_in(1234, 2, -2, 7, candidate)
        expected = list(stream_noise(state.parameters, kind, key))
        found = list(candidates.perturbations(candidate))
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert all(
            torch.equal(one, two) for (_, one), (_, two) in zip(found, expected, strict=True)
        )


def test_the_gradients_of_the_outer_loss_by_hand():
    problem = mt.BilevelProblem(
        torch.nn.ParameterDict(
            {
                name: torch.tensor(value, dtype=F64)
                for name, value in zip("abc", (1.0, 2.0, 3.0), strict=True)
            }
        ),
        bank.Value(0.5),
        lambda model, meta, batch: model["a"].square(),
        lambda model, meta, batch: model["a"] * model["b"] * batch + meta.value**3,
    )
    state = mt.inner.SGD(lr=0.1).init(problem)
    point = {name: tensor + 0.5 for name, tensor in state.parameters.items()}
    for names, expected in ((["b", "c"], {"b": 1.5 * 7}), (["a"], {"a": 2.5 * 7}), (["c"], {})):
        candidates = perturbed(state, names=names)
        loss, gradient, direct = candidates.outer(problem, point, problem.meta_leaves(), 7.0)
        assert float(loss) == 1.5 * 2.5 * 7 + 0.125 and not loss.requires_grad
        assert {name: float(g) for name, g in gradient.items()} == expected
        assert [float(g) for g in direct] == [0.75]


@pytest.mark.parametrize("streamed", [None, True])
def test_losses_that_hide_their_graph_are_scored_on_the_batch(streamed):
    def train_loss(model, meta, batch):
        slope = torch.func.grad(lambda x: (x * model.value).sin().sum())(batch)
        return meta.value * slope.square().sum()

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.3), train_loss, train_loss)
    state = mt.inner.SGD(lr=0.1).init(problem)
    noise, batch = (0.5, -1.0, 2.0), torch.tensor([0.4, 1.1], dtype=F64)
    candidates = perturbed(state, noise=fixed(noise))
    losses, kept = candidates.score(problem, problem.meta_leaves(), batch, streamed)
    points = torch.tensor([0.7 + 0.5 * e for e in noise], dtype=F64).unsqueeze(1)
    expected = 0.3 * (points * (points * batch).cos()).square().sum(1)
    torch.testing.assert_close(torch.stack(losses), expected, rtol=1e-12, atol=0)
    assert not kept and not any(loss.requires_grad for loss in losses)


def test_other_errors_of_a_loss_are_its_own():
    def train_loss(model, meta, batch):
        raise RuntimeError("saved nothing")

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.3), train_loss, train_loss)
    candidates = perturbed(mt.inner.SGD(lr=0.1).init(problem))
    with pytest.raises(RuntimeError, match="saved nothing"):
        candidates.score(problem, problem.meta_leaves(), None, None)
