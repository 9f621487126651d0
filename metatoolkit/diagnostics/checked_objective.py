"""The function of λ that a check differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metatoolkit.diagnostics.held_problem import HeldProblem
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors


class CheckedObjective:
    """The objective of an estimator at the present λ and at others, what is detached held.

    That of an exact estimator is known without it: the outer loss after the inner steps. It is
    taken with the meta-parameters in the module moved themselves, which shows what reaches λ
    without the estimator's knowledge. An approximate one tells its own.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        estimator: Estimator whose objective it is.
        state: Detached state to start from.
        train_batches: One training batch per inner step.
        valid_batch: Batch for the outer loss.
        holds: Whether what a derivative takes for constant is held.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        estimator: Estimator,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        holds: bool,
    ) -> None:
        last = estimator.traits.kind == "iterative"
        self._problem = HeldProblem(problem, holds, last)
        self._inner = inner
        self._estimator = estimator
        self._arguments = (state, train_batches, valid_batch)
        self._independent = estimator.traits.kind == "exact"

    def record(self) -> float:
        """Return the value at the present λ, and record what the losses hold constant."""
        self._problem.begin(recording=True)
        return self._value(self._meta())

    def present(self) -> float:
        """Return the value at the present λ with what was recorded."""
        return self._at(self._meta())

    def _meta(self) -> Tensors:
        """Return copies of the meta-parameters, since what is held may share their memory."""
        meta = self._problem.meta_parameters()
        return {name: tensor.detach().clone() for name, tensor in meta.items()}

    def size(self, name: str, index: int) -> float:
        """Return the absolute value of a meta-parameter.

        Args:
            name: Name of the tensor.
            index: Number of the entry.
        """
        tensor = self._problem.meta_parameters()[name].detach()
        return abs(float(tensor[_place(tensor, index)]))

    def shifted(self, name: str, index: int, shift: float) -> float:
        """Return the value with one meta-parameter moved.

        Args:
            name: Name of the tensor.
            index: Number of the entry.
            shift: By how much.
        """
        if self._independent:
            with _moved(self._problem.meta_parameters()[name], index, shift):
                return self._at(self._meta())
        meta = self._meta()
        meta[name][_place(meta[name], index)] += shift
        return self._at(meta)

    def along(self, shift: float, seed: int) -> float:
        """Return the value with each meta-parameter moved up or down, as a seed has it.

        Args:
            shift: By how much.
            seed: The seed.
        """
        generator = torch.Generator().manual_seed(seed)
        meta: Tensors = {}
        for name, tensor in self._meta().items():
            signs = torch.randint(2, tensor.shape, generator=generator).to(tensor) * 2 - 1
            meta[name] = tensor + shift * signs
        return self._at(meta)

    def _at(self, meta: Tensors) -> float:
        self._problem.begin(recording=False)
        return self._value(meta)

    def _value(self, meta: Tensors) -> float:
        state, train_batches, valid_batch = self._arguments
        problem, inner = self._problem, self._inner
        if self._independent:
            final = roll_out(problem, inner, state, meta, train_batches)
            return float(outer_loss(problem, final, meta, valid_batch))
        arguments = (problem, inner, state, train_batches, valid_batch)
        return float(self._estimator.objective(*arguments, meta).detach())


@contextmanager
def _moved(parameter: Tensor, index: int, shift: float) -> Iterator[None]:
    """Move an entry of a live parameter for the body."""
    place = _place(parameter, index)
    before = parameter.data[place].clone()
    try:
        parameter.data[place] += shift
        yield
    finally:
        parameter.data[place] = before


def _place(tensor: Tensor, index: int) -> tuple[Tensor, ...]:
    """Return the index of an entry by its number, whatever the memory format."""
    return torch.unravel_index(torch.tensor(index), tensor.shape)
