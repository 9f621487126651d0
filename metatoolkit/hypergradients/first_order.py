"""First-order MAML: the Jacobian of every inner step replaced by the identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.arguments import require_steps
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    add_gradients,
    check_finite,
    fill_gradients,
)
from metatoolkit.hypergradients.products import Adjoint, vector_jacobian_product
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.trajectory import (
    finite_outer_gradient,
    outer_loss,
    roll_out,
    valid_key,
)
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class FirstOrder(Estimator):
    """First-order MAML (Finn et al. 2017, arXiv 1703.03400) over T inner steps.

    With θ_T reached from θ_0 and v the gradient of the outer loss L at θ_T, the estimate is
    ∂L/∂λ + vᵀ ∂θ_0/∂λ: the product of the steps' Jacobians is replaced by the identity, which
    leaves out second derivatives of the training loss and, with them, all that λ does within the
    steps. What remains is λ as the initial state (``initial`` of the problem, at a state of step
    0) and the direct derivative. The error is of the order of T times the learning rate. A
    meta-parameter that acts within the steps alone is an error, never a zero.

    Cost with F one forward pass: (3 T + 3) F. Memory: that of an ordinary training step.

    Args:
        steps: Number of inner steps T.

    Raises:
        ConfigurationError: ``steps`` is below 1.

    Example:
        >>> FirstOrder(steps=5).horizon
        5
    """

    separable = True
    traits = Traits(
        kind="approximate",
        computes="derivative in the initial state, steps taken for the identity",
        assumes="λ as the initial state or in the outer loss; small learning rates",
        passes="(3 T + 3) F",
        memory="graph of one pass",
        paper="Finn et al. 2017, arXiv 1703.03400",
    )

    def __init__(self, steps: int = 1) -> None:
        require_steps(steps)
        self.horizon = steps

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the first-order hypergradient; see the class.

        Raises:
            UnsupportedError: A meta-parameter acts within the inner steps alone.
        """
        meta = problem.meta_leaves()
        final = roll_out(problem, inner, state, meta, train_batches)
        valid_loss, adjoint, direct = finite_outer_gradient(problem, final, meta, valid_batch)
        cotangents = {
            name: v for name, v in zip(final.parameters, adjoint, strict=False) if v is not None
        }
        through = initial_product(problem, state, meta, cotangents)
        total = add_gradients(list(meta), direct, through)
        refuse_inner_meta(problem, inner, final, meta, train_batches[-1], total, "FirstOrder")
        steps = len(train_batches)
        return Hypergradient(
            gradient=fill_gradients(problem, total, "the initial state and valid_loss"),
            valid_loss=valid_loss,
            state=final,
            cost=Cost(forward=steps + 1, backward=steps + 1),
        )

    @override
    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Return the outer loss at θ_T moved by as much as λ moves θ_0."""
        present = problem.meta_parameters()
        final = roll_out(problem, inner, state, present, train_batches)
        moves = initial_moves(problem, inner, state, meta)
        parameters = {name: tensor + moves[name] for name, tensor in final.parameters.items()}
        moved = dataclasses.replace(final, parameters=parameters)
        return outer_loss(problem, moved, meta, valid_batch)


def initial_product(
    problem: BilevelProblem, state: InnerState, meta: Tensors, cotangents: Tensors
) -> Adjoint:
    """Return vᵀ ∂θ_0/∂λ, ``None`` where nothing flows. Cost: no pass.

    Args:
        problem: Problem whose ``initial`` sets θ_0.
        state: State that a call starts from; λ sets it where its step is 0.
        meta: Meta-parameters by name, leaves that require a gradient.
        cotangents: v by parameter name; missing ones are zeros.
    """
    if not problem.begins_with_meta(state):
        return [None] * len(meta)
    with torch.enable_grad():
        given = problem.initial_parameters(meta)
    vectors = [cotangents.get(name) for name in given]
    return vector_jacobian_product(list(given.values()), list(meta.values()), vectors)


def initial_moves(
    problem: BilevelProblem, inner: InnerLearner, state: InnerState, meta: Tensors
) -> Tensors:
    """Return by how much other meta-parameters move θ_0, by parameter name. Cost: no pass.

    Args:
        problem: Problem whose ``initial`` sets θ_0.
        inner: Inner learner.
        state: State that a call starts from.
        meta: The other meta-parameters by name.
    """
    with torch.no_grad():
        one = inner.enter(problem, state, meta).parameters
        other = inner.enter(problem, state, problem.meta_parameters()).parameters
        return {name: one[name] - other[name] for name in one}


def pulled_back(
    problem: BilevelProblem,
    inner: InnerLearner,
    states: tuple[InnerState, InnerState],
    meta: Tensors,
    cotangents: Tensors,
    batches: tuple[Any, Any],
    who: str,
) -> tuple[Tensors, Tensor]:
    """Return vᵀ ∂θ_0/∂λ for a v that sees no outer loss, and that loss at θ_T, to be reported.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        states: The states with θ_0, detached, and with θ_T.
        meta: Meta-parameters by name, leaves that require a gradient.
        cotangents: v by parameter name.
        batches: The last training batch, and the validation batch. Cost: 1 F, and up to 3 F for
            a check.
        who: Name of the estimator.

    Returns:
        The gradient, and the loss, both detached.

    Raises:
        UnsupportedError: λ does not set this state, or a part of it acts elsewhere alone.
        NonFiniteError: A result is NaN or infinite.
    """
    state, final = states
    train_batch, valid_batch = batches
    with torch.enable_grad():
        valid_loss = problem.evaluate_valid(
            final.parameters, meta, final.buffers, valid_batch, valid_key(final)
        )
    check_finite({"the validation loss": valid_loss})
    require_initial_meta(problem, state, who)
    total = dict(zip(meta, initial_product(problem, state, meta, cotangents), strict=True))
    refuse_inner_meta(problem, inner, final, meta, train_batch, total, who, [valid_loss])
    gradient = fill_gradients(problem, total, "the values that initial returns")
    return gradient, valid_loss.detach()


def require_initial_meta(problem: BilevelProblem, state: InnerState, who: str) -> None:
    """Raise unless λ sets the initial state and a call starts there.

    Args:
        problem: The bilevel problem.
        state: State that the call starts from.
        who: Name of the estimator.

    Raises:
        UnsupportedError: λ sets no parameters of this state.
    """
    if not problem.begins_with_meta(state):
        given = "has no initial" if problem.initial is None else f"is at step {state.step}"
        raise UnsupportedError(
            f"{who} moves an initial state that λ sets, but the problem {given}: pass "
            "initial=Initialization.values with meta=Initialization(model) to BilevelProblem, "
            "and start from inner.init(problem)."
        )


def refuse_inner_meta(
    problem: BilevelProblem,
    inner: InnerLearner,
    state: InnerState,
    meta: Tensors,
    batch: Any,
    gradients: dict[str, Tensor | None],
    who: str,
    also: Sequence[Tensor] = (),
) -> None:
    """Raise where a meta-parameter without a gradient acts within an inner step.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: State at which a step is looked at. Cost: at most 3 F, and nothing where every
            meta-parameter has a gradient.
        meta: Meta-parameters by name, leaves that require a gradient.
        batch: Training batch.
        gradients: The estimate by name, ``None`` where nothing flows.
        who: Name of the estimator, for the message.
        also: What else such a meta-parameter must not act on.

    Raises:
        UnsupportedError: There is such a meta-parameter.
        NonFiniteError: A part of the estimate is not finite.
    """
    check_finite(
        {f"the hypergradient of {n!r}": g for n, g in gradients.items() if g is not None}
        or {"the hypergradient": torch.zeros(())}
    )
    missing = [name for name, gradient in gradients.items() if gradient is None]
    if not missing:
        return
    leaves = [meta[name] for name in missing]
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.parameters.items()}
    with torch.enable_grad():
        key = fold_in(state.key, state.step)
        loss, _ = problem.evaluate_train(state.parameters, meta, state.buffers, batch, key)
        after = inner.apply(problem, state, meta, zeros)
    outputs = [loss, *after.tensors(), *also]
    vectors = [torch.zeros_like(tensor) for tensor in outputs]
    found = vector_jacobian_product(outputs, leaves, vectors)
    acting = [name for name, part in zip(missing, found, strict=True) if part is not None]
    if acting:
        raise UnsupportedError(
            f"meta-parameters ({', '.join(acting[:5])}) act where {who} does not differentiate, "
            "within the inner steps or, for Reptile and Leap, on the outer loss; use Unrolled, "
            "OneStep, SAMA or EvoGrad for these."
        )
