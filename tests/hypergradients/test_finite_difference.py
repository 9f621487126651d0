"""DARTS' finite difference against the exact one-step hypergradient."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import SAMA, FiniteDifference, OneStep
from metatoolkit.testing import bank
from tests.hypergradients.test_cost import Setup

F64 = torch.float64
both = pytest.mark.parametrize(
    ("estimator", "limit_of"),
    [(FiniteDifference, OneStep(True)), (SAMA, OneStep(False))],
    ids=["finite difference", "SAMA"],
)
LEARNERS = {
    "SGD": lambda: mt.inner.SGD(lr=0.1),
    "momentum": lambda: mt.inner.SGD(lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "Nesterov": lambda: mt.inner.SGD(lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: mt.inner.Adam(lr=0.01, weight_decay=0.1),
    "AdamW": lambda: mt.inner.AdamW(lr=0.01),
    "RMSprop": lambda: mt.inner.RMSprop(lr=0.01, momentum=0.5),
}


def flat(result):
    return torch.cat([gradient.flatten() for gradient in result.gradient.values()])


def relative_error(result, expected):
    return float((flat(result) - flat(expected)).norm() / flat(expected).norm())


def cosine(result, expected):
    return float(torch.cosine_similarity(flat(result), flat(expected), dim=0))


def later(case, steps=3):
    """The state after some steps, where no optimizer state is zero."""
    state = case.state
    for batch in case.batches(steps):
        state, _ = case.inner.step(case.problem, state, case.problem.meta_parameters(), batch)
    return state


@both
@pytest.mark.parametrize("name", bank.PROBLEMS)
def test_tends_to_the_exact_one_step_hypergradient(name, estimator, limit_of):
    case = bank.PROBLEMS[name]()
    state = later(case)
    result, exact = case.call(estimator(), state), case.call(limit_of, state)
    assert relative_error(result, exact) < 1e-7
    assert torch.equal(result.valid_loss, exact.valid_loss)
    assert result.state.step == state.step + 1


@both
@pytest.mark.parametrize("learner", LEARNERS)
def test_adapts_to_the_optimizer(learner, estimator, limit_of):
    case = bank.small_net()
    case = dataclasses.replace(case, inner=LEARNERS[learner]())
    state = later(case)
    assert relative_error(case.call(estimator(), state), case.call(limit_of, state)) < 1e-6


@both
def test_the_error_falls_with_the_square_of_the_radius(estimator, limit_of):
    case = bank.small_net()
    exact = case.call(limit_of)
    errors = [relative_error(case.call(estimator(radius)), exact) for radius in (0.1, 0.05)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@both
@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("radius", [None, 0.01])
def test_dropout_masks_are_common_to_the_passes(rate, radius, estimator, limit_of, monkeypatch):
    # With masks of their own, the difference of the two passes is noise: cosine 0.1 and below.
    torch.manual_seed(3)
    case = bank.small_net()
    model = nn.Sequential(
        nn.Linear(6, 64), nn.Dropout(rate), nn.Tanh(), nn.Linear(64, 64), nn.Dropout(rate),
        nn.Tanh(), nn.Linear(64, 3),
    )  # fmt: skip
    meta = bank.Weights()
    problem = mt.BilevelProblem(
        model, meta, case.problem.train_loss, case.problem.valid_loss, "eval"
    )
    batches = [(x.float(), y) for x, y in case.train_batches]
    inputs, targets = case.valid_batch
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), batches, (inputs.float(), targets))
    keys = []
    real = problem.evaluate_train

    def spy(parameters, meta, buffers, batch, key):
        keys.append(key)
        return real(parameters, meta, buffers, batch, key)

    monkeypatch.setattr(problem, "evaluate_train", spy)
    state = case.state
    result = case.call(estimator(radius), state)
    assert len(keys) == 3 and len(set(keys)) == 1
    assert cosine(result, case.call(limit_of, state)) > 0.99


@both
@pytest.mark.parametrize(("where", "passes"), [("loss", 8.0), ("input", 12.0)])
def test_at_most_three_passes_beyond_the_base_step(where, passes, estimator, limit_of):
    setup = Setup(where, 2)
    base = mt.diagnostics.measure.count_flops(setup.base_step)
    total = mt.diagnostics.measure.count_flops(lambda: setup.call(estimator()))
    assert total - base <= 3 * base
    # At the input λ needs less than a whole backward pass.
    lower = passes - (0.1 if where == "loss" else 3)
    assert lower < total / mt.diagnostics.measure.count_flops(setup.forward) <= passes
    cost = bank.ridge().call(estimator()).cost
    assert (cost.forward, cost.backward, cost.hvp) == (4, 4, 0)


class Twice(torch.autograd.Function):
    """The identity with twice its gradient."""

    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def weighted(how):
    """Meta-Weight-Net, whose weights read the losses in one way or another."""
    case = bank.small_net()

    def train_loss(model, meta, batch):
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        if how == "detach":
            seen = losses.detach()
        elif how == "data":
            seen = losses.data
        elif how == "no_grad":
            with torch.no_grad():
                seen = losses * 1.0
        else:
            seen = Twice.apply(losses)
        return (meta(seen) * losses).mean()

    problem = mt.BilevelProblem(
        case.problem.model, case.problem.meta, train_loss, case.problem.valid_loss
    )
    return dataclasses.replace(case, problem=problem)


def without_outer_gradient():
    """Ridge regression below an outer loss that is zero everywhere."""
    case = bank.ridge()
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        case.problem.train_loss,
        lambda model, meta, batch: 0.0 * model.value.sum(),
    )
    return dataclasses.replace(case, problem=problem, valid_batch=None)


@both
@pytest.mark.parametrize("how", ["detach", "data", "no_grad"])
def test_what_the_loss_detaches_is_a_constant(how, estimator, limit_of):
    case = weighted(how)
    state = later(case)
    result = case.call(estimator(), state)
    assert relative_error(result, case.call(limit_of, state)) < 1e-7
    assert float(result.details["slope_error"]) < 1e-8


@both
def test_a_gradient_that_is_no_derivative_is_an_error(estimator, limit_of):
    with pytest.raises(UnsupportedError, match=r"Twice is not the derivative.*OneStep or Unrolled"):
        weighted("twice").call(estimator())


@both
def test_memory_of_an_ordinary_step(estimator, limit_of):
    setup = Setup("loss", 8)
    assert setup.memory(estimator()) < 1.3


@both
def test_a_zero_outer_gradient_gives_zero(estimator, limit_of):
    result = without_outer_gradient().call(estimator())
    assert bool((result.gradient["value"] == 0).all())


@both
@pytest.mark.parametrize(("dtype", "limit"), [(F64, 1e-7), (torch.float32, 1e-2)], ids=str)
def test_a_dead_coordinate_under_adam(dtype, limit, estimator, limit_of):
    # Its gradient would be amplified by 1/ε, and its share of the radius with it.
    problem = mt.BilevelProblem(
        bank.Value([0.5, -1.0, 2.0], dtype),
        bank.Value(0.3, dtype),
        lambda model, meta, batch: (meta.value * model.value[:2].square()).sum(),
        lambda model, meta, batch: model.value.square().sum(),
    )
    case = bank.ProblemInstance(problem, mt.inner.Adam(lr=0.1), [None], None)
    for state in (case.state, later(case)):
        result, exact = case.call(estimator(), state), case.call(limit_of, state)
        difference = float((flat(result) - flat(exact)).abs())
        assert difference < limit * max(float(flat(exact).abs()), 1e-2)


@both
def test_bfloat16(estimator, limit_of):
    case = bank.logistic()
    theta = case.problem.model.value
    theta.data += 1.0
    exact = case.call(limit_of)
    case.problem.model.to(torch.bfloat16)
    case.problem.meta.to(torch.bfloat16)
    low = bank.ProblemInstance(
        case.problem,
        case.inner,
        [tuple(t.bfloat16() for t in batch) for batch in case.train_batches],
        tuple(t.bfloat16() for t in case.valid_batch),
    )
    result = low.call(estimator())
    assert result.gradient["value"].dtype == torch.bfloat16
    error = result.gradient["value"].double() - exact.gradient["value"]
    assert float(error.norm() / exact.gradient["value"].norm()) < 0.2


class Signs(mt.inner.InnerLearner):
    """A learner without a closed form, whose step does not change with its gradient."""

    def init_slots(self, parameters):
        return {}

    def update(self, parameter, gradient, slots, hyperparameters, step):
        return parameter - 0.1 * gradient.sign(), {}


class Clamped(mt.inner.SGD):
    """SGD with each entry of the gradient limited."""

    limit = 0.1

    def update(self, parameter, gradient, slots, hyperparameters, step):
        gradient = gradient.clamp(-self.limit, self.limit)
        return super().update(parameter, gradient, slots, hyperparameters, step)


class Loose(Clamped):
    limit = 5.0


class NormClipped(mt.inner.SGD):
    """SGD with the norm of the gradient limited, which mixes its entries."""

    def apply(self, problem, state, meta, gradients):
        size = torch.stack([g.norm() for g in gradients.values()]).norm()
        clipped = {name: g / size.clamp(min=1.0) for name, g in gradients.items()}
        return super().apply(problem, state, meta, clipped)


class ClippedAdam(mt.inner.Adam):
    def update(self, parameter, gradient, slots, hyperparameters, step):
        return super().update(parameter, (0.1 * gradient).tanh(), slots, hyperparameters, step)


def with_method():
    inner = mt.inner.SGD(lr=0.1)
    plain = inner.update
    inner.update = lambda p, g, *rest: plain(p, 0.5 * g.square(), *rest)
    return inner


OWN_UPDATES = {
    "sign": lambda: Signs({}),
    "saturated": lambda: Clamped(lr=0.1),
    "partly saturated": lambda: Loose(lr=0.1),
    "norm": lambda: NormClipped(lr=0.1, momentum=0.5),
    "Adam": lambda: ClippedAdam(lr=0.1),
    "method": with_method,
}


@both
@pytest.mark.parametrize("name", OWN_UPDATES)
def test_updates_of_ones_own(name, estimator, limit_of):
    case = bank.ridge()
    case = dataclasses.replace(case, inner=OWN_UPDATES[name]())
    state = later(case)
    result, exact = case.call(estimator(), state), case.call(limit_of, state)
    if name in ("sign", "saturated"):
        assert bool((flat(result) == 0).all()) and bool((flat(exact) == 0).all())
    else:
        assert float(flat(exact).norm()) > 1e-3
        assert relative_error(result, exact) < 1e-6


class TwoGradients(mt.inner.SGD):
    """A learner with a step of its own."""

    def step(self, problem, state, meta, batch, create_graph=False):
        middle, _ = super().step(problem, state, meta, batch, create_graph)
        return super().step(problem, middle, meta, batch, create_graph)


class OtherGradients(mt.inner.SGD):
    """A learner that takes other gradients than those of the training loss."""

    @staticmethod
    def gradients(problem, state, meta, batch, create_graph=False):
        loss, found, buffers = mt.inner.SGD.gradients(problem, state, meta, batch, create_graph)
        return loss, {name: g.clamp(-0.1, 0.1) for name, g in found.items()}, buffers


@both
@pytest.mark.parametrize("inner", [TwoGradients(lr=0.1), OtherGradients(lr=0.1)], ids=repr)
def test_a_step_that_is_no_update_by_the_gradient(inner, estimator, limit_of):
    case = bank.ridge()
    case = dataclasses.replace(case, inner=inner)
    with pytest.raises(UnsupportedError, match="OneStep or Unrolled"):
        case.call(estimator())


@pytest.mark.parametrize("estimator", [FiniteDifference, SAMA])
@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf])
def test_arguments_out_of_range(estimator, radius):
    with pytest.raises(ConfigurationError, match="radius"):
        estimator(radius)
