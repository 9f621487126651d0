"""Losses that give another value when they are evaluated again, under every estimator."""

import contextlib
import dataclasses
import math
import random
import re
import threading

import numpy as np
import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import NonFiniteError, ReplayError, UnsupportedError
from metatoolkit.hypergradients import (
    EvoGrad,
    FiniteDifference,
    GuidedEvoGrad,
    Penalty,
    Reptile,
    Unrolled,
    replay_check,
)
from metatoolkit.testing import bank
from tests.hypergradients import drifting
from tests.hypergradients.drifting import (
    ALIKE,
    ALL,
    DRIFTING,
    REWOUND,
    AttachedState,
    Logged,
    MovingAverage,
    Numpy,
    OwnGenerator,
    Python,
    Warmup,
    build,
    cross_entropy,
    estimators,
    penalized,
)
from tests.hypergradients.registry import ESTIMATORS, learned_as_it_takes


def call(make, *arguments, **options):
    """Call an estimator on the problem, or on one with an initial state where it needs that."""
    estimator = make()
    try:
        return learned_as_it_takes(build(*arguments, **options), estimator).call(estimator)
    except ReplayError:
        raise
    except UnsupportedError:
        return build(*arguments, **options, initial=True).call(make())


@estimators
@pytest.mark.parametrize("kind", [kind for kind in DRIFTING if kind not in ALIKE])
def test_what_no_evaluation_rewinds_is_an_error_that_names_it(kind, make):
    with pytest.raises(ReplayError, match="Likely sources") as caught:
        call(make, getattr(drifting, kind)())
    assert f"model.{DRIFTING[kind]}" in str(caught.value)
    for remedy in ("global generator", "register_buffer", "pass in the batch"):
        assert remedy in str(caught.value)


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize("name", ["FiniteDifference", "Unrolled(3)", "EvoGrad, graphs kept"])
def test_its_neighbors_are_named_too(kind, name):
    with pytest.raises(ReplayError, match=re.escape(f"model.{DRIFTING[kind]}")):
        call(ALL[name], getattr(drifting, kind)())


@pytest.mark.parametrize("steps", [1, 2])
def test_two_trajectories_from_one_point_are_compared(steps):
    with pytest.raises(ReplayError, match="average"):
        build(MovingAverage()).call(Penalty(3.0, steps=steps))


@estimators
def test_a_state_that_keeps_its_graph_is_an_error(make):
    with pytest.raises(ReplayError, match="no buffer"):
        call(make, AttachedState())


@estimators
def test_a_counter_in_a_closure_is_an_error(make):
    calls = 0

    def train_loss(model, meta, batch):
        nonlocal calls
        calls += 1
        return penalized(model, meta, batch) * (1 + 0.5**calls)

    if isinstance(make(), Reptile):
        pytest.skip("its training loss is another one here")
    with pytest.raises(ReplayError, match=r"'calls' of train_loss \(a number\)"):
        call(make, train_loss=train_loss)


@estimators
@pytest.mark.parametrize("between", REWOUND)
def test_what_is_rewound_goes_on_working(between, make):
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        found.append(call(make, between()).gradient)
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name])


@pytest.mark.parametrize("between", [Python, Numpy, nn.Dropout, lambda: nn.BatchNorm1d(5)])
@pytest.mark.parametrize("kind", ["FiniteDifference", "SAMA", "Unrolled(3)", "GuidedEvoGrad"])
def test_the_value_is_that_of_the_objective(between, kind):
    case, estimator = build(between()), ESTIMATORS[kind]()
    batches = case.batches(estimator.horizon)
    check = mt.check_hypergradient(
        case.problem, case.inner, estimator, batches, case.valid_batch, case.state
    )
    assert check.relative_error < 1e-5


@pytest.mark.parametrize("kind", ["EvolutionStrategies", "PersistentES", "NoiseReuseES"])
def test_the_outer_loss_is_looked_at_where_it_is_compared(kind):
    generator = torch.Generator().manual_seed(0)

    def valid_loss(model, meta, batch):
        return cross_entropy(model, meta, batch) * torch.rand((), generator=generator)

    with pytest.raises(ReplayError, match=r"valid_loss gave .*'generator' of valid_loss"):
        build(valid_loss=valid_loss).call(ESTIMATORS[kind]())


def test_an_outer_loss_that_is_evaluated_once_may_be_random():
    generator = torch.Generator().manual_seed(0)

    def valid_loss(model, meta, batch):
        return cross_entropy(model, meta, batch) * torch.rand((), generator=generator)

    build(valid_loss=valid_loss).call(FiniteDifference())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inside", [False, True])
