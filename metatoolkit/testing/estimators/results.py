"""What a hypergradient is, and what its call leaves alone."""

from __future__ import annotations

import torch

from metatoolkit.diagnostics.check import check_hypergradient
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.trajectory import outer_loss
from metatoolkit.randomness import fold_in, seeded
from metatoolkit.testing import bank
from metatoolkit.testing.conformance import Make, Suite
from metatoolkit.testing.estimators.calls import build, call, unseen
from metatoolkit.testing.expectations import Inapplicable, expect, expect_close, expect_equal
from metatoolkit.testing.snapshots import expect_unchanged, hold_gradients, snapshot

SUITE: Suite[Estimator] = Suite("estimator", Estimator)

_DRAWS = 100


@SUITE.check(problem=bank.CONFORMANCE)
def result_has_the_form_of_the_meta_parameters(make: Make[Estimator], problem: str) -> None:
    """Names, shapes and types are those of λ, nothing carries a graph, and passes are counted."""
    instance = build(problem)
    result = call(instance, make(), problem)
    wanted = {n: p for n, p in instance.problem.meta.named_parameters() if p.requires_grad}
    expect(
        result.gradient.keys() == wanted.keys(),
        f"gradients of {', '.join(wanted)}",
        ", ".join(result.gradient) or "none",
    )
    for key, parameter in wanted.items():
        gradient = result.gradient[key]
        form, own = ((tuple(t.shape), t.dtype) for t in (gradient, parameter))
        expect(form == own, f"shape and type {own} of the gradient of {key!r}", form)
        expect(not gradient.requires_grad, f"a detached gradient of {key!r}", "one with a graph")
    loss = result.valid_loss
    expect(loss.dim() == 0, "a scalar valid_loss", f"shape {tuple(loss.shape)}")
    expect(not loss.requires_grad, "a detached valid_loss", "one with a graph")
    graphs = [tensor for tensor in result.state.tensors() if tensor.requires_grad]
    expect(not graphs, "a detached state", f"{len(graphs)} tensors that require a gradient")
    expect(result.cost.forward > 0, "a cost with forward passes", result.cost)


@SUITE.check(problem=("ridge", "tied"))
def gradient_is_the_derivative_of_the_objective(make: Make[Estimator], problem: str) -> None:
    """Finite differences of the objective do not contradict it; see check_hypergradient."""
    estimator = make()
    if estimator.traits.kind == "iterative":
        raise Inapplicable("an iterative estimator tends to it at an inner optimum alone")
    if estimator.on_average:
        raise Inapplicable("a call is right on average alone")
    instance = build(problem)
    call(instance, make(), problem)
    given, inner, state, batches, valid_batch = instance.arguments(estimator.horizon)
    found = check_hypergradient(given, inner, estimator, batches, valid_batch, state, coordinates=8)
    wanted = f"the derivative of {type(estimator).__name__}.objective"
    if estimator.traits.kind == "exact":
        wanted = "the derivative of the outer loss after the inner steps"
    elif estimator.traits.kind == "stochastic":
        wanted += ", for `on_average` does not say that only the mean of calls is"
    expect(found.verdict != "differs", wanted, found)


@SUITE.check()
def the_mean_of_calls_is_the_derivative_of_the_objective(make: Make[Estimator]) -> None:
    """Its part along finite differences is 1, to 0.2 and four standard errors of 100 calls."""
    if not make().on_average:
        raise Inapplicable("each call by itself is right")
    instance = bank.ridge()
    state, horizon = instance.state, make().horizon
    problem, inner, _, batches, valid = instance.arguments(horizon, state)
    slope = check_hypergradient(problem, inner, make(), batches, valid, state).reference
    keys = [fold_in(state.key, draw) for draw in range(_DRAWS)]
    calls = [instance.call(make(), state.replaced(key=key)).gradient["value"] for key in keys]
    shares = torch.stack(calls) @ slope / slope.square().sum()
    mean, error = float(shares.mean()), float(shares.std()) / _DRAWS**0.5
    near = abs(mean - 1) <= 0.2 + 4 * error
    expect(near, "a mean of 1 times the derivative", f"{mean:.3g} ± {error:.2g} times it")


