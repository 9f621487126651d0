"""What changes between compiled calls: no number goes stale."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import OneStep, Unrolled, compilation
from tests.hypergradients.compiled_calls import (
    Calls,
    runs_uncompiled,
    train_loss,
    valid_loss,
)

OUTER = 1.0


def warm(*arguments, **options):
    """Return calls of which one was compiled."""
    calls = Calls(*arguments, **options)
    calls.check(3)
    assert len(calls.programs) == 1
    return calls


def test_a_learning_rate_that_is_set():
    calls = warm(OneStep())
    calls.inner.hyperparameters["lr"] = 0.01
    calls.check()
    assert len(calls.programs) == 2


def test_options_of_the_estimator_that_are_set():
    calls = warm(Unrolled(2))
    for estimator in (calls.estimator, calls.plain):
        estimator.step_weights = [0.5, 0.5]
    calls.check()
    assert len(calls.programs) == 2


@pytest.mark.parametrize(
    "model", ["dropping", pytest.param("convolutional", marks=pytest.mark.slow)]
)
def test_the_mode_of_the_modules(model):
    calls = warm(OneStep(), model=model)
    calls.model.eval()
    calls.check()
    calls.model.train()
    calls.check()
    assert len(calls.programs) == 2


def test_the_share_that_dropout_drops():
    calls = warm(OneStep(), model="dropping")
    calls.model[2].p = 0.1
    calls.check()


def test_the_size_of_the_batches():
    calls = warm(OneStep())
    calls.check(3, size=4)
    calls.check(2, size=6)
    assert len(calls.programs) == 2


def test_a_parameter_that_is_frozen_is_an_error():
    calls = warm(OneStep())
    calls.model[0].weight.requires_grad_(False)
    with pytest.raises(mt.errors.ConfigurationError, match="frozen"):
        calls.call()


class Frozen:
    """Calls on a model with a frozen layer."""

    def __new__(cls):
        torch.manual_seed(0)
        calls = Calls(OneStep())
        calls.model[0].requires_grad_(False)
        calls.problem = mt.BilevelProblem(calls.model, calls.meta, train_loss, valid_loss)
        calls.state = calls.inner.init(calls.problem)
        calls.check(4)
        assert len(calls.programs) == 1
        return calls


def test_a_frozen_parameter_that_is_changed_in_place():
    calls = Frozen()
    with torch.no_grad():
        calls.model[0].weight.mul_(2)
    calls.check()
    assert len(calls.programs) == 1


@pytest.mark.slow
def test_a_frozen_parameter_that_is_replaced():
    calls = Frozen()
    new = nn.Parameter(torch.randn_like(calls.model[0].weight), requires_grad=False)
    calls.model[0].weight = new
    calls.check()


@pytest.mark.slow
def test_a_buffer_of_the_state():
    calls = warm(OneStep(), model="convolutional")
    before = calls.state.buffers["model.1.running_mean"]
    calls.check(1)
    assert not torch.equal(before, calls.state.buffers["model.1.running_mean"])


def closing(**values):
    space = types.SimpleNamespace(**values)
    factor = torch.ones((), dtype=torch.float64)
    number = 1.0

    def loss(model, meta, batch):
        own = F.mse_loss(model(batch[0]), factor.expand(len(batch[0]), 3), reduction="none")
        return OUTER * number * space.scale * (own.mean(1) * meta.logits[batch[2]].exp()).mean()

    def change(value):
        nonlocal number
        number = value

    return loss, space, factor, change


def test_variables_that_a_loss_closes_over(monkeypatch):
    loss, space, factor, change = closing(scale=1.0)
    calls = warm(OneStep(), losses=(loss, valid_loss))
    change(0.5)
    calls.check()
    space.scale = 0.25
    calls.check()
    monkeypatch.setitem(globals(), "OUTER", 3.0)
    calls.check()
    assert len(calls.programs) == 4
    factor.mul_(2)  # a tensor is an input
    calls.check()
    assert len(calls.programs) == 4


def test_an_attribute_of_a_module():
    class Scaled(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part, self.scale, self.shift = part, 1.0, torch.zeros(3, dtype=torch.float64)

        def forward(self, inputs):
            return self.scale * self.part(inputs) + self.shift

    calls = Calls(OneStep())
    model = Scaled(calls.model)
    calls.problem = mt.BilevelProblem(model, calls.meta, train_loss, valid_loss)
    calls.state = calls.inner.init(calls.problem)
    calls.check()
    model.scale = 2.0
    calls.check()
    model.shift = torch.ones(3, dtype=torch.float64)
    calls.check()
    model.shift.mul_(2)
    calls.check()
    assert len(calls.programs) == 3


HIDDEN = types.ModuleType("hidden")
HIDDEN.box = [1.0]
HIDDEN.scale = lambda: HIDDEN.box[0]
read_elsewhere = eval("lambda: box[0]", vars(HIDDEN))


def test_what_cannot_be_seen_is_an_error_soon():
    def loss(model, meta, batch):
        return read_elsewhere() * train_loss(model, meta, batch)

    calls = Calls(OneStep(), losses=(loss, valid_loss))
    HIDDEN.box[0] = 1.0
    calls.check(4)
    HIDDEN.box[0] = 2.0
    with pytest.raises(mt.errors.ReplayError, match="read something beside their arguments"):
        for _ in range(4):
            calls.call()


def test_too_many_programs_end_in_a_warning(monkeypatch):
    monkeypatch.setattr(compilation, "MOST_PROGRAMS", 2)
    calls = Calls(OneStep())
    for rate in (0.1, 0.2):
        calls.inner.hyperparameters["lr"] = rate
        calls.check(2)
    calls.inner.hyperparameters["lr"] = 0.3
    with runs_uncompiled("2 programs were compiled, and yet another is needed (the inner learner"):
        calls.check(4)
    assert len(calls.programs) == 2
    calls.inner.hyperparameters["lr"] = 0.1
    calls.check(1)


def test_calls_of_which_no_two_are_alike_end_in_a_warning(monkeypatch):
    monkeypatch.setattr(compilation, "MOST_KINDS", 3)
    calls = Calls(OneStep())
    with runs_uncompiled("no two of 3 calls are alike (the modes and attributes of the modules"):
        for number in range(6):
            calls.model.counter = number
            calls.check(1)
    assert len(calls.estimator._compiler._seen) == 3


@pytest.mark.slow
def test_another_problem_has_programs_of_its_own():
    calls = warm(OneStep())
    other = Calls(calls.estimator)
    with torch.no_grad():
        other.model[0].weight.add_(1)
    other.check()
    assert len(calls.programs) == 2


@pytest.mark.slow
def test_an_optimizer_state_of_another_learner():
    calls = warm(OneStep())
    calls.inner = mt.inner.Adam(lr=0.1)
    calls.state = calls.inner.init(calls.problem)
    calls.check()
    assert len(calls.programs) == 2
