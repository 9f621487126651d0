"""The penalty method: a hypergradient from two first-order trainings, with no second derivative."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
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
from metatoolkit.hypergradients.products import Adjoint, loss_gradient
from metatoolkit.hypergradients.registry import estimators
from metatoolkit.hypergradients.trajectory import roll_out, valid_key
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.exchange import carry


@estimators.register()
class Penalty(Estimator):
    """The penalty method F²SA (Kwon et al. 2023, arXiv 2301.10945).

    The inner problem becomes a penalty γ (L_T(z, λ) − min L_T) on the outer loss L. Two sets of
    inner parameters train side by side, y on L_T, which is θ, and z on L_T + L/γ; the estimate is
    ∂L(z)/∂λ + γ (∂L_T(z)/∂λ − ∂L_T(y)/∂λ). At both optima it differs from the implicit
    hypergradient by O(1/γ), and an error δ of y and z enters as γ δ. BOME (Liu et al. 2022,
    arXiv 2209.08709) follows the same direction from one trajectory. z is carried from call to
    call, as is y by the trainer: with ``keep_lookahead=True`` nothing is computed twice. Where the
    random key of y is another, as in a new episode, or the problem is, z starts over from y.

    L_T must be a function whose gradient moves y: what it detaches from θ, as Meta-Weight-Net does,
    is taken for a function of θ, and hooks that change its gradients are not seen. The two losses
    that are subtracted have the same batch and dropout masks. λ may enter the model and both
    losses, not the optimizer.

    Cost with F one forward pass: 9 F for each step (y 3 F, z 6 F), and three passes of 1 F to 3 F.
    Memory: z with its optimizer state, a second inner state, and the graphs of a training and a
    validation pass.

    Args:
        penalty: γ, above 0; the larger, the less bias and the more noise.
        steps: Inner steps of y and z per call, one batch each.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> Penalty(penalty=100.0, steps=5).horizon
        5
    """

    traits = Traits(
        kind="approximate",
        computes="derivative at the inner optimum, up to O(1/γ)",
        assumes="y and z near their optima; λ not in the optimizer; nothing detached",
        passes="9 T F + 3 passes",
        memory="a second inner state and the graph of two passes",
        paper="Kwon et al. 2023, arXiv 2301.10945",
    )

    def __init__(self, penalty: float = 10.0, steps: int = 1) -> None:
        if not 0 < penalty < float("inf"):
            raise ConfigurationError(f"penalty is {penalty}; a number above 0 is needed.")
        require_steps(steps)
        self.penalty = penalty
        self.horizon = steps
        self._carried: InnerState | None = None
        # The problem's identity; after a checkpoint the first problem that comes is taken for it.
        self._owner: str | None = None

    @override
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Return the penalty's hypergradient; see the class. Its outer loss is that at z.

        Raises:
            UnsupportedError: λ enters the inner optimizer.
        """
        meta = problem.meta_leaves()
        _refuse_meta_in_optimizer(problem, inner, state, meta)
        steps = len(train_batches)
        y = roll_out(problem, inner, state, meta, train_batches)
        pairs = [(batch, valid_batch) for batch in train_batches]
        penalized = _Penalized(problem, self.penalty)
        z = roll_out(penalized, inner, self._start(problem, state), meta, pairs)
        names = list(meta)
        losses, parts = self._differentiate(problem, y, z, meta, train_batches[-1], valid_batch)
        check_finite(losses)
        valid_loss, at_z, at_y = losses.values()
        gap = add_gradients(names, parts[1], [None if g is None else -g for g in parts[2]])
        through = [None if g is None else self.penalty * g for g in gap.values()]
        gradient = fill_gradients(
            problem, add_gradients(names, parts[0], through), "train_loss and valid_loss"
        )
        self._carried, self._owner = z, problem.identity
        return Hypergradient(
            gradient=gradient,
            valid_loss=valid_loss,
            state=y,
            cost=Cost(forward=3 * steps + 3, backward=3 * steps + 3),
            details={"train_loss_gap": at_z - at_y},
        )

    @staticmethod
    def _differentiate(
        problem: BilevelProblem,
        y: InnerState,
        z: InnerState,
        meta: Tensors,
        batch: Any,
        valid_batch: Any,
    ) -> tuple[Tensors, list[Adjoint]]:
        """Return L(z), L_T(z) and L_T(y), and the gradients of each in λ."""
        losses: Tensors = {}
        parts: list[Adjoint] = []
        for name, at, outer in (
            ("the validation loss at z", z, True),
            ("the training loss at z", z, False),
            ("the training loss at y", y, False),
        ):
            with torch.enable_grad():
                loss = _loss(problem, at, meta, batch, valid_batch, y, outer)
            losses[name] = loss.detach()
            parts.append(loss_gradient(loss, list(meta.values())))
        return losses, parts

    def _start(self, problem: BilevelProblem, state: InnerState) -> InnerState:
        """Return z as it was carried, with the type and step of y; y where there is no such z."""
        carried = self._carried
        if carried is None or carried.key != state.key:
            return state
        shapes = [tensor.shape for tensor in state.tensors()]
        if [tensor.shape for tensor in carried.tensors()] != shapes:
            raise ConfigurationError(
                "the parameters that Penalty carries have other shapes than the inner state; make "
                "a new Penalty for another model or inner learner."
            )
        if self._owner not in (None, problem.identity):
            return state
        pairs = zip(carried.tensors(), state.tensors(), strict=True)
        moved = carried.with_tensors([tensor.to(like) for tensor, like in pairs])
        buffers = {name: b.to(state.buffers[name]) for name, b in carried.buffers.items()}
        return dataclasses.replace(moved, buffers=buffers, step=state.step)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return z, if there is one."""
        return {} if self._carried is None else {"z": self._carried.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if set(state_dict) - {"z"}:
            super().load_state_dict(state_dict)
        saved = state_dict.get("z")
        self._carried = None if saved is None else InnerState.from_state_dict(saved)
        self._owner = None

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
        """Return L(z, λ) + γ (L_T(z, λ) − L_T(y, λ)) with y and z held.

        They are those that a call reaches under the present λ; after a call, z is where that left
        it.
        """
        present = {name: p.detach() for name, p in problem.meta_parameters().items()}
        y = roll_out(problem, inner, state, present, train_batches)
        carried = self._carried
        if (
            carried is None
            or carried.key != state.key
            or self._owner not in (None, problem.identity)
        ):
            pairs = [(batch, valid_batch) for batch in train_batches]
            z = roll_out(_Penalized(problem, self.penalty), inner, state, present, pairs)
        else:
            z = self._start(problem, state)
        with torch.no_grad():
            valid_loss, at_z, at_y = (
                _loss(problem, at, meta, train_batches[-1], valid_batch, y, outer)
                for at, outer in ((z, True), (z, False), (y, False))
            )
        return valid_loss + self.penalty * (at_z - at_y)


class _Penalized(BilevelProblem):
    """The inner problem of z: ``train_loss`` + ``valid_loss``/γ, on pairs of batches.

    It shares the modules of a problem. λ is a constant of it.
    """

    def __init__(self, problem: BilevelProblem, penalty: float) -> None:
        vars(self).update(vars(problem))
        self._problem = problem
        self._penalty = penalty

    @override
    def evaluate_train(
        self, parameters: Tensors, meta: Tensors, buffers: Tensors, batch: Any, key: int
    ) -> tuple[Tensor, Tensors]:
        train_batch, valid_batch = batch
        loss, after = self._problem.evaluate_train(parameters, meta, buffers, train_batch, key)
        outer = self._problem.evaluate_valid(
            parameters, meta, buffers, valid_batch, fold_in(key, Stream.PENALIZED_VALID_LOSS)
        )
        total = loss + outer / self._penalty
        carry(loss, total)
        return total, after


def _loss(
    problem: BilevelProblem,
    at: InnerState,
    meta: Tensors,
    batch: Any,
    valid_batch: Any,
    clock: InnerState,
    outer: bool,
) -> Tensor:
    """Return a loss at y or z, with the masks of y."""
    point = (at.parameters, meta, at.buffers)
    if outer:
        return problem.evaluate_valid(*point, valid_batch, valid_key(clock))
    return problem.evaluate_train(*point, batch, fold_in(clock.key, clock.step))[0]


def _refuse_meta_in_optimizer(
    problem: BilevelProblem, inner: InnerLearner, state: InnerState, meta: Tensors
) -> None:
    """Raise where λ is a hyper-parameter of the inner learner.

    Raises:
        UnsupportedError: It is.
    """
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.parameters.items()}
    with torch.enable_grad():
        after = inner.apply(problem, state, meta, zeros)
    if any(tensor.requires_grad for tensor in after.tensors()):
        raise UnsupportedError(
            f"λ enters the inner optimizer, {type(inner).__name__}, which Penalty does not see, "
            "since it differentiates the losses alone. Use Unrolled, ForwardMode or Implicit."
        )
