"""The adjoint of one inner step in mixed mode: forward over reverse."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import mse_loss
from typing_extensions import override

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.hypergradients.autograd_errors import forward_mode_error
from metatoolkit.hypergradients.base import add_gradients
from metatoolkit.hypergradients.products import (
    Adjoint,
    add_adjoints,
    loss_gradient,
    vector_jacobian_product,
)
from metatoolkit.hypergradients.step_graph import DifferentiatedStep
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_own
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.exchange import Again


class _NoTangents(Again):
    """Where no gradient is recorded, no tangent is carried either, as detach does it."""

    @override
    def again(self) -> type[_NoTangents]:
        return _NoTangents

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled():
            if func is mse_loss:
                # The derivative of its backward pass fails where either has no tangent.
                return _mse_loss_of_duals(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))
        with forward_ad._set_fwd_grad_enabled(False):
            return func(*args, **(kwargs or {}))


def _mse_loss_of_duals(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return mse_loss(_with_tangent(input), _with_tangent(target), *args, **kwargs)


def _with_tangent(tensor: Tensor) -> Tensor:
    """Return a tensor with a tangent, of zeros where it has none."""
    if forward_ad.unpack_dual(tensor).tangent is not None:
        return tensor
    return forward_ad.make_dual(tensor, torch.zeros_like(tensor))


@contextlib.contextmanager
def forward_over_reverse() -> Iterator[None]:
    """Set up forward-mode differentiation of gradients for the body.

    Raises:
        UnsupportedError: An operation of the body has no forward mode.
    """
    try:
        with warnings.catch_warnings(), double_backward_kernels(), forward_ad.dual_level():
            warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
            yield
    except RuntimeError as error:
        missing = forward_mode_error(error)
        if missing is None or isinstance(error, UnsupportedError):
            raise
        raise missing from error


def step_with_gradients(
    problem: BilevelProblem, inner: InnerLearner, state: InnerState, meta: Tensors, batch: Any
) -> tuple[InnerState, Tensors]:
    """Return the state after an inner step, and the gradient that it moved by; nothing has a graph.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: Detached state before the step.
        meta: Meta-parameters by name.
        batch: Training batch. Cost: 3 F.

    Raises:
        UnsupportedError: The inner learner's step is another map than an update by the gradient.
    """
    if is_own(inner, InnerLearner, "step"):
        raise UnsupportedError(
            "product='forward_over_reverse' and first_order=True need an inner step that is an "
            f"update by the gradient of the training loss, and that of {type(inner).__name__} is "
            "another map; use product='reverse_over_reverse', without first_order."
        )
    meta = {name: tensor.detach() for name, tensor in meta.items()}
    state = inner.enter(problem, state, meta)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in state.parameters.items()}
    entry = dataclasses.replace(state, parameters=leaves)
    _, gradients, buffers = inner.gradients(problem, entry, meta, batch)
    with torch.no_grad():
        after = inner.apply(problem, entry, meta, gradients)
    return dataclasses.replace(after, buffers=buffers).detach(), gradients


class MixedStep(DifferentiatedStep):
    """One inner step, of which vector-Jacobian products are taken by forward over reverse mode.

    MixFlow-MG (Kemaev et al. 2025, arXiv 2505.00793, section 3.2). The step is
    U(θ, slots, g(θ, λ), λ) with g the gradient of the training loss. The adjoint goes back through
    U alone, which is elementwise; where it meets g as a cotangent u, the products of uᵀ with ∂g/∂θ
    and ∂g/∂λ are directional derivatives of the gradient of the loss in (θ, λ) along u in θ, since
    second derivatives commute. They are taken in forward mode, so that no graph of a gradient is
    ever built.

    A loss with custom backward passes that are no gradients, such as a straight-through
    estimator, breaks that symmetry. What a loss detaches or computes without recording gradients
    is a constant here, too.

    In a step of first order g is a constant: the adjoint goes back through U, and no further.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: Detached state before the step.
        meta: Meta-parameters by name, leaves that require a gradient.
        batch: Training batch.
        gradients: Gradient of the training loss at ``state``; computed, for 3 F, where it is not
            given.
        through_state: Whether the product with the derivative in the state is needed, too.
        first_order: Whether it is a step of first order.

    Attributes:
        after: State after the step; its buffers have moved unless ``gradients`` were given.

    Raises:
        UnsupportedError: The inner learner's step is no update by the gradient.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        gradients: Tensors | None = None,
        through_state: bool = True,
        first_order: bool = False,
    ) -> None:
        super().__init__(problem, meta)
        buffers = state.buffers
        if gradients is None:
            moved, gradients = step_with_gradients(problem, inner, state, meta, batch)
            buffers = moved.buffers
        # λ is read by the initial state, too, where it sets it: the adjoint goes on to it.
        self._given: Tensors = {}
        if problem.begins_with_meta(state):
            with torch.enable_grad():
                self._given = problem.initial_parameters(meta)
            state = inner.enter(problem, state, meta).detach()
        self._through_state = through_state
        through_state = through_state or bool(self._given)
        inputs = [tensor.detach().requires_grad_(through_state) for tensor in state.tensors()]
        self._first_order = first_order
        self._points = {n: g.detach().requires_grad_(not first_order) for n, g in gradients.items()}
        with torch.enable_grad():
            after = inner.apply(problem, state.with_tensors(inputs), meta, self._points)
        self.after = dataclasses.replace(after, buffers=buffers)
        self._inputs = inputs if through_state else []
        self._arguments = (problem, state, meta, batch)

    @override
    def pull_back(
        self, adjoint: Adjoint, direct: Sequence[Tensor | None] = ()
    ) -> tuple[Adjoint, Adjoint]:
        """Multiply an adjoint with the Jacobian of the step; see :class:`DifferentiatedStep`.

        Cost: 9 F, and no pass for a step of first order. The derivative in the state is empty
        unless ``through_state``.

        Raises:
            UnsupportedError: The training loss has no forward mode.
        """
        problem, state, meta, batch = self._arguments
        size = len(self._inputs)
        known = direct or [None] * len(meta)
        if all(cotangent is None for cotangent in adjoint):
            return [None] * (size if self._through_state else 0), [*known]
        sources = [*self._inputs, *meta.values()]
        points = {} if self._first_order else self._points
        found = vector_jacobian_product(self.after.tensors(), [*sources, *points.values()], adjoint)
        total = found[: len(sources)]
        if not self._first_order:
            directions = dict(zip(points, found[len(sources) :], strict=True))
            second = _directional(problem, state, meta, batch, directions, bool(self._inputs))
            # The gradient depends on the parameters and not on the slots.
            slots = [None] * (size - len(second[0]))
            names = [str(index) for index in range(len(sources))]
            parts = (total, [*second[0], *slots, *second[1]])
            total = list(add_gradients(names, *parts).values())
        before, own = total[:size], total[size:]
        at_start = self._through_initial_state(before[: len(state.parameters)])
        direct = add_adjoints(known, add_adjoints(own, at_start))
        return (before if self._through_state else []), direct

    def _through_initial_state(self, adjoint: Adjoint) -> Adjoint:
        """Differentiate the parameters that λ sets, with the adjoint of all parameters."""
        _, state, meta, _ = self._arguments
        cotangents = dict(zip(state.parameters, adjoint, strict=False))
        vectors = [cotangents.get(name) for name in self._given]
        return vector_jacobian_product(list(self._given.values()), list(meta.values()), vectors)


def _directional(
    problem: BilevelProblem,
    state: InnerState,
    meta: Tensors,
    batch: Any,
    directions: Mapping[str, Tensor | None],
    through_state: bool,
) -> tuple[Adjoint, Adjoint]:
    """Differentiate the gradient of the training loss in (θ, λ) along directions in θ."""
    leaves = list(meta.values())
    with forward_over_reverse(), torch.enable_grad():
        duals = {}
        for name, parameter in state.parameters.items():
            leaf = parameter.detach().requires_grad_(through_state)
            direction = directions.get(name)
            duals[name] = leaf if direction is None else forward_ad.make_dual(leaf, direction)
        with _NoTangents():
            loss, _ = problem.evaluate_train(
                duals, meta, state.buffers, batch, fold_in(state.key, state.step)
            )
        sources = list(duals.values()) if through_state else []
        tangents = [
            None if gradient is None else forward_ad.unpack_dual(gradient).tangent
            for gradient in loss_gradient(loss, sources + leaves)
        ]
    return tangents[: len(sources)], tangents[len(sources) :]
