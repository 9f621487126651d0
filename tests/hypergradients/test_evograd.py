"""EvoGrad against hand-computed values, autograd through the softmax, and its invariances."""

import dataclasses
import itertools
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import NonFiniteError, UnusedMetaParameterError
from metatoolkit.hypergradients import EvoGrad
from metatoolkit.randomness import fold_in, seeded
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded
from tests.hypergradients import engine_calls

F64 = torch.float64


def fixed_noise(values):
    """Noise for problems with one 0-d parameter."""
    return lambda candidate, name, parameter: parameter.new_tensor(values[candidate])


@pytest.mark.parametrize(
    ("noise", "temperature", "expected"),
    [
        ((1.0, -1.0), 0.5, -0.0710190567),
        ((0.5, -1.0, 2.0), 0.5, -0.0083573891),
        ((0.5, -1.0, 2.0), 1e6, -1.4399966e-6),
    ],
)
@pytest.mark.parametrize("streamed", [None, True, False, "vmap"])
def test_hand_computed_values(noise, temperature, expected, streamed):
    estimator = EvoGrad(len(noise), 1.0, temperature, noise=fixed_noise(noise), streamed=streamed)
    result = bank.illustration().call(estimator)
    assert float(result.gradient["value"]) == pytest.approx(expected, abs=0, rel=2e-9)


def test_hand_computed_weights():
    result = bank.illustration().call(EvoGrad(2, 1.0, 0.5, noise=fixed_noise((1.0, -1.0))))
    expected = torch.tensor([0.9904346813, 0.0095653187], dtype=F64)
    torch.testing.assert_close(result.details["weights"], expected, atol=1e-10, rtol=0)
    offspring = 0.3 + float(expected[0] - expected[1])
    assert float(result.valid_loss) == pytest.approx((offspring - 0.5) ** 2, rel=1e-9)


@pytest.mark.parametrize("candidates", [2, 3, 5, 7])
def test_identical_candidates_give_exactly_zero(candidates):
    estimator = EvoGrad(candidates, 0.7, 0.3, noise=fixed_noise([1.1] * candidates))
    assert float(bank.illustration().call(estimator).gradient["value"]) == 0.0


def autograd_evograd(case, state, candidates, sigma, temperature, seed=0):
    """EvoGrad as the paper states it: one graph through the candidates' losses and the softmax."""
    problem = case.problem
    estimator = EvoGrad(candidates, sigma, temperature, seed=seed)
    noise = [dict(estimator._candidates(state).perturbations(k)) for k in range(candidates)]
    meta = {
        name: p.detach().clone().requires_grad_() for name, p in problem.meta_parameters().items()
    }
    candidates = [
        {name: p + sigma * noise[k][name] for name, p in state.parameters.items()}
        for k in range(candidates)
    ]

    def run(loss, parameters, key):
        tensors = {f"model.{name}": p for name, p in parameters.items()}
        tensors |= {f"meta.{name}": p for name, p in meta.items()}
        tensors |= {name: b.clone() for name, b in state.buffers.items()}

        class Both(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model, self.meta = problem.model, problem.meta

            def forward(self, batch):
                return loss(self.model, self.meta, batch)

        batch = case.valid_batch if loss is problem.valid_loss else case.train_batches[0]
        with seeded(key):
            return torch.func.functional_call(Both(), tensors, (batch,))

    key = fold_in(state.key, state.step)
    losses = torch.stack([run(problem.train_loss, theta, key) for theta in candidates])
    losses.retain_grad()
    weights = torch.softmax(-losses / temperature, 0)
    offspring = {
        name: sum(w * theta[name] for w, theta in zip(weights, candidates, strict=True))
        for name in state.parameters
    }
    valid = run(problem.valid_loss, offspring, fold_in(state.key, state.step, -1))
    valid.backward()
    gradient = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in meta.items()}
    return gradient, losses.grad, valid.detach()


