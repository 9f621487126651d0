"""Leap: the initial state moves so that the way of the inner steps becomes shorter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.arguments import require_steps
from metatoolkit.hypergradients.base import Cost, Estimator, Hypergradient, Traits, check_finite
from metatoolkit.hypergradients.first_order import initial_moves, pulled_back
from metatoolkit.hypergradients.products import as_real
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_own
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors


@estimators.register()
class Leap(Estimator):
    """The derivative of the length of the inner steps' way on the surface of the training loss.

    Flennerhag et al. 2019, "Transferring Knowledge across Learning Processes" (arXiv 1812.01054,
    equations 5 to 8). With γ_i = (θ_i, f_i(θ_i)) and f_i the training loss on batch i, λ descends
    Σ_i ‖γ̄_{i+1} − γ_i‖^p for the steps i = 0, ..., T − 1, where the forward point
    γ̄_{i+1} = (θ_{i+1}, f_i(θ_{i+1})) is held, which pulls θ_i along the way. With p = 1 this is the
    length, with p = 2 the energy. The Jacobian of θ_i in θ_0 is taken for the identity, so that
    the gradient in θ_0 is −p Σ_i ‖γ̄_{i+1} − γ_i‖^{p−2} (Δθ_i + Δf_i ∇f_i(θ_i)) with Δ the
    differences. Where a step ascends, a stabilizer turns Δf_i around.

    It is for λ that sets the initial state θ_0, over tasks. It sees the outer loss nowhere; the
    validation batch only gives the value that is reported. Both losses of a step are of one batch,
    with the same dropout masks. Without the loss the energy is twice Reptile's objective.

    ``details["length"]`` is Σ_i ‖γ̄_{i+1} − γ_i‖^p. Cost with F one forward pass: (4 T + 1) F,
    without the loss (3 T + 1) F. Memory: that of an ordinary training step.

    Args:
        steps: Number of inner steps T.
        norm: Whether λ descends the length, p = 1, or the energy, p = 2.
        loss: Whether the way is that on the surface of the loss, or that of θ alone.
        stabilizer: Whether a step at which the loss rises counts as if it fell by as much.

    Raises:
        ConfigurationError: ``steps`` is below 1.

    Example:
        >>> Leap(steps=100, norm=False).horizon
        100
    """

    traits = Traits(
        kind="approximate",
        computes="shortening of the way of the inner steps, Jacobians taken for the identity",
        assumes="λ as the initial state; training batches of the whole task",
        passes="(4 T + 1) F",
        memory="graph of one pass",
        paper="Flennerhag et al. 2019, arXiv 1812.01054",
    )

    def __init__(
        self, steps: int = 5, norm: bool = True, loss: bool = True, stabilizer: bool = True
    ) -> None:
        require_steps(steps)
        self.horizon = steps
        self.norm = norm
        self.loss = loss
        self.stabilizer = stabilizer
        if not loss:
            self.traits = dataclasses.replace(type(self).traits, passes="(3 T + 1) F")

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the derivative of the length or energy pulled back to λ; see the class.

        Raises:
            UnsupportedError: λ does not set this state, or a part of it acts elsewhere alone; or
                the inner learner's step is another map than an update by the gradient.
        """
        meta = problem.meta_leaves()
        way = self.follow(problem, inner, state, meta, train_batches)
        states, batches = (state, way.final), (train_batches[-1], valid_batch)
        gradient, valid_loss = pulled_back(
            problem, inner, states, meta, way.gradient, batches, "Leap"
        )
        return Hypergradient(
            gradient=gradient,
            valid_loss=valid_loss,
            state=way.final,
            cost=dataclasses.replace(way.cost, forward=way.cost.forward + 1),
            details={"length": way.length},
        )

    def follow(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batches: Sequence[Any],
    ) -> Way:
        """Take the inner steps, and return the gradient of the length or energy in θ_0.

        Args:
            problem: The bilevel problem.
            inner: Inner learner.
            state: Detached state to start from.
            meta: Meta-parameters by name.
            batches: One training batch per step.

        Raises:
            UnsupportedError: The inner learner's step is another map than an update by the
                gradient of the training loss.
            NonFiniteError: A part of the gradient is NaN or infinite.
        """
        gradient = {name: torch.zeros_like(t) for name, t in state.parameters.items()}
        length = torch.zeros((), device=next(iter(gradient.values())).device)
        for batch in batches:
            segment = _Segment(problem, inner, state, meta, batch, self.loss)
            length = length + (segment.square.sqrt() if self.norm else segment.square)
            factor, rise = segment.factor(self.norm), segment.rise(self.stabilizer)
            for name, change in segment.changes.items():
                pull = factor.to(change.dtype) * change
                if name in segment.slopes:
                    pull = pull + (factor * rise).to(change.dtype) * segment.slopes[name]
                gradient[name] = gradient[name] - pull
            state = segment.after
        check_finite({f"the pull at {n!r}": g for n, g in gradient.items()} | {"length": length})
        steps = len(batches)
        forward = 2 * steps if self.loss else steps
        return Way(gradient, length, state, Cost(forward=forward, backward=steps))

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
        """Return a function of θ_0(λ) of the same derivative, by which all θ_i move alike.

        It is Σ_i ½ p d_i^{p−2} (‖Δθ_i‖² + Δf_i²), each distance d_i held, and the second square
        taken away where the stabilizer acts.
        """
        del valid_batch
        present = problem.meta_parameters()
        moves = initial_moves(problem, inner, state, meta)
        total = torch.zeros(())
        for batch in train_batches:
            segment = _Segment(problem, inner, state, present, batch, self.loss)
            with torch.no_grad():
                moved = {n: segment.before.parameters[n] + move for n, move in moves.items()}
                after = segment.after.parameters
                square = _square({n: after[n] - tensor for n, tensor in moved.items()})
                if self.loss:
                    fall = segment.ahead - segment.loss_at(moved)
                    turned = self.stabilizer and bool(segment.ahead > segment.behind)
                    square = square + (-1 if turned else 1) * fall.square()
                total = total + segment.factor(self.norm) / 2 * square
            state = segment.after
        return total


