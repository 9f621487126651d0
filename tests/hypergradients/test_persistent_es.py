"""PES and NRES against a loop by hand that reads the noise off the losses alone."""

import itertools
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients import EvolutionStrategies, NoiseReuseES, PersistentES
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded

F64 = torch.float64
RATE, SLOPE, SIGMA, STEPS = 0.5, -0.25, 0.1, 2


def drift():
    """θ after t steps is θ₀ − lr λ t, and the outer loss θ + b, so that λ is read off it."""
    problem = mt.BilevelProblem(
        bank.Value(0.3),
        bank.Value(SLOPE),
        lambda model, meta, batch: meta.value * model.value,
        lambda model, meta, batch: model.value + batch,
    )
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=RATE), [None], 7.0)


def windows(estimator, case, count, state=None):
    """The results of several windows in order."""
    problem, results = case.problem, []
    state = case.state if state is None else state
    for _ in range(count):
        results.append(case.call(estimator, state))
        assert results[-1].state is not None and results[-1].state.step == state.step
        for _ in range(estimator.horizon):
            state, _ = case.inner.step(problem, state, problem.meta_parameters(), None)
    return results


def noise_in(results, sign):
    """ε of each window and pair from the losses of one side, (windows, pairs)."""
    theta = 0.3
    rows = []
    for result in results:
        reached = result.details["losses"][:, 0 if sign > 0 else 1] - 7.0
        moved = (theta - reached) / (RATE * STEPS)
        rows.append((moved - SLOPE) / (sign * SIGMA))
        theta = reached
    return torch.stack(rows)


@pytest.mark.parametrize("noise", ["gaussian", "sign"])
@pytest.mark.parametrize("kind", [PersistentES, NoiseReuseES])
def test_windows_by_hand(kind, noise):
    results = windows(kind(STEPS, 4, SIGMA, noise, seed=3), drift(), 3)
    epsilon = noise_in(results, 1)
    # The other side of a pair sees the same noise with the other sign, in all windows.
    torch.testing.assert_close(noise_in(results, -1), epsilon, rtol=1e-9, atol=1e-9)
    if kind is PersistentES:
        total = epsilon.cumsum(0)
        flat = epsilon.flatten()
    else:
        total = epsilon
        torch.testing.assert_close(epsilon, epsilon[:1].expand(3, 4), rtol=1e-9, atol=1e-9)
        flat = epsilon[0]
    for window, result in enumerate(results):
        losses = result.details["losses"]
        slopes = (losses[:, 0] - losses[:, 1]) / (2 * SIGMA)
        expected = (slopes * total[window]).mean()
        torch.testing.assert_close(result.gradient["value"], expected, rtol=1e-8, atol=1e-8)
        assert float(result.valid_loss) == pytest.approx(float(losses.mean()), rel=1e-14)
    if noise == "gaussian":
        assert min(abs(float(a - b)) for a, b in itertools.combinations(flat, 2)) > 1e-6
    else:
        torch.testing.assert_close(flat.abs(), torch.ones_like(flat), rtol=1e-9, atol=0)
        assert flat.std() > 0


def directions(kind, case, state, pairs=4, **options):
    """ε of each pair in the first window at a state, for a θ that starts at 0.3."""
    estimator = kind(STEPS, pairs, SIGMA, **options)
    return noise_in([case.call(estimator, state)], 1)[0]


@pytest.mark.parametrize("kind", [EvolutionStrategies, PersistentES, NoiseReuseES])
def test_every_pair_step_run_and_seed_has_noise_of_its_own(kind):
    case = drift()
    first, other = case.state, case.inner.init(case.problem, seed=6)
    later = mt.InnerState(first.parameters, first.buffers, first.optimizer, 1, first.key)
    drawn = torch.cat(
        [
            directions(kind, case, state, seed=seed)
            for state in (first, later, other)
            for seed in (0, 1)
        ]
    )
    gaps = [abs(float(a - b)) for a, b in itertools.combinations(drawn, 2)]
    assert min(gaps) > 1e-6
    torch.testing.assert_close(directions(kind, case, first), drawn[:4], rtol=0, atol=0)
    # Standard: the mean of 24 squares is 1 with a deviation of 0.3.
    assert 0.4 < float(drawn.square().mean()) < 1.8