@pytest.mark.parametrize("candidates", [2, 5])
@pytest.mark.parametrize("name", ["ridge", "small_net", "inside_model", "tied"])
def test_streamed_and_kept_graphs_equal_autograd(name, candidates):
    case = bank.PROBLEMS[name]()
    state, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    expected, coefficients, valid = autograd_evograd(case, state, candidates, 0.1, 0.5)
    for streamed in (True, False, None, "vmap"):
        result = case.call(EvoGrad(candidates, 0.1, 0.5, streamed=streamed), state)
        for key, gradient in result.gradient.items():
            scale = max(float(expected[key].norm()), 1e-12)
            assert float((gradient - expected[key]).norm()) < 1e-10 * scale
        torch.testing.assert_close(result.valid_loss, valid, rtol=1e-12, atol=0)
        given = result.details["coefficients"]
        torch.testing.assert_close(given, coefficients, rtol=1e-9, atol=1e-14)
        assert abs(float(given.sum())) < 1e-12 * float(given.abs().sum())


def variant(case, transform):
    """The case with its training loss changed."""
    problem = case.problem
    changed = mt.BilevelProblem(
        problem.model,
        problem.meta,
        lambda model, meta, batch: transform(problem.train_loss(model, meta, batch), meta),
        problem.valid_loss,
    )
    return dataclasses.replace(case, problem=changed)


def test_constant_in_the_losses_changes_nothing():
    case = bank.small_net()
    plain = case.call(EvoGrad(4, 0.1, 0.5)).gradient
    shifted = variant(case, lambda loss, meta: loss + 3.0).call(EvoGrad(4, 0.1, 0.5)).gradient
    for name in plain:
        torch.testing.assert_close(plain[name], shifted[name], rtol=1e-10, atol=1e-17)


def test_order_of_the_candidates_does_not_matter():
    values = [0.5, -1.0, 2.0, 0.1]
    gradients = [
        bank.illustration().call(EvoGrad(4, 1.0, 0.5, noise=fixed_noise(order))).gradient["value"]
        for order in itertools.permutations(values)
    ]
    torch.testing.assert_close(torch.stack(gradients), gradients[0].expand(24), rtol=1e-10, atol=0)


def test_zero_where_the_dependence_on_meta_is_the_same_for_all_candidates():
    case = bank.ridge()
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: model.value.square().sum() + meta.value.exp().sum(),
        case.problem.valid_loss,
    )
    case = dataclasses.replace(case, problem=problem)
    result = case.call(EvoGrad(3, 0.5, 0.5))
    assert float(result.details["coefficients"].abs().max()) > 1e-2
    assert float(result.gradient["value"].abs().max()) < 1e-15


def test_dropout_masks_are_common_to_the_candidates():
    case = bank.small_net()
    same = {"noise": lambda candidate, name, parameter: torch.zeros_like(parameter)}
    common = case.call(EvoGrad(3, 0.1, 0.5, **same)).details["train_losses"]
    assert torch.equal(common, common[:1].expand(3))
    independent = case.call(EvoGrad(3, 0.1, 0.5, common_random_numbers=False, **same))
    assert len(set(independent.details["train_losses"].tolist())) == 3


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, factor):
        ctx.save_for_backward(inputs, factor)
        return inputs * factor

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative here")
        inputs, factor = ctx.saved_tensors
        return gradient * factor, gradient * inputs


@pytest.mark.parametrize("streamed", [True, False])
def test_needs_no_second_derivative(streamed):
    case = bank.ridge()
    hard = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: OnceDifferentiable.apply(
            model.value.square(), meta.value.exp()
        ).sum(),
        lambda model, meta, batch: OnceDifferentiable.apply(model.value, model.value).sum(),
    )
    easy = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: (model.value.square() * meta.value.exp()).sum(),
        lambda model, meta, batch: model.value.square().sum(),
    )
    estimator = EvoGrad(3, 0.1, 0.5, streamed=streamed, fresh=False)
    gradients = [
        bank.ProblemInstance(problem, case.inner, [None], None).call(estimator).gradient["value"]
        for problem in (hard, easy)
    ]
    torch.testing.assert_close(*gradients)
    with pytest.raises(RuntimeError, match="no second derivative"):
        bank.ProblemInstance(hard, case.inner, [None], None).call(mt.hypergradients.Unrolled())


