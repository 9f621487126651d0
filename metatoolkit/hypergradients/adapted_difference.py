"""The one-step hypergradient by first derivatives, the outer gradient adapted to the optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    add_gradients,
    check_finite,
    fill_gradients,
    refuse_initial_state,
)
from metatoolkit.hypergradients.detached import RecordDetached, ReplayDetached
from metatoolkit.hypergradients.one_step import OneStep
from metatoolkit.hypergradients.products import Adjoint, loss_gradient, vector_jacobian_product
from metatoolkit.hypergradients.trajectory import finite_outer_gradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors


class AdaptedDifference(Estimator):
    """What estimators share that take one mixed second derivative by a central difference.

    Args:
        radius: Norm of the perturbation ε v̂; ``None`` for the cube root of the rounding unit
            times max(1, ‖θ‖).

    Raises:
        ConfigurationError: The radius is not above 0.

    Attributes:
        lookahead: Whether the outer gradient is taken after the inner step or before it.
    """

    lookahead: ClassVar[bool]
    complex_parameters = False

    def __init__(self, radius: float | None = None) -> None:
        if radius is not None and not 0 < radius < float("inf"):
            raise ConfigurationError(f"radius is {radius}; a number above 0 is needed, or None.")
        self.radius = radius

    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return ∂L/∂λ + vᵀ ∂θ⁺/∂λ with first derivatives alone; see the class.

        Args:
            problem: The bilevel problem.
            inner: Inner learner that takes the step.
            state: Detached state to start from.
            train_batches: One training batch.
            valid_batch: Batch for the outer loss.

        Raises:
            UnsupportedError: The inner learner does not tell ∂θ⁺/∂g.
        """
        (batch,) = train_batches
        return adapted_hypergradient(
            problem, inner, state, batch, valid_batch, self.radius, self.lookahead
        )

    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Return the objective of :class:`OneStep`, which is the limit for a small radius.

        Args:
            problem: The bilevel problem.
            inner: Inner learner.
            state: State to start from.
            train_batches: One training batch.
            valid_batch: Batch for the outer loss.
            meta: Meta-parameters by name.
        """
        reference = OneStep(self.lookahead)
        return reference.objective(problem, inner, state, train_batches, valid_batch, meta)


def adapted_hypergradient(
    problem: BilevelProblem,
    inner: InnerLearner,
    state: InnerState,
    batch: Any,
    valid_batch: Any,
    radius: float | None,
    lookahead: bool,
) -> Hypergradient:
    """Return ∂L/∂λ + vᵀ ∂θ⁺/∂λ with first derivatives alone.

    The outer gradient v is adapted to the optimizer, v̂ = ∂θ⁺/∂g · v, and the mixed second
    derivative along v̂ taken by a central difference.

    Args:
        problem: The bilevel problem.
        inner: Inner learner that takes the step.
        state: Detached state before the step.
        batch: Training batch.
        valid_batch: Batch for the outer loss.
        radius: Norm of the perturbation; see :class:`AdaptedDifference`.
        lookahead: Whether v is taken after the step or before it.

    Raises:
        UnsupportedError: The inner learner does not tell ∂θ⁺/∂g.
    """
    if type(inner).step is not InnerLearner.step:
        raise UnsupportedError(
            f"{type(inner).__name__} does not take its step from one gradient, so that it is not "
            "known how to adapt the outer gradient to it; use SGD, Adam, AdamW or RMSprop, or an "
            "estimator that differentiates the step itself, such as OneStep or Unrolled."
        )
    refuse_initial_state(problem, state, "a finite difference", "holds θ before the step")
    meta = problem.meta_leaves()
    names, leaves = list(meta), list(meta.values())
    constants = {name: tensor.detach() for name, tensor in meta.items()}
    point = {name: tensor.requires_grad_() for name, tensor in state.detach().parameters.items()}
    entry = dataclasses.replace(state, parameters=point)
    with RecordDetached() as detached:
        train_loss, gradients, buffers = inner.gradients(problem, entry, constants, batch)
    check_finite(
        {"the training loss": train_loss.detach()}
        | {f"the gradient of the training loss in {n!r}": g for n, g in gradients.items()}
    )
    sensitivity = inner.gradient_sensitivity(problem, state, constants, gradients)
    with torch.enable_grad():
        after = inner.apply(problem, state, meta, gradients)
    final = dataclasses.replace(after, buffers=buffers).detach()
    valid_loss, adjoint, direct = finite_outer_gradient(
        problem, final if lookahead else state, meta, valid_batch
    )
    outer = {
        name: torch.zeros_like(tensor) if v is None else v
        for (name, tensor), v in zip(state.parameters.items(), adjoint, strict=False)
    }
    direction = _direction(sensitivity, gradients, outer)
    slope = _dot(gradients, direction)
    scale = _norm(gradients) * _norm(direction)
    by_optimizer = vector_jacobian_product(
        list(after.parameters.values()), leaves, [outer[name] for name in after.parameters]
    )
    del gradients, sensitivity, outer, adjoint, after  # each as large as θ
    by_loss, rise = _mixed_product(problem, state, meta, batch, direction, radius, detached.values)
    total = add_gradients(names, direct, by_optimizer, by_loss)
    return Hypergradient(
        gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
        valid_loss=valid_loss,
        state=final,
        cost=Cost(forward=4, backward=4),
        details={"slope_error": torch.where(scale > 0, (rise - slope).abs() / scale, 0.0)},
    )


def _direction(sensitivity: Tensors, gradients: Tensors, outer: Tensors) -> Tensors:
    """Return ∂θ⁺/∂g · v without the coordinates that are dead.

    Adam amplifies the gradient of a coordinate that never had one by 1/ε. The training loss does
    not depend on it, as a rule, but it would take up the whole radius of the perturbation.
    """
    if not sensitivity:
        return {}
    live = torch.stack(
        [
            torch.where(gradients[name] != 0, diagonal.abs(), 0.0).amax().double()
            if diagonal.numel()
            else diagonal.new_zeros((), dtype=torch.float64)
            for name, diagonal in sensitivity.items()
        ]
    ).amax()
    limit = torch.where(live > 0, live, torch.full_like(live, torch.inf))
    return {
        name: torch.where(
            (gradients[name] == 0) & (diagonal.abs() > limit), 0.0, diagonal * outer[name]
        )
        for name, diagonal in sensitivity.items()
    }


def _mixed_product(
    problem: BilevelProblem,
    state: InnerState,
    meta: Tensors,
    batch: Any,
    direction: Tensors,
    radius: float | None,
    detached: list[Tensor],
) -> tuple[Adjoint, Tensor]:
    """Return ∂²L_T/∂λ∂θ and ∂L_T/∂θ times a direction by a central difference, common masks."""
    parameters = state.parameters
    length = _norm(direction)
    if radius is None:
        # The difference is one of gradients in λ.
        dtypes = {tensor.dtype for tensors in (parameters, meta) for tensor in tensors.values()}
        kinds = {tensor.device.type for tensor in parameters.values()}
        dtypes |= {
            torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)
        }
        rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
        distance = rounding ** (1 / 3) * _norm(parameters).clamp_min(1.0)
    else:
        distance = torch.full_like(length, radius)
    # Along a direction of zero both passes are the same, and their difference is zero.
    epsilon = torch.where(length > 0, distance / length, torch.ones_like(length))
    leaves = list(meta.values())
    losses, sides = [], []
    for sign in (1.0, -1.0):
        shifted = parameters | {
            name: parameters[name] + (sign * epsilon * along).to(parameters[name].dtype)
            for name, along in direction.items()
        }
        with torch.enable_grad(), ReplayDetached(detached):
            loss, _ = problem.evaluate_train(
                shifted, meta, state.buffers, batch, fold_in(state.key, state.step)
            )
        losses.append(loss.detach().to(epsilon.dtype))
        sides.append(loss_gradient(loss, leaves))
    product: Adjoint = [
        None if up is None or down is None else ((up - down) / (2 * epsilon)).to(up.dtype)
        for up, down in zip(*sides, strict=True)
    ]
    return product, (losses[0] - losses[1]) / (2 * epsilon)


def _dot(one: Tensors, other: Tensors) -> Tensor:
    """Return the inner product over all entries, in float32 or more."""
    parts = [
        (tensor * other[name]).sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
        for name, tensor in one.items()
    ]
    return torch.stack(parts or [torch.zeros(())]).sum()


def _norm(tensors: Tensors) -> Tensor:
    """Return the norm of all entries, in float32 or more."""
    parts = [
        torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32))
        for t in tensors.values()
    ]
    return torch.linalg.vector_norm(torch.stack(parts or [torch.zeros(())]))