@pytest.mark.parametrize("kind", [EvolutionStrategies, PersistentES, NoiseReuseES])
def test_many_pairs_span_many_directions(kind):
    # One perturbation for all pairs would leave the gradient on one line.
    size, pairs = 8, 64
    slope = torch.linspace(-1, 2, size, dtype=F64)
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value([0.0] * size),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: slope.dot(meta.value),
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    found = case.call(kind(1, pairs, 0.1)).gradient["value"]
    error = float((found - slope).norm() / slope.norm())
    # Its square has the mean (size + 1) / pairs; with a single direction it would be 9.
    assert 0.1 < error < 2 * math.sqrt((size + 1) / pairs)


@pytest.mark.parametrize("kind", [EvolutionStrategies, PersistentES, NoiseReuseES])
def test_both_sides_share_their_random_numbers_and_see_each_batch_once(kind):
    case = recorded()
    case.call(kind(2, 2, 0.1))
    train = [(one.batch, one.draw) for one in case.seen if one.kind == "train"]
    valid = case.draws("valid")
    # Two steps for each of four runs, in order; the first call may look at a loss again.
    assert set(train[8:]) <= set(train[:2]) and len(train) <= 9
    train = train[:8]
    assert [batch for batch, _ in train] == [1.0, 2.0] * 4
    assert train == train[:2] * 4 and train[0][1] != train[1][1]
    assert len(valid) in (4, 5) and len(set(valid)) == 1
    assert valid[0] not in {draw for _, draw in train}