@SUITE.check()
def the_outer_loss_is_that_of_a_state_on_the_way(make: Make[Estimator]) -> None:
    """An exact estimator tells the outer loss after the steps, others one of this trajectory."""
    instance, estimator = bank.ridge(), make()
    told = float(call(instance, estimator).valid_loss)
    problem, inner, state, batches, valid_batch = instance.arguments(max(estimator.horizon, 5))
    meta = problem.meta_parameters()
    losses = [float(outer_loss(problem, state, meta, valid_batch))]
    for batch in batches:
        state, _ = inner.step(problem, state, meta, batch)
        losses.append(float(outer_loss(problem, state, meta, valid_batch)))
    if estimator.traits.kind == "exact":
        wanted = losses[estimator.horizon]
        same = abs(told - wanted) <= 1e-9 * abs(wanted)
        expect(same, f"the outer loss {wanted:.6g} after the steps", f"{told:.6g}")
    # Perturbed points have losses beside those of the steps.
    low, high = 0.9 * min(losses), 1.1 * max(losses)
    expect(low <= told <= high, f"an outer loss from {low:.3g} to {high:.3g}", f"{told:.6g}")


@SUITE.check(problem=bank.CONFORMANCE)
def leaves_everything_as_it_was(make: Make[Estimator], problem: str) -> None:
    """Model, buffers, modes, hooks, batches, the state given and global random states stay."""
    instance, estimator = build(problem), make()
    state = instance.state
    arguments = instance.arguments(estimator.horizon, state)
    data = arguments[3:]
    with seeded(9), unseen(problem):
        before = snapshot(instance.problem, state, data)
        estimator(*arguments)
        expect_unchanged(before, instance.problem, state, data)


@SUITE.check(problem=bank.CONFORMANCE)
def gradients_that_a_user_holds_stay(make: Make[Estimator], problem: str) -> None:
    """No ``.grad`` field is written, and none is emptied."""
    instance = build(problem)
    held = hold_gradients(instance.problem)
    call(instance, make(), problem)
    for parameter, gradient in held.items():
        same = parameter.grad is gradient and bool((gradient == 7).all())
        expect(same, ".grad to stay 7 everywhere", parameter.grad)


@SUITE.check(problem=bank.CONFORMANCE)
def the_same_state_gives_the_same_result_whatever_the_global_seed(
    make: Make[Estimator], problem: str
) -> None:
    """What is random is drawn from the key of the state."""
    instance = build(problem)
    state = instance.state
    results = []
    for seed in (1, 2):
        with seeded(seed):
            results.append(call(instance, make(), problem, state))
    for key, gradient in results[0].gradient.items():
        what = f"the gradient of {key!r} under another global seed"
        expect_equal(what, results[1].gradient[key], gradient)


@SUITE.check()
def running_statistics_move_in_real_steps_alone(make: Make[Estimator]) -> None:
    """BatchNorm counts the inner steps that the returned state took, and no other pass."""
    instance = bank.small_net()
    state = instance.state
    result = call(instance, make(), "small_net", state)
    taken = result.state.step - state.step
    for key, buffer in result.state.buffers.items():
        if taken == 0:
            expect_equal(f"buffer {key!r} without a step", buffer, state.buffers[key])
        elif "num_batches" in key:
            expect(int(buffer) == taken, f"{key!r} to count {taken} steps", int(buffer))


@SUITE.check()
def the_state_is_what_the_inner_learner_reaches(make: Make[Estimator]) -> None:
    """The state returned is that after some of the inner steps, none of them changed."""
    instance = bank.small_net()
    estimator = make()
    state = instance.state
    result = call(instance, estimator, "small_net", state)
    taken = result.state.step - state.step
    horizon = estimator.horizon
    expect(0 <= taken <= horizon, f"a state 0 to {horizon} steps after the one given", taken)
    wanted, meta = state, instance.problem.meta_parameters()
    for batch in instance.batches(taken):
        wanted, _ = instance.inner.step(instance.problem, wanted, meta, batch)
    for one, other in zip(result.state.tensors(), wanted.tensors(), strict=True):
        expect_close(f"a tensor of the state after {taken} steps", one, other, 1e-12, 1e-14)


@SUITE.check()
def a_part_of_meta_that_the_training_loss_ignores_has_its_direct_gradient(
    make: Make[Estimator],
) -> None:
    """λ that the outer loss reads alone has its derivative there, and what nothing reads zero."""
    instance, estimator = bank.tied(), make()
    if not estimator.holds_constants:
        raise Inapplicable("evaluations alone put noise into every coordinate")
    gradient = call(instance, estimator).gradient
    wanted = dict(instance.problem.meta.named_parameters())["direct"].detach().cos()
    expect_close("the gradient of 'direct'", gradient["direct"], wanted, 1e-9, 1e-12)
    unused = gradient["unused"]
    expect(bool((unused == 0).all()), "zeros for 'unused', which no loss reads", unused)
    expect("frozen" not in gradient, "no gradient of 'frozen', which is frozen", "one")
