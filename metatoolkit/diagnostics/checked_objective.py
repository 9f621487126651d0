"""The function of λ that a check differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from metatoolkit.diagnostics.held_problem import HeldProblem
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out
from metatoolkit.state import Tensors


class CheckedObjective:
    """The objective of an estimator at the present λ and at others, what is detached held.

    That of an exact estimator is known without it: the outer loss after the inner steps. It is
    taken with the meta-parameters in the module moved themselves, which shows what reaches λ
    without the estimator's knowledge. An approximate one tells its own.

    Args:
        instance: Problem and data, with one training batch per inner step and a detached state to
            start from.
        estimator: Estimator whose objective it is.
        holds: Whether what a derivative takes for constant is held.
    """

    def __init__(self, instance: ProblemInstance, estimator: Estimator, holds: bool) -> None:
        last = estimator.traits.kind == "iterative"
        self._problem = HeldProblem(instance.problem, holds, last)
        self._instance = dataclasses.replace(instance, problem=self._problem)
        self._estimator = estimator
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
        arguments = self._instance.arguments()
        if self._independent:
            problem, inner, state, train_batches, valid_batch = arguments
            final = roll_out(problem, inner, state, meta, train_batches)
            return float(outer_loss(problem, final, meta, valid_batch))
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