def test_no_graph_is_asked_for(monkeypatch):
    asked = []
    engine_calls.watch(monkeypatch, lambda inputs, create_graph: asked.append(create_graph))
    result = bank.inside_model().call(EvoGrad(2, 0.1, 0.5))
    assert asked and not any(asked)
    assert not any(gradient.requires_grad for gradient in result.gradient.values())


def test_meta_in_the_optimizer_alone_is_an_error():
    with pytest.raises(UnusedMetaParameterError, match="lr"):
        bank.learned_rates().call(EvoGrad())


def test_a_call_by_hand_at_a_later_step():
    case = recorded()
    first, meta = case.state, case.problem.meta_parameters()
    state, _ = case.inner.step(case.problem, first, meta, 1.0)
    noise, sigma, temperature, batch = (0.5, -1.0, 2.0), 0.5, 0.25, 3.0
    theta, rate, points = float(state.parameters["value"]), -0.4, []
    for epsilon in noise:
        points.append(theta + sigma * epsilon)
    losses = [x * x / 2 + batch * rate * x for x in points]
    total = sum(math.exp(-loss / temperature) for loss in losses)
    weights = [math.exp(-loss / temperature) / total for loss in losses]
    offspring = sum(w * x for w, x in zip(weights, points, strict=True))
    outer = offspring - 0.25
    pairs = zip(weights, points, strict=True)
    expected = sum(-w / temperature * outer * (x - offspring) * batch * x for w, x in pairs)
    for streamed, passes in ((True, 7), (False, 4)):
        for rescale in (None, 0.3):
            estimator = EvoGrad(
                3, sigma, temperature, fixed_noise(noise), streamed=streamed, rescale=rescale
            )
            own = sigma**2 * 2 / (3 * temperature)
            factor = 1.0 if rescale is None else rescale / own
            result = estimator(case.problem, case.inner, state, [batch], 0.25)
            assert float(result.gradient["value"]) == pytest.approx(factor * expected, rel=1e-12)
            assert float(result.valid_loss) == pytest.approx(outer**2 / 2, rel=1e-12)
            assert result.details["weights"].tolist() == pytest.approx(weights, rel=1e-12)
            assert result.details["train_losses"].tolist() == pytest.approx(losses, rel=1e-12)
            assert (result.cost.forward, result.cost.backward) == (passes, 4)
            value = estimator.objective(
                case.problem, case.inner, state, [batch], 0.25, case.problem.meta_leaves()
            )
            assert float(value) == pytest.approx(outer**2 / 2, rel=1e-12)
            assert not value.requires_grad


def test_losses_are_weighted_in_single_precision_at_least():
    case = bank.ridge()
    case.problem.model.bfloat16()
    case.problem.meta.bfloat16()
    low = [tuple(t.bfloat16() for t in b) for b in (*case.train_batches, case.valid_batch)]
    case = bank.ProblemInstance(case.problem, case.inner, low[:1], low[1])
    result = case.call(EvoGrad(4, 0.1, 0.5))
    assert result.details["weights"].dtype == torch.float32
    assert float(result.details["weights"].sum()) == pytest.approx(1.0, abs=1e-6)
    assert result.gradient["value"].dtype == torch.bfloat16


def test_a_candidate_that_is_not_finite_is_named():
    case = bank.illustration()
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: meta.value * (model.value - 0.2).sqrt(),
        case.problem.valid_loss,
    )
    case = bank.ProblemInstance(problem, case.inner, [None], None)
    estimator = EvoGrad(2, 1.0, 0.5, noise=fixed_noise((1.0, -1.0)))
    with pytest.raises(NonFiniteError, match="the training loss of a candidate"):
        case.call(estimator)