@dataclasses.dataclass(frozen=True)
class Way:
    """What the inner steps went through.

    Attributes:
        gradient: Gradient of the length or energy in θ_0 by parameter name.
        length: The length or energy, 0-d.
        final: State after the steps.
        cost: Passes.
    """

    gradient: Tensors
    length: Tensor
    final: InnerState
    cost: Cost


class _Segment:
    """One inner step, and how far it leads in the space of the parameters and the loss."""

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        with_loss: bool,
    ) -> None:
        if is_own(inner, InnerLearner, "step"):
            raise UnsupportedError(
                "Leap needs an inner step that is an update by the gradient of the training loss, "
                f"and that of {type(inner).__name__} is another map; use Reptile."
            )
        meta = {name: tensor.detach() for name, tensor in meta.items()}
        self._problem, self._meta, self._batch = problem, meta, batch
        self.before = inner.enter(problem, state, meta).detach()
        leaves = {n: t.detach().requires_grad_() for n, t in self.before.parameters.items()}
        entry = self.before.replaced(parameters=leaves)
        loss, gradients, buffers = inner.gradients(problem, entry, meta, batch)
        with torch.no_grad():
            self.after = inner.apply(problem, entry, meta, gradients)
            self.after = self.after.replaced(buffers=buffers).detach()
            before, after = self.before.parameters, self.after.parameters
            self.changes = {name: after[name] - tensor for name, tensor in before.items()}
            self.square = _square(self.changes)
            self.behind = self.ahead = loss.detach()
            self.slopes: Tensors = {}
            if with_loss:
                self.slopes = gradients
                self.ahead = self.loss_at(after)
                self.square = self.square + (self.ahead - self.behind).square()

    def loss_at(self, parameters: Tensors) -> Tensor:
        """Return the training loss of the step at other parameters."""
        before = self.before
        key = fold_in(before.key, before.step)
        arguments = (parameters, self._meta, before.buffers, self._batch, key)
        with torch.no_grad():
            return self._problem.evaluate_train(*arguments)[0]

    def rise(self, stabilizer: bool) -> Tensor:
        """Return Δf, by which the loss rises, turned around where that is above 0."""
        rise = self.ahead - self.behind
        return -rise.abs() if stabilizer else rise

    def factor(self, norm: bool) -> Tensor:
        """Return p d^{p−2} with d the distance, and 0 where a length is 0 and has no slope."""
        if not norm:
            return torch.full_like(self.square, 2.0)
        return torch.where(self.square > 0, self.square, 1.0).rsqrt() * (self.square > 0)


def _square(changes: Tensors) -> Tensor:
    """Return the square of the norm of all changes, in float32 or more."""
    parts = [as_real(change) for change in changes.values()]
    wide = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    return torch.stack([part.square().sum() for part in wide]).sum()