@pytest.mark.parametrize("kind", [PersistentES, NoiseReuseES])
def test_an_episode_begins_at_the_state_that_is_given(kind):
    case = drift()
    estimator = kind(STEPS, 2, SIGMA, fresh=False)
    first = windows(estimator, case, 2)
    # The step is not above the last one: the second episode repeats the first.
    again = windows(estimator, case, 2)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.details["losses"], two.details["losses"])
        assert torch.equal(one.gradient["value"], two.gradient["value"])
    # At the same step once more it begins anew, too.
    state = case.state
    assert torch.equal(case.call(estimator, state).details["losses"], first[0].details["losses"])
    assert torch.equal(case.call(estimator, state).details["losses"], first[0].details["losses"])
    # With draws of its own the second episode begins there, too, along another perturbation.
    fresh = kind(STEPS, 2, SIGMA)
    drawn = [noise_in([windows(fresh, case, 1)[0]], 1) for _ in range(2)]
    assert float((drawn[0] - drawn[1]).abs().min()) > 1e-6
    result = case.call(fresh, state)
    torch.testing.assert_close(noise_in([result], -1), noise_in([result], 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [PersistentES, NoiseReuseES])
def test_a_restored_estimator_goes_on_in_the_middle_of_an_episode(kind):
    whole = windows(kind(STEPS, 2, SIGMA), drift(), 3)
    case, half = drift(), kind(STEPS, 2, SIGMA)
    states = [case.state]
    for _ in range(2 * STEPS):
        meta = case.problem.meta_parameters()
        states.append(case.inner.step(case.problem, states[-1], meta, None)[0])
    for step in (0, STEPS):
        case.call(half, states[step])
    resumed = kind(STEPS, 2, SIGMA)
    resumed.load_state_dict(half.state_dict())
    last = case.call(resumed, states[2 * STEPS])
    assert torch.equal(last.gradient["value"], whole[2].gradient["value"])
    assert torch.equal(last.details["losses"], whole[2].details["losses"])
    # The last step is restored, too: a state at or before it begins a new episode.
    for step in (0, STEPS):
        again, new = kind(STEPS, 2, SIGMA, fresh=False), kind(STEPS, 2, SIGMA, fresh=False)
        again.load_state_dict(half.state_dict())
        losses = [case.call(one, states[step]).details["losses"] for one in (again, new)]
        assert torch.equal(*losses)


@pytest.mark.parametrize("kind", [PersistentES, NoiseReuseES])
def test_one_pair_and_one_step_make_windows_too(kind):
    results = windows(kind(STEPS, 1, SIGMA, seed=4), drift(), 2)
    epsilon = noise_in(results, 1)
    torch.testing.assert_close(noise_in(results, -1), epsilon, rtol=1e-9, atol=1e-9)
    total = epsilon.cumsum(0) if kind is PersistentES else epsilon
    for window, result in enumerate(results):
        # θ falls by lr λ in each step, from the beginning.
        slope = -RATE * STEPS * (total[window] if window == 0 else epsilon.sum(0))
        expected = (slope * total[window]).mean()
        torch.testing.assert_close(result.gradient["value"], expected, rtol=1e-8, atol=1e-8)
    assert (PersistentES.renews, NoiseReuseES.renews) == (True, False)


@pytest.mark.parametrize("kind", [PersistentES, NoiseReuseES])
def test_an_estimator_that_was_not_called_yet(kind):
    assert kind(1, 2).state_dict() == {"moved": False, "last_step": -1, "pairs": []}
    estimator = kind(STEPS, 2, SIGMA)
    estimator.load_state_dict(kind(STEPS, 2, SIGMA).state_dict())
    found = windows(estimator, drift(), 2)
    for one, two in zip(found, windows(kind(STEPS, 2, SIGMA), drift(), 2), strict=True):
        assert torch.equal(one.gradient["value"], two.gradient["value"])


def test_what_is_saved_is_not_what_goes_on():
    case, estimator = drift(), PersistentES(STEPS, 2, SIGMA)
    case.call(estimator)
    saved = estimator.state_dict()
    kept = [(pair["total"]["value"].clone(), pair["total"]) for pair in saved["pairs"]]
    resumed = PersistentES(STEPS, 2, SIGMA)
    resumed.load_state_dict(saved)
    for pair in saved["pairs"]:
        pair["total"].clear()
    assert [float(pair["total"]["value"]) for pair in resumed.state_dict()["pairs"]] == [
        float(value) for value, _ in kept
    ]


class Elsewhere(NoiseReuseES):
    """Notes where a window begins, and takes no step."""

    def _run(self, problem, inner, start, train_batches, valid_batch, noise, sign):
        given = [*start.parameters.values(), *noise.values()]
        self.seen = {*self.seen, *(tensor.device.type for tensor in given)}
        return start, torch.tensor(float(sign), dtype=F64)

    seen = frozenset()


def test_trajectories_of_a_checkpoint_go_where_the_state_is():
    case, saved = drift(), Elsewhere(1, 2)
    saved.estimate(case.problem, case.inner, case.state, [None], None)
    assert saved.seen == {"cpu"}
    resumed = Elsewhere(1, 2)
    resumed.load_state_dict(saved.state_dict())
    later = mt.InnerState(**{**vars(case.state.to("meta")), "step": 1})
    case.problem.meta.to("meta")
    result = resumed.estimate(case.problem, case.inner, later, [None], None)
    assert resumed.seen == {"meta"} and result.gradient["value"].device.type == "meta"


def test_the_paper_that_each_is_from():
    papers = ("1703.03864", "2112.13835", "2304.12180")
    for kind, paper in zip((EvolutionStrategies, PersistentES, NoiseReuseES), papers, strict=True):
        assert kind().traits.paper.endswith(f"arXiv {paper}")
        assert kind().traits.kind == "stochastic"
        assert kind().windows == (kind is not EvolutionStrategies)


def test_objective_is_the_outer_loss_after_the_steps():
    case = drift()
    meta = {"value": torch.tensor(0.4, dtype=F64)}
    for kind in (EvolutionStrategies, PersistentES, NoiseReuseES):
        value = kind(3).objective(case.problem, case.inner, case.state, [None] * 3, 7.0, meta)
        assert float(value) == pytest.approx(7.3 - RATE * 0.4 * 3, rel=1e-14)
