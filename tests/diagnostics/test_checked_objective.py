"""The function of λ that a check differences, value by value."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics.checked_objective import CheckedObjective
from metatoolkit.hypergradients import SAMA, Implicit, OneStep, ProblemInstance, Unrolled
from metatoolkit.testing import bank

F64 = torch.float64


def objective_of(problem, estimator, holds=True, batches=(None,), valid=None):
    inner = mt.inner.SGD(lr=0.1)
    state = inner.init(problem)
    instance = ProblemInstance(problem, inner, list(batches), valid, state)
    return CheckedObjective(instance, estimator, holds)


class Mute(Unrolled):
    """An exact estimator, of which no objective is needed."""

    def objective(self, *arguments):
        raise AssertionError


class Told(SAMA):
    """An approximate estimator that tells its own objective, a function of the outer loss."""

    def __init__(self, points=(1.0,)):
        super().__init__()
        self.points = points
        self.seen = []

    def objective(self, problem, inner, state, train_batches, valid_batch, meta):
        self.seen.append((state, train_batches, valid_batch, meta))
        for point in self.points:
            at = {"value": torch.tensor(point, dtype=F64)}
            value = problem.evaluate_valid(at, meta, state.buffers, valid_batch, 0)
        return 2 * value


def decay():
    """A step gives θ (1 − 0.1 (λ + b)), and the outer loss is θ + λ² + b."""
    return mt.BilevelProblem(
        bank.Value(0.7),
        bank.Value(0.4),
        lambda model, meta, batch: (meta.value + batch) * model.value.square() / 2,
        lambda model, meta, batch: model.value + meta.value.square() + batch,
    )


def after(rate, batches=(1.0, 2.0), valid=3.0):
    theta = 0.7
    for batch in batches:
        theta *= 1 - 0.1 * (rate + batch)
    return theta + rate**2 + valid


def test_of_an_exact_estimator_it_is_the_outer_loss_after_the_steps():
    problem = decay()
    objective = objective_of(problem, Mute(2), batches=(1.0, 2.0), valid=3.0)
    assert objective.record() == pytest.approx(after(0.4), rel=1e-14)
    assert objective.present() == pytest.approx(after(0.4), rel=1e-14)
    assert objective.shifted("value", 0, 0.3) == pytest.approx(after(0.7), rel=1e-14)
    assert objective.shifted("value", 0, -0.6) == pytest.approx(after(-0.2), rel=1e-14)
    along = [objective.along(0.3, seed) for seed in range(8)]
    ways = {min((0.7, 0.1), key=lambda rate: abs(after(rate) - value)) for value in along}
    assert ways == {0.7, 0.1}
    for value in along:
        assert min(abs(after(rate) - value) for rate in ways) < 1e-14
    assert float(problem.meta.value.detach()) == 0.4 and problem.meta.value.requires_grad


def reading(meta, loss=lambda value: value.sum()):
    """An objective whose outer loss reads the live parameter of meta, whatever it is given."""
    live = meta.value.detach().numpy()
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        meta,
        lambda model, _, batch: model.value.square(),
        lambda model, _, batch: model.value + loss(torch.tensor(live)),
    )
    return objective_of(problem, Mute(1), holds=False)


def test_a_loss_that_reads_the_live_parameter_sees_it_moved():
    meta = bank.Value([[0.4, -0.3], [0.2, 0.1]])
    before = meta.value.detach().clone()
    powers = torch.tensor([[1.0, 10.0], [100.0, 1000.0]], dtype=F64)
    objective = reading(meta, lambda value: (powers * value).sum())
    center = objective.record()
    assert center == pytest.approx(float((powers * before).sum()), rel=1e-14)
    for index, power in enumerate(powers.flatten().tolist()):
        moved = objective.shifted("value", index, 0.5)
        assert moved - center == pytest.approx(0.5 * power, rel=1e-12)
        assert torch.equal(meta.value, before)


def test_everything_is_put_back_where_a_loss_fails():
    def loss(value):
        if float(value[1]) > 0:
            raise OverflowError
        return value.sum()

    meta = bank.Value([0.4, -0.3])
    objective = reading(meta, loss)
    objective.record()
    with pytest.raises(OverflowError):
        objective.shifted("value", 1, 1.0)
    assert meta.value.tolist() == [0.4, -0.3]


def test_an_approximate_estimator_tells_its_own():
    problem, estimator = decay(), Told((5.0,))
    objective = objective_of(problem, estimator, batches=(1.0,), valid=3.0)
    assert objective.record() == pytest.approx(2 * (5 + 0.16 + 3), rel=1e-14)
    assert objective.shifted("value", 0, 0.3) == pytest.approx(2 * (5 + 0.49 + 3), rel=1e-14)
    assert objective.present() == pytest.approx(2 * (5 + 0.16 + 3), rel=1e-14)
    assert float(problem.meta.value.detach()) == 0.4
    metas = [meta["value"] for *_, meta in estimator.seen]
    assert [float(value) for value in metas] == pytest.approx([0.4, 0.7, 0.4])
    places = [value.data_ptr() for value in metas] + [problem.meta.value.data_ptr()]
    assert len(set(places)) == 4 and not any(value.requires_grad for value in metas)
    state, batches, valid, _ = estimator.seen[0]
    assert float(state.parameters["value"]) == 0.7 and (batches, valid) == ([1.0], 3.0)


def held(model, meta, batch):
    """λ times what is detached of θ λ."""
    return meta.value * (model.value * meta.value).detach()


@pytest.mark.parametrize("estimator", [Mute(1), Told((0.7,))], ids=["exact", "approximate"])
def test_what_is_detached_is_held_at_what_was_recorded(estimator):
    problem = mt.BilevelProblem(
        bank.Value(0.7), bank.Value(0.4), lambda model, meta, batch: 0.0 * model.value, held
    )
    scale = 1.0 if isinstance(estimator, Mute) else 2.0
    for holds in (True, False):
        objective = objective_of(problem, estimator, holds)
        assert objective.record() == pytest.approx(scale * 0.7 * 0.4**2)
        for shift in (0.3, -0.2):
            other = 0.4 if holds else 0.4 + shift
            expected = scale * 0.7 * (0.4 + shift) * other
            assert objective.shifted("value", 0, shift) == pytest.approx(expected)
        assert objective.present() == pytest.approx(scale * 0.7 * 0.4**2)


def test_an_iterative_estimator_holds_what_its_last_evaluation_did():
    class Iterative(Told):
        traits = Implicit.traits

    problem = mt.BilevelProblem(
        bank.Value(0.7), bank.Value(0.4), lambda model, meta, batch: 0.0 * model.value, held
    )
    assert Implicit.traits.kind == "iterative" and SAMA.traits.kind == "approximate"
    for kind, last in ((Told, 1.0), (Iterative, 2.0)):
        estimator = kind((1.0, 2.0))
        objective = objective_of(problem, estimator)
        assert objective.record() == pytest.approx(2 * 2 * 0.4**2)
        # One evaluation now; in order it is the first that was recorded.
        estimator.points = (1.0,)
        assert objective.shifted("value", 0, 0.3) == pytest.approx(2 * 0.7 * last * 0.4)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.tensor(-0.25, dtype=F64))
        kernel = torch.arange(1.0, 13.0, dtype=F64).reshape(1, 2, 2, 3) * -1
        self.many = nn.Parameter(kernel.to(memory_format=torch.channels_last))
        self.none = nn.Parameter(torch.zeros(0, dtype=F64))


def total(meta):
    """The sum of λ by powers, from which each sign can be read."""
    powers = 4.0 ** torch.arange(12, dtype=F64).reshape(1, 2, 2, 3)
    return (meta.many * powers).sum() + meta.one / 4


def several():
    return mt.BilevelProblem(
        bank.Value(0.0),
        Several(),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: model.value + total(meta) - total(Several()),
    )


@pytest.mark.parametrize("kind", [Mute, OneStep])
def test_entries_by_their_number_whatever_the_memory_format(kind):
    problem = several()
    objective = objective_of(problem, kind())
    assert objective.size("one", 0) == 0.25
    assert [objective.size("many", index) for index in (0, 1, 5, 11)] == [1.0, 2.0, 6.0, 12.0]
    assert objective.record() == 0.0
    assert objective.shifted("one", 0, 8.0) == pytest.approx(2.0, rel=1e-9)
    for index in (0, 1, 5, 11):
        assert objective.shifted("many", index, -2.0) == pytest.approx(-2.0 * 4.0**index, rel=1e-9)
    assert problem.meta.many.is_contiguous(memory_format=torch.channels_last)


def signs_of(value, shift):
    """The signs of 13 entries, from the sum of ± shift 4^k for k from −1 on."""
    digits = round(4 * value / shift)
    found = []
    for _ in range(13):
        sign = 1 if digits % 4 == 1 else -1
        found.append(sign)
        digits = (digits - sign) // 4
    assert digits == 0
    return found


@pytest.mark.parametrize("kind", [Mute, OneStep])
def test_all_entries_move_up_or_down_by_a_seed(kind):
    problem = several()
    objective = objective_of(problem, kind())
    objective.record()
    seen = {seed: signs_of(objective.along(0.5, seed), 0.5) for seed in range(4)}
    assert all(set(signs) == {1, -1} for signs in seen.values())
    assert len({tuple(signs) for signs in seen.values()}) == 4
    # The seed tells which way, the shift how far.
    assert signs_of(objective.along(-0.25, 2), -0.25) == seen[2]
    assert len({signs[0] for signs in seen.values()}) == 2
    generator = torch.Generator().manual_seed(2)
    ups = [int(torch.randint(2, (), generator=generator))]
    ups += torch.randint(2, (12,), generator=generator).tolist()
    assert seen[2] == [1 if up else -1 for up in ups]
    assert float(problem.meta.one.detach()) == -0.25