def test_rounding_is_no_drift(dtype, inside):
    """Attention by other kernels, and a loss that lowers its precision inside itself."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def loss(model, meta, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return (model(batch).float() * meta.value.float()).square().mean()

    problem = mt.BilevelProblem(layer.to(dtype), bank.Value(1.0).to(dtype), loss, loss)
    batches = [torch.randn(3, 4, 8, dtype=dtype) for _ in range(3)]
    inner = mt.inner.SGD(lr=0.1)
    for estimator in (Unrolled(3), Unrolled(3, checkpoint="tree", arity=2), EvoGrad(streamed=True)):
        given = batches[: estimator.horizon]
        estimator(problem, inner, inner.init(problem), given, batches[0])


def test_drift_is_told_before_what_fails_because_of_it():
    def valid_loss(model, meta, batch):
        raise OverflowError

    case = build(OwnGenerator(), valid_loss=valid_loss)
    with pytest.raises(ReplayError, match=r"between\.generator") as caught:
        case.call(FiniteDifference())
    assert isinstance(caught.value.__cause__, OverflowError)
    assert case.problem.watch is None
    with pytest.raises(OverflowError):
        build(Logged(), valid_loss=valid_loss).call(FiniteDifference())


def test_a_call_that_fails_leaves_no_watch():
    case = build()
    case.train_batches = [(case.train_batches[0][0][:, :3], case.train_batches[0][1])]
    with pytest.raises(RuntimeError, match="shapes"):
        case.call(FiniteDifference())
    assert case.problem.watch is None and not case.problem.replayed


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["FiniteDifference", "Unrolled(3)", "EvolutionStrategies"])
def test_what_is_not_finite_is_told_as_such(kind, value):
    case = build()
    case.train_batches = [(inputs * value, targets) for inputs, targets in case.train_batches]
    with pytest.raises(NonFiniteError):
        case.call(ESTIMATORS[kind]())


class Lookahead(mt.inner.SGD):
    """Takes its gradient a way down the first one: two evaluations with one key."""

    def step(self, problem, state, meta, batch, create_graph=False):
        ahead, loss = super().step(problem, state, meta, batch, create_graph)
        points = {n: t if create_graph else t.requires_grad_() for n, t in ahead.parameters.items()}
        ahead = dataclasses.replace(ahead, parameters=points, step=state.step)
        _, gradients, buffers = self.gradients(problem, ahead, meta, batch, create_graph)
        with torch.set_grad_enabled(create_graph):
            after = self.apply(problem, state, meta, gradients)
        return dataclasses.replace(after, buffers=buffers), loss


@pytest.mark.parametrize("drifts", [False, True])
def test_steps_that_evaluate_twice_with_one_key_are_no_drift(drifts):
    case = build(Warmup() if drifts else None)
    case.inner = Lookahead(lr=0.1)
    with pytest.raises(ReplayError) if drifts else contextlib.nullcontext():
        case.call(Unrolled(3))


def test_evaluations_of_another_thread_are_not_taken_for_a_step():
    case = build()
    other = build().train_batches[1]
    state = case.state

    def elsewhere():
        meta = case.problem.meta_parameters()
        case.inner.step(case.problem, state, meta, other)

    seen = []
    real = case.problem.evaluate_valid

    def between(*arguments):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        seen.append(case.problem.watch is not None)
        return real(*arguments)

    case.problem.evaluate_valid = between
    case.call(Unrolled(3), state)
    assert seen == [True]


def noted(seen):
    """A training loss that writes down how it is evaluated."""

    def train_loss(model, meta, batch):
        cuda = torch.backends.cuda
        seen.append(
            (
                torch.is_grad_enabled(),
                cuda.flash_sdp_enabled(),
                cuda.mem_efficient_sdp_enabled(),
                cuda.math_sdp_enabled(),
                model.first.weight.requires_grad,
                meta.log_penalty.requires_grad,
                model.training,
            )
        )
        return penalized(model, meta, batch)

    return train_loss


@pytest.mark.parametrize(
    ("kind", "graph", "fused"),
    [
        ("FiniteDifference", True, True),
        ("Unrolled(1)", True, False),
        ("EvolutionStrategies", True, True),
    ],
)
def test_a_loss_is_repeated_as_it_was_evaluated(kind, graph, fused):
    seen = []
    case = build(train_loss=noted(seen))
    state = case.state
    case.call(ESTIMATORS[kind](), state)
    repeated = seen[-1]
    seen.clear()
    case.call(ESTIMATORS[kind](), state)
    # The second call evaluates nothing anew: all that it lacks is the repetition. The first
    # evaluation of all is another one, since it shows that the loss asks what has a gradient.
    first = seen[0]
    assert repeated == first
    assert first[0] == graph and first[1:3] == (fused, fused) and first[3]


@pytest.mark.parametrize("streamed", [True, False])
def test_the_loss_that_drifts_is_named(streamed):
    with pytest.raises(ReplayError, match=r"^train_loss gave "):
        build(OwnGenerator()).call(EvoGrad(2, 0.1, 0.5, streamed=streamed))
    with pytest.raises(ReplayError, match=r"^train_loss gave "):
        build(OwnGenerator()).call(GuidedEvoGrad(0.1, 0.5))


def test_another_thread_is_not_watched_where_one_loss_is_repeated():
    case, calls = build(), []
    state, real = case.state, case.problem.evaluate_valid
    meta = case.problem.meta_parameters()

    def elsewhere():
        # A loss of the same problem that depends on the count of its evaluations.
        case.problem.evaluate_train(state.parameters, meta, state.buffers, case.train_batches[1], 7)
        calls.append(case.problem.watch._counts["train_loss"])

    def between(*arguments):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return real(*arguments)

    case.problem.evaluate_valid = between
    case.call(FiniteDifference(), state)
    assert calls and calls[0] <= 1


def test_what_is_kept_for_a_second_evaluation_holds_no_graph():
    root = torch.tensor(2.0, requires_grad=True)
    kept = replay_check._leaves({"moved": root * 3, "fixed": torch.tensor(1.0)})
    assert [(t.is_leaf, t.requires_grad, t.item()) for t in kept.values()] == [
        (True, True, 6.0),
        (True, False, 1.0),
    ]
