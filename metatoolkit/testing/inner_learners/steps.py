"""A step is a pure map from a state to the next, for parameters of any shape and type."""

from __future__ import annotations

import copy
import math

import torch

from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.hyperparameters import checked_groups
from metatoolkit.randomness import fold_in, seeded
from metatoolkit.testing.conformance import Make, Suite
from metatoolkit.testing.estimators.precision import converted
from metatoolkit.testing.expectations import Inapplicable, expect, expect_close, expect_equal
from metatoolkit.testing.inner_learners.calls import PROBLEMS, build, take
from metatoolkit.testing.snapshots import expect_unchanged, hold_gradients, snapshot

SUITE: Suite[InnerLearner] = Suite("inner learner", InnerLearner)


@SUITE.check(problem=PROBLEMS)
def the_first_state_is_a_copy_and_has_a_key_for_each_seed(
    make: Make[InnerLearner], problem: str
) -> None:
    """It holds the model's values, or those that λ gives, in tensors of its own."""
    instance = build(problem, make)
    given = instance.problem
    one, again, other = (instance.inner.init(given, seed) for seed in (0, 0, 1))
    expect(one.key == again.key, "the same key for the same seed", (one.key, again.key))
    expect(one.key != other.key, "another key for another seed", one.key)
    expect(one.step == 0 and not one.missed, "no steps in the first state", one.step)
    live = dict(given.model.named_parameters())
    meta = given.meta_parameters()
    first = given.parameters() | given.initial_parameters(meta)
    expect(set(one.parameters) == set(given.parameter_names), "all parameters", one.parameters)
    for name, tensor in one.parameters.items():
        expect_equal(f"the first value of {name!r}", tensor, first[name].detach())
        own = tensor.numel() == 0 or tensor.data_ptr() != live[name].data_ptr()
        expect(own, f"a copy of {name!r}", "the model's own tensor")
    graphs = [tensor for tensor in one.tensors() if tensor.requires_grad]
    expect(not graphs, "a detached state", f"{len(graphs)} tensors that require a gradient")
    for slot, tensors in one.optimizer.items():
        for name, tensor in tensors.items():
            shapes = ((), tuple(one.parameters[name].shape))
            shape = tuple(tensor.shape)
            expect(shape in shapes, f"slot {slot!r} of {name!r} as the parameter or 0-d", shape)


@SUITE.check(problem=PROBLEMS)
def a_step_moves_nothing_that_was_given(make: Make[InnerLearner], problem: str) -> None:
    """Problem, batch, state, ``.grad`` and global random state stay; a new state comes back."""
    instance = build(problem, make)
    given, inner = instance.problem, instance.inner
    state = take(instance, instance.state, instance.batches(1))
    meta, batch = given.meta_parameters(), instance.train_batches[0]
    key = fold_in(state.key, state.step)
    leaves = {name: t.clone().requires_grad_() for name, t in state.parameters.items()}
    with seeded(9):
        hold_gradients(given)
        before = snapshot(given, state, batch)
        after, loss = inner.step(given, state, meta, batch)
        expect_unchanged(before, given, state, batch)
        wanted, buffers = given.evaluate_train(leaves, meta, state.buffers, batch, key)
    expect_close("the loss before the step", loss, wanted.detach(), 1e-12, 0.0)
    expect(not loss.requires_grad, "a detached loss", "one with a graph")
    expect(after.step == state.step + 1, f"step {state.step + 1}", after.step)
    expect(after.key == state.key, "the key of the state given", after.key)
    for name, buffer in after.buffers.items():
        expect_close(f"buffer {name!r} after the step", buffer, buffers[name], 1e-12, 1e-14)
    graphs = [tensor for tensor in after.tensors() if tensor.requires_grad]
    expect(not graphs, "a detached state", f"{len(graphs)} tensors that require a gradient")
    moved = any(
        not torch.equal(after.parameters[name], tensor) for name, tensor in state.parameters.items()
    )
    expect(moved, "other parameters after a step", "the same ones")


@SUITE.check(problem=PROBLEMS)
def the_same_step_again_is_the_same(make: Make[InnerLearner], problem: str) -> None:
    """What is random is drawn from the key of the state, with and without gradients around it."""
    instance = build(problem, make)
    state = instance.state
    with seeded(1):
        one = take(instance, state, instance.batches(2))
    with seeded(2), torch.no_grad():
        other = take(instance, state, instance.batches(2))
    for found, wanted in zip(other.tensors(), one.tensors(), strict=True):
        expect_equal("a tensor of the state under another global seed", found, wanted)


