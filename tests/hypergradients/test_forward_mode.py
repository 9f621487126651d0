"""ForwardMode against closed forms, reverse mode and its own promise of flat memory."""

import dataclasses

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops, peak_memory
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import ForwardMode, Unrolled
from metatoolkit.inner import SGD
from metatoolkit.testing import bank
from tests.hypergradients.test_mixed_mode import Attention, Recurrent, with_model
from tests.hypergradients.test_unrolled import (
    LEARNERS,
    Plain,
    convolution,
    error,
    flat,
    learners,
)

F64 = torch.float64


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3, 1e5])
@pytest.mark.parametrize("learner", ["SGD", "momentum", "Nesterov"])
def test_quadratic_closed_form(learner, condition):
    inner = LEARNERS[learner]()
    inner.hyperparameters["lr"] = 0.9 / condition
    case = bank.quadratic(condition, inner=inner)
    with torch.no_grad():
        case.problem.model.value += torch.linspace(-1, 2, 12, dtype=F64)
    found = case.call(ForwardMode(25)).gradient["value"]
    assert error(found, bank.quadratic_hypergradient_after(case, 25)) < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_learned_schedule_closed_form(steps):
    case = bank.schedule(steps)
    found = case.call(ForwardMode(steps)).gradient["value"]
    assert error(found, bank.schedule_hypergradient(case)) < 1e-12


@learners
@pytest.mark.parametrize("name", ["illustration", "ridge", "small_net", "inside_model", "tied"])
def test_equals_reverse_mode(name, learner):
    case = bank.PROBLEMS[name]()
    case.inner = LEARNERS[learner]()
    expected = case.call(Unrolled(5))
    for chunk in (64, 3, 1):
        result = case.call(ForwardMode(5, chunk=chunk))
        assert error(flat(result), flat(expected)) < 1e-10
        torch.testing.assert_close(result.valid_loss, expected.valid_loss, rtol=1e-12, atol=0)
        for one, other in zip(result.state.tensors(), expected.state.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        for key, buffer in result.state.buffers.items():
            torch.testing.assert_close(buffer, expected.state.buffers[key])


@pytest.mark.parametrize("name", ["learned_rates", "dead_coordinates", "initialized", "adapted"])
def test_equals_reverse_mode_wherever_meta_enters(name):
    case = getattr(bank, name)()
    assert error(flat(case.call(ForwardMode(6))), flat(case.call(Unrolled(6)))) < 1e-12


@pytest.mark.parametrize("steps", [1, 3])
def test_an_initial_state_is_that_of_the_present_meta(steps):
    case = bank.started()
    state = case.state
    with torch.no_grad():
        case.problem.meta.value.add_(0.5)
    result = case.call(ForwardMode(steps), state)
    expected = bank.started_hypergradient(case, steps)
    assert float(result.gradient["value"]) == pytest.approx(expected, rel=1e-13)


def silu():
    return nn.Sequential(nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 3))


@pytest.mark.parametrize("kind", [Attention, Recurrent, silu])
def test_equals_reverse_mode_on_more_operations(kind):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        case = with_model(kind().double())
    assert error(flat(case.call(ForwardMode(3))), flat(case.call(Unrolled(3)))) < 1e-12


def test_equals_reverse_mode_on_a_convolutional_network():
    case = convolution(5)
    assert error(flat(case.call(ForwardMode(5))), flat(case.call(Unrolled(5)))) < 1e-12


def test_too_many_meta_parameters_are_an_error():
    meta = bank.Value([0.0] * 1000)
    problem = mt.BilevelProblem(
        nn.Linear(1000, 100, bias=False).double(),
        meta,
        lambda model, meta, batch: model(meta.value).square().sum(),
        lambda model, meta, batch: model.weight.square().sum(),
    )
    case = bank.ProblemInstance(problem, SGD(lr=0.1, momentum=0.9), [None], None)
    # 1,000 times θ and its velocity, 10⁵ entries of 8 bytes each.
    message = r"1,000 meta-parameters would take 1\.5 GiB.*1\.0 GiB\. Use Unrolled.*ForwardGradient"
    with pytest.raises(UnsupportedError, match=message):
        case.call(ForwardMode(2, max_bytes=2**30))


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient, inputs):
        ctx.save_for_backward(gradient, inputs)
        return 2 * gradient * inputs

    @staticmethod
    def backward(ctx, again):
        gradient, inputs = ctx.saved_tensors
        # A number that is read from a batched tensor is more than vmap can do.
        factor = 2.0 if again.abs().sum().item() >= 0 else 0.0
        return factor * again * inputs, factor * again * gradient


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.square()

    @staticmethod
    def backward(ctx, gradient):
        return Slope.apply(gradient, *ctx.saved_tensors)


def test_an_operation_that_vmap_does_not_know_names_the_remedy():
    case = bank.ridge()
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: (meta.value.exp() * Square.apply(model.value)).sum(),
        case.problem.valid_loss,
    )
    case = dataclasses.replace(case, problem=problem)
    with pytest.raises(UnsupportedError, match="chunk=1, which takes them one by one"):
        case.call(ForwardMode(3))
    found = case.call(ForwardMode(3, chunk=1))
    assert error(flat(found), flat(case.call(Unrolled(3)))) < 1e-12


def test_another_step_than_an_update_is_an_error():
    class Still(SGD):
        def step(self, problem, state, meta, batch, create_graph=False):
            return super().step(problem, state, meta, batch, create_graph)

    case = bank.ridge()
    case.inner = Still(lr=0.1)
    with pytest.raises(UnsupportedError, match="Still is another map; use Unrolled"):
        case.call(ForwardMode(2))


def test_memory_is_flat():
    setup = Plain(width=16)
    peaks = [peak_memory(lambda n=n: setup.call(ForwardMode(n))) for n in (3, 10, 60)]
    assert peaks[0] == peaks[1] == peaks[2]
    assert peak_memory(lambda: setup.call(Unrolled(60))) > 4 * peaks[0]


def test_passes():
    setup = Plain(layers=12)
    one = count_flops(lambda: setup.call(ForwardMode(1)))
    two = count_flops(lambda: setup.call(ForwardMode(2)))
    # One meta-parameter: 3 F and at most 6 F for each step.
    assert 8 < (two - one) / count_flops(setup.forward) <= 9
    assert setup.call(ForwardMode(2)).cost.jvp == 2


@pytest.mark.parametrize("name", ["steps", "chunk", "max_bytes"])
def test_arguments_out_of_range(name):
    with pytest.raises(ConfigurationError, match=f"{name} is 0"):
        ForwardMode(**{name: 0})
