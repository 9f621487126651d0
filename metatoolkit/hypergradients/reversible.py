"""The exact hypergradient of T inner steps that are taken back one by one, without their states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ReplayError, UnsupportedError
from metatoolkit.hypergradients.arguments import require_steps
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.hypergradients.base import (
    Cost,
    Estimator,
    Hypergradient,
    Traits,
    fill_gradients,
)
from metatoolkit.hypergradients.products import Adjoint, step_product
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.trajectory import outer_gradient, outer_loss, roll_out
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.fixed_point import LostBits
from metatoolkit.inner.reversible_momentum import ReversibleMomentum
from metatoolkit.inner.traits import is_said_of
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.exchange import within


@estimators.register()
class Reversible(Estimator):
    """Reverse-mode differentiation through ``steps`` inner steps that are taken back exactly.

    Maclaurin et al. 2015, arXiv 1502.03492, algorithm 2, with
    :class:`metatoolkit.inner.ReversibleMomentum`: the steps are taken without a graph, of each of
    which a few bits are kept, and then taken back bit for bit, last first, each with its graph. It
    returns what :class:`Unrolled` does with the same learner. That the first state is found again,
    bit for bit, is checked in every call.

    Cost with F one forward pass: 12 F for each step and 3 F for the outer loss. Memory: two inner
    states, the graph of one step, and log2(1/γ) bits per parameter and step with γ the momentum;
    besides, buffers at the steps that change them, such as BatchNorm's running statistics. A pass
    must give the same gradient twice: on a GPU set ``torch.use_deterministic_algorithms(True)``.

    ``details`` holds, per parameter and step, ``"bits"``, what was stored, and ``"entropy"``,
    log2(1/γ) at the fractions that stood for the momentum; ``"bytes"`` of the store, without the
    constant 8 bytes for each parameter, beside ``"trajectory_bytes"``, which θ and v of all steps
    would take; and ``"momentum"``, those fractions at the last step by parameter name.

    Args:
        steps: Number of inner steps T.

    Raises:
        ConfigurationError: ``steps`` is below 1.

    Example:
        >>> Reversible(10_000).horizon
        10000
    """

    separable = True
    repeats_steps = True
    complex_parameters = False
    traits = Traits(
        kind="exact",
        computes="derivative through T inner steps",
        assumes="ReversibleMomentum; second derivatives; passes that repeat bit for bit",
        passes="12 F for each step, 3 F for the outer loss",
        memory="two inner states, log2(1/γ) bits per parameter and step, and the graph of one step",
        paper="Maclaurin et al. 2015, arXiv 1502.03492",
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
        """Return the derivative of the outer loss after T steps; see the class.

        Raises:
            UnsupportedError: The inner learner cannot take its steps back.
            ReplayError: The first state is missed: a gradient was another one the second time.
        """
        if not isinstance(inner, ReversibleMomentum) or not is_said_of(inner, "rewind_velocities"):
            raise UnsupportedError(
                "Reversible needs an inner learner whose steps can be taken back to the last bit "
                f"of each value, and {type(inner).__name__} is none; use ReversibleMomentum, or "
                "Unrolled(checkpoint='tree')."
            )
        meta = problem.meta_leaves()
        way = _Way(problem, inner, state, meta)
        for batch in train_batches:
            way.forth(batch)
        final = way.state
        details = way.details(len(train_batches))
        valid_loss, adjoint, direct = outer_gradient(problem, final, meta, valid_batch)
        for batch in reversed(train_batches):
            adjoint, direct = way.back(batch, adjoint, direct)
        total = dict(zip(meta, direct, strict=True))
        passes = 2 * len(train_batches) + 1
        return Hypergradient(
            gradient=fill_gradients(problem, total, "train_loss and valid_loss"),
            valid_loss=valid_loss,
            state=final,
            cost=Cost(forward=passes, backward=passes, hvp=len(train_batches)),
            details=details,
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
        """Return the outer loss after T steps from ``state`` under ``meta``."""
        state = roll_out(problem, inner, state, meta, train_batches)
        return outer_loss(problem, state, meta, valid_batch)


class _Way:
    """Steps that are taken and taken back.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: Detached state to start from.
        meta: Meta-parameters by name, leaves that require a gradient.

    Attributes:
        state: The present state.
    """

    def __init__(
        self, problem: BilevelProblem, inner: ReversibleMomentum, state: InnerState, meta: Tensors
    ) -> None:
        self._problem, self._inner, self._meta = problem, inner, meta
        self._first = self.state = state
        self._lost = LostBits(next(iter(state.parameters.values())).device)
        # Of each step what it skipped, and the buffers that it changed.
        self._notes: list[tuple[dict[str, int], Tensors]] = []
        self._entropy = 0.0
        self._fractions: dict[str, float | Tensor] = {}

    def forth(self, batch: Any) -> None:
        """Take a step. Cost: 3 F."""
        before = self.state
        # The kernels of the way back, so that gradients are the same bit for bit.
        with double_backward_kernels():
            self.state, _ = self._inner.step(self._problem, before, self._meta, batch)
        after = self.state
        changed = {
            name: buffer
            for name, buffer in before.buffers.items()
            if not torch.equal(buffer, after.buffers[name])
        }
        self._notes.append((before.missed, changed))
        self._fractions = self._inner.spill(self._problem, before, after, self._meta, self._lost)
        for name, fraction in self._fractions.items():
            size = before.parameters[name].numel()
            if isinstance(fraction, Tensor):
                self._entropy -= float(fraction.log2().expand(before.parameters[name].shape).sum())
            else:
                self._entropy -= size * math.log2(fraction)

    def details(self, steps: int) -> dict[str, Any]:
        """Return what the way takes, for ``details``."""
        heads = [s.optimizer["lost_bits"].values() for s in (self.state, self._first)]
        held = sum(
            float((head.double() / start.double()).log2().sum())
            for head, start in zip(*heads, strict=True)
        )
        parameters = self.state.parameters.values()
        count = max(steps * sum(p.numel() for p in parameters), 1)
        return {
            "bits": (8 * self._lost.nbytes + held) / count,
            "entropy": self._entropy / count,
            "bytes": self._lost.nbytes,
            "trajectory_bytes": 2 * steps * sum(p.nbytes for p in parameters),
            "momentum": self._fractions,
        }

    def back(self, batch: Any, adjoint: Adjoint, direct: Adjoint) -> tuple[Adjoint, Adjoint]:
        """Take a step back, and multiply an adjoint with its Jacobian. Cost: 9 F.

        Args:
            batch: Training batch of the step.
            adjoint: Derivative in the tensors of the state after the step.
            direct: Derivative in λ that is known.

        Returns:
            The derivative in the tensors of the state before it, and that in λ with the step's.
        """
        problem, inner, meta = self._problem, self._inner, self._meta
        missed, changed = self._notes.pop()
        first = not self._notes
        before = inner.rewind_parameters(problem, self.state, meta, missed)
        before = before.replaced(buffers=before.buffers | changed)
        # The first ones are those that were given, also where they are no fixed-point numbers.
        values = self._first.parameters if first else before.parameters
        points = {name: tensor.detach().requires_grad_() for name, tensor in values.items()}
        entry = inner.enter(problem, before.replaced(parameters=points), meta)
        own = {n: t if t.requires_grad else t.requires_grad_() for n, t in entry.parameters.items()}
        entry = entry.replaced(parameters=own)
        with double_backward_kernels():
            loss, gradients, _ = inner.gradients(problem, entry, meta, batch, True)
        plain = {name: gradient.detach() for name, gradient in gradients.items()}
        try:
            self.state = inner.rewind_velocities(problem, before, meta, plain, self._lost)
        except IndexError as error:
            raise _missed() from error
        if first:
            self._check(entry)
        speeds = self.state.optimizer["velocity"]
        speeds = {name: tensor.detach().requires_grad_() for name, tensor in speeds.items()}
        optimizer = self.state.optimizer | {"velocity": speeds}
        after = inner.apply(problem, entry.replaced(optimizer=optimizer), meta, gradients)
        inputs = [] if first else [*points.values(), *speeds.values()]
        with double_backward_kernels(), within(loss):
            return step_product(after.tensors(), inputs, [*meta.values()], adjoint, direct)

    def _check(self, entry: InnerState) -> None:
        """Raise unless the first state is found again, bit for bit."""
        wanted = self._inner.settled(entry.replaced(optimizer=self._first.optimizer))
        same = self._lost.count == 0 and all(
            torch.equal(tensor, self.state.optimizer[slot][name])
            for slot in ("fixed_parameter", "fixed_velocity", "lost_bits")
            for name, tensor in wanted.optimizer[slot].items()
        )
        if not same:
            raise _missed()


def _missed() -> ReplayError:
    return ReplayError(
        "taking the steps back does not lead to the state that they began with: a gradient was "
        "another one, if only in the last bit, when it was computed again. On a GPU set "
        "torch.use_deterministic_algorithms(True); where a loss keeps what it does not rewind, "
        "take that out of it; or use Unrolled(checkpoint='tree')."
    )