@SUITE.check()
def a_parameter_that_a_batch_does_not_reach_is_skipped(make: Make[InnerLearner]) -> None:
    """Its value, its optimizer state and its own number of steps stay."""
    instance = build("heads", make)
    state = instance.state
    for batch in ("first", "first", "last"):
        other = "last" if batch == "first" else "first"
        after = take(instance, state, [batch])
        expect_equal(f"{other!r}, skipped", after.parameters[other], state.parameters[other])
        for slot, tensors in after.optimizer.items():
            if other in tensors:
                what = f"slot {slot!r} of {other!r}, skipped"
                expect_equal(what, tensors[other], state.optimizer[slot][other])
        missed = after.missed.get(other, 0)
        wanted = state.missed.get(other, 0) + 1
        expect(missed == wanted, f"{wanted} steps that {other!r} missed", missed)
        same = torch.equal(after.parameters[batch], state.parameters[batch])
        expect(not same, f"{batch!r} to move", "the same value")
        state = after
    steps = {name: state.steps_of(name) for name in ("first", "last")}
    expect(steps == {"first": 2, "last": 1}, "2 steps of 'first', 1 of 'last'", steps)


@SUITE.check()
def parameters_may_have_any_shape(make: Make[InnerLearner]) -> None:
    """Numbers, vectors, matrices, kernels and empty tensors keep their shapes."""
    instance = build("shapes", make)
    state = instance.state
    after = take(instance, state, instance.batches(3))
    for name, tensor in after.parameters.items():
        shape, wanted = tuple(tensor.shape), tuple(state.parameters[name].shape)
        expect(shape == wanted, f"shape {wanted} of {name!r}", shape)
        expect(bool(torch.isfinite(tensor).all()), f"finite values of {name!r}", tensor)


@SUITE.check(problem=("tied", "matrices"), dtype=(torch.float32, torch.bfloat16))
def a_step_keeps_the_type_of_the_parameters(
    make: Make[InnerLearner], problem: str, dtype: torch.dtype
) -> None:
    """In float32 and bfloat16 nothing turns into another type; float32 is near float64."""
    exact = build(problem, make)
    wanted = take(exact, exact.state, exact.batches(3))
    low = converted(build(problem, make), dtype, dtype)
    found = take(low, low.state, low.batches(3))
    for name, tensor in found.parameters.items():
        expect(tensor.dtype == dtype, f"{name!r} in {dtype}", tensor.dtype)
        if dtype == torch.float32:
            what = f"{name!r} after three steps in float32"
            expect_close(what, tensor.double(), wanted.parameters[name], 1e-3, 1e-4)
        else:
            expect(bool(torch.isfinite(tensor).all()), f"finite values of {name!r}", tensor)
    kinds = {slot: {t.dtype for t in own.values()} for slot, own in found.optimizer.items()}
    start = low.state.optimizer
    for slot, types in kinds.items():
        first = {tensor.dtype for tensor in start[slot].values()}
        expect(types == first, f"slot {slot!r} in {first}, as in the first state", types)


@SUITE.check()
def a_group_has_values_of_its_own(make: Make[InnerLearner]) -> None:
    """A parameter in a group moves as if its values were those of all, and others as without it."""
    instance = build("tied", make)
    learner = instance.inner
    values = learner.hyperparameters.items()
    numbers = {n: v for n, v in values if isinstance(v, float) and 0 < v < math.inf}
    chosen = "lr" if "lr" in numbers else next(iter(numbers), None)
    if chosen is None or learner.groups or not _reads(learner):
        raise Inapplicable("no hyper-parameter of its own that groups could set")
    half = numbers[chosen] / 2
    for_all, grouped = copy.deepcopy(learner), copy.deepcopy(learner)
    for_all.hyperparameters = learner.hyperparameters | {chosen: half}
    group = [{"params": ["decoder.bias"], chosen: half}]
    grouped.groups = checked_groups(
        group, learner.hyperparameters, learner.below_one, learner.flags
    )
    # The first step alone: later ones read parameters that others moved.
    first = instance.batches(1)
    instance.inner = for_all
    changed = take(instance, instance.state, first)
    instance.inner = grouped
    found = take(instance, instance.state, first)
    instance.inner = learner
    plain = take(instance, instance.state, first)
    one, two = (state.parameters["decoder.bias"] for state in (plain, changed))
    expect(chosen != "lr" or not torch.equal(one, two), "half the lr to change a step", "no change")
    for name, tensor in found.parameters.items():
        wanted = changed if name == "decoder.bias" else plain
        what = f"{name!r} with a group for decoder.bias that halves {chosen}"
        expect_close(what, tensor, wanted.parameters[name], 1e-12, 1e-14)


def _reads(learner: InnerLearner) -> bool:
    """Return whether the learner itself reads its hyper-parameters, once in a step.

    Where a step is several, the later ones read parameters that others moved.
    """
    own = type(learner)
    return own.apply is InnerLearner.apply and own.step is InnerLearner.step
