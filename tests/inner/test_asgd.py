"""ASGD against torch.optim.ASGD, autograd and finite differences, with its average."""

import copy

import pytest
import torch

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import ASGD, exponential
from metatoolkit.testing import bank
from tests.inner import reference

OPTIONS = [
    {"lr": 0.05},
    {"lr": 0.1, "lambd": 0.3, "alpha": 0.6, "weight_decay": 0.2},
    {"lr": 0.05, "lambd": 0.1, "alpha": 0.0, "t0": 3},
    {"lr": 0.002, "maximize": True, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(ASGD(**options), torch.optim.ASGD, options)


def test_groups_equal_torch():
    options = {"lr": 0.05, "weight_decay": 0.1}
    special = [{"lr": 0.02, "lambd": 0.5}, {"alpha": 0.1, "weight_decay": 0.0, "lambd": 0.2}]
    inner = ASGD(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, torch.optim.ASGD, options, special)


def test_a_schedule_comes_one_step_late_as_in_torch():
    reference.assert_follows(
        ASGD(lr=exponential(0.1, 0.9), lambd=0.1),
        torch.optim.ASGD,
        {"lr": 0.1, "lambd": 0.1},
        schedule=lambda step: {"lr": 0.1 * 0.9**step},
    )


@pytest.mark.parametrize("start", [0, 2, 3.5, 1e6])
def test_the_average_is_that_of_torch(start):
    problem, batches = reference.make_problem(), reference.make_batches(8)
    model = copy.deepcopy(problem.model)
    options = {"lr": 0.1, "t0": start}
    with reference.float64_by_default():
        stepper = torch.optim.ASGD(model.parameters(), **options)
    inner = ASGD(**options)
    state = inner.init(problem)
    for batch in batches:
        stepper.zero_grad()
        problem.train_loss(model, problem.meta, batch).backward()
        with reference.float64_by_default():
            stepper.step()
        state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
    for name, parameter in model.named_parameters():
        average = state.optimizer["average"][name]
        torch.testing.assert_close(average, stepper.state[parameter]["ax"], rtol=1e-11, atol=1e-13)
        moved = state.parameters[name]
        assert torch.equal(average, moved) == (start >= 6)
        assert average.data_ptr() != moved.data_ptr()


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_sensitivity(options):
    reference.assert_sensitivity(ASGD(**options), steps=3)


@pytest.mark.parametrize("dead", [(), (1, 4)])
def test_learned_hyperparameters(dead):
    values = {"lr": 0.2, "lambd": 0.3, "alpha": 0.6, "decay": 0.2}

    def make(meta):
        return ASGD(
            lr=meta["lr"],
            lambd=lambda meta, step: meta["lambd"],
            alpha=meta["alpha"],
            weight_decay=meta["decay"],
        )

    reference.assert_differences(make, values, dead=dead)


def test_the_average_has_its_derivative():
    # Loss θ, so that θₜ = 1 − lr t without decay; with t0 = s, 1 / max(1, t − 1 − s) is the weight.
    def loss(model, meta, batch):
        return model.value

    meta = bank.Value(0.25)
    problem = mt.BilevelProblem(bank.Value(1.0), meta, loss, loss)
    inner = ASGD(lr=0.1, lambd=0.0, t0=meta.value)
    state = inner.init(problem)
    for _ in range(3):
        state, _ = inner.step(problem, state, problem.meta_parameters(), None, create_graph=True)
    average = state.optimizer["average"]["value"]
    # a₂ = θ₂ = 0.8, and a₃ = a₂ + (θ₃ − a₂) / (2 − s), of which da₃/ds = −0.1 / (2 − s)².
    assert float(average.detach()) == pytest.approx(0.8 - 0.1 / 1.75, rel=1e-12)
    (slope,) = torch.autograd.grad(average, [meta.value])
    assert float(slope) == pytest.approx(-0.1 / 1.75**2, rel=1e-12)


def test_a_rate_for_each_entry():
    rates = torch.tensor([0.1, 0.3], dtype=torch.float64)
    problem, batches = reference.make_problem(), reference.make_batches(3)
    inner = ASGD(lr=0.1, lambd=0.2, groups=[{"params": ["head.bias"], "lr": rates}])
    check = mt.check_hypergradient(problem, inner, hg.Unrolled(2), batches[:2], batches[2])
    assert check.relative_error < 1e-6, check
    state, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), batches[0])
    expected = rates / (1 + 0.2 * rates) ** 0.75
    torch.testing.assert_close(state.optimizer["rate"]["head.bias"], expected)
    assert state.optimizer["rate"]["head.weight"].unique().tolist() == pytest.approx(
        [0.1 / 1.02**0.75]
    )


def test_arguments_out_of_range():
    with pytest.raises(ConfigurationError, match=r"lambd is -1"):
        ASGD(lambd=-1)
    with pytest.raises(ConfigurationError, match=r"t0 is inf"):
        ASGD(t0=float("inf"))


def test_starts_of_the_average_are_taken_as_a_batch():
    inner, step = ASGD(lr=0.1), 3
    parameter, gradient = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0])
    slots = {"average": torch.tensor([1.0, 1.0]), "rate": torch.full((2,), 0.1)}
    options = {"lr": 0.1, "lambd": 0.0, "alpha": 0.75, "weight_decay": 0.0}

    def average(start):
        return inner.update(parameter, gradient, slots, {**options, "t0": start}, step)[1][
            "average"
        ]

    starts = torch.tensor([-1.0, 1.0, 2.5, 7.0])
    moved = parameter - 0.1 * gradient
    # The mean over the steps since the start, at least one.
    expected = [1 + (moved - 1) / count for count in (4.0, 2.0, 1.0, 1.0)]
    torch.testing.assert_close(torch.func.vmap(average)(starts), torch.stack(expected))
