"""The one-step hypergradient by first derivatives, the outer gradient adapted to the optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

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
from metatoolkit.hypergradients.central_difference import CentralDifference
from metatoolkit.hypergradients.custom_functions import observable
from metatoolkit.hypergradients.detached import HeldConstants
from metatoolkit.hypergradients.difference_radius import Slopes, rounding_unit
from metatoolkit.hypergradients.one_step import OneStep
from metatoolkit.hypergradients.products import Adjoint, loss_gradient, vector_jacobian_product
from metatoolkit.hypergradients.recording import recording
from metatoolkit.hypergradients.replaying import replaying
from metatoolkit.hypergradients.trajectory import finite_outer_gradient
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_own
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors, require_grad
from metatoolkit.stateless.graphs import unreached_error
from metatoolkit.stateless.loss_values import refuse_sparse
from metatoolkit.stateless.traced_flags import number

_AMPLIFIED = 1000.0


class AdaptedDifference(Estimator):
    """What estimators share that take one mixed second derivative by a central difference.

    Args:
        radius: Norm of the perturbation ε v̂; ``None`` chooses it by the rounding unit and the
            slopes of the losses.

    Raises:
        ConfigurationError: The radius is not above 0.

    Attributes:
        lookahead: Whether the outer gradient is taken after the inner step or before it.
    """

    lookahead: ClassVar[bool]
    complex_parameters = False
    amplifies_rounding = True

    def __init__(self, radius: float | None = None) -> None:
        if radius is not None and not 0 < radius < float("inf"):
            raise ConfigurationError(f"radius is {radius}; a number above 0 is needed, or None.")
        self.radius = radius

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return ∂L/∂λ + vᵀ ∂θ⁺/∂λ with first derivatives alone; see the class.

        Raises:
            UnsupportedError: The step is no update by the gradient, or a difference of values
                cannot follow the loss.
            PrecisionError: Rounding leaves nothing of the difference.
        """
        (batch,) = train_batches
        return adapted_hypergradient(
            problem, inner, state, batch, valid_batch, self.radius, self.lookahead
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
        """Return the objective of :class:`OneStep`, which is the limit for a small radius."""
        reference = OneStep(self.lookahead)
        return reference.objective(problem, inner, state, train_batches, valid_batch, meta)


@observable()
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
        UnsupportedError: The inner learner's step is no update by the gradient of the training
            loss, or the loss is one that a difference of values cannot follow.
        PrecisionError: Rounding leaves nothing of the difference.
    """
    _refuse_own_step(inner)
    refuse_initial_state(problem, state, "a finite difference", "holds θ before the step")
    meta = problem.meta_leaves()
    names, leaves = list(meta), list(meta.values())
    held = HeldConstants()
    key = fold_in(state.key, state.step)
    point = {name: tensor.requires_grad_() for name, tensor in state.detach().parameters.items()}
    with torch.enable_grad():
        train_loss, buffers = recording(problem, held).evaluate_train(
            point, meta, state.buffers, batch, key
        )
    found = loss_gradient(train_loss, [*point.values(), *leaves])
    refuse_sparse(found)
    gradients = {n: g for n, g in zip(point, found[: len(point)], strict=True) if g is not None}
    if not gradients:
        raise unreached_error(batch)
    base = (train_loss.detach(), found[len(point) :])
    del train_loss, found
    check_finite(
        {"the training loss": base[0]}
        | {f"the gradient of the training loss in {n!r}": g for n, g in gradients.items()}
    )
    arrived = {name: gradient.detach().requires_grad_() for name, gradient in gradients.items()}
    with torch.enable_grad():
        after = inner.apply(problem, state, meta, arrived)
    final = dataclasses.replace(after, buffers=buffers).detach()
    valid_loss, adjoint, direct = finite_outer_gradient(
        problem, final if lookahead else state, meta, valid_batch
    )
    outer = {
        name: torch.zeros_like(tensor) if v is None else v
        for (name, tensor), v in zip(state.parameters.items(), adjoint, strict=False)
    }
    by_update = vector_jacobian_product(
        list(after.parameters.values()), [*leaves, *arrived.values()], list(outer.values())
    )
    by_optimizer = by_update[: len(leaves)]
    told = {
        name: product
        for name, product in zip(arrived, by_update[len(leaves) :], strict=True)
        if product is not None
    }
    del after, arrived, by_update  # each as large as θ, as what is deleted below
    direction = _direction(told, gradients, outer)
    slopes = Slopes.of(state.parameters, gradients, outer, direction)
    del gradients, outer, adjoint, told

    def evaluate(parameters: Tensors) -> tuple[Tensor, Adjoint]:
        if held.differentiates:
            parameters = require_grad(parameters)
        with torch.enable_grad():
            loss, _ = replaying(problem, held).evaluate_train(
                parameters, meta, state.buffers, batch, key
            )
        return loss.detach(), loss_gradient(loss, leaves)

    rest = list(add_gradients(names, direct, by_optimizer).values())
    own = rounding_unit(state.parameters, meta)
    rounding = max(own, held.rounding)
    difference = CentralDifference(
        evaluate, state.parameters, direction, slopes, base, rest, rounding
    )
    if radius is not None:
        by_loss, details = difference.at(radius)
    else:
        chosen = slopes.radius(number(valid_loss), number(base[0]), rounding)
        by_loss, details = difference.best(chosen, coarse=own > torch.finfo(torch.float32).eps)
    total = add_gradients(names, rest, by_loss)
    passes = 2 + 2 * difference.pairs
    return Hypergradient(
        gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
        valid_loss=valid_loss,
        state=final,
        cost=Cost(forward=passes, backward=passes),
        details=details,
    )


def _refuse_own_step(inner: InnerLearner) -> None:
    for name in ("step", "gradients"):
        if is_own(inner, InnerLearner, name):
            raise UnsupportedError(
                f"{type(inner).__name__} has a `{name}` of its own, so that its step is no update "
                "by the gradient of the training loss; use SGD, Adam, AdamW or RMSprop, or an "
                "estimator that differentiates the step itself, such as OneStep or Unrolled."
            )


def _direction(products: dict[str, Tensor], gradients: Tensors, outer: Tensors) -> Tensors:
    """Return (∂θ⁺/∂g)ᵀ v without the coordinates that are dead.

    Adam amplifies the gradient of a coordinate that never had one by 1/ε. The training loss does
    not depend on it, as a rule, but it would take up the whole radius of the perturbation.

    Args:
        products: (∂θ⁺/∂g)ᵀ v, which is taken out, so that no more than one tensor is there twice.
        gradients: Gradient g of the training loss.
        outer: Gradient v of the outer loss.
    """
    limit = _largest_gain(products, gradients, outer)
    direction = {}
    for name in list(products):
        product = products.pop(name)
        if limit is not None and product.numel():
            gain = _gain(product, outer[name])
            # Products are several times as fast as a selection.
            product = product * ~((gain > limit) & (gradients[name] == 0))
        direction[name] = product
    return direction


def _gain(product: Tensor, outer: Tensor) -> Tensor:
    """Return by how much the update amplifies each coordinate, 0 where the outer loss has none."""
    wide = product.to(torch.promote_types(product.dtype, torch.float32))
    return (wide / outer).abs_().nan_to_num_(0.0, 0.0, 0.0)


def _largest_gain(products: Tensors, gradients: Tensors, outer: Tensors) -> Tensor | None:
    """Return the gain above which coordinates without a gradient are dead, if there are any."""
    rows = []
    for name, product in products.items():
        if product.numel():
            gain = _gain(product, outer[name])
            lives = gradients[name].sign().abs_() * gain.sign()
            gain *= lives
            largest, count = gain.amax(), lives.count_nonzero()
            # The logarithm of 1, since that of 0 is slow.
            gain += 1 - lives
            parts = (largest, gain.log2_().sum(), count)
            rows.append(torch.stack([part.double() for part in parts]))
    if not rows:
        return None
    table = torch.stack(rows)
    count = table[:, 2].sum()
    # Those of an update that is not elementwise are near each other.
    usual = (table[:, 1].sum() / count.clamp_min(1)).exp2()
    limit = torch.maximum(table[:, 0].amax(), _AMPLIFIED * usual)
    return torch.where(count > 0, limit, torch.full_like(limit, torch.inf))
