"""TaskRule: the base of meta-parameters that no gradient moves, but a rule of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from metatoolkit.state import InnerState, Tensors


class TaskRule(nn.Module, ABC):
    """A part of λ that moves by what inner steps did in each task, and by no hypergradient.

    What it moves are parameters that require no gradient: optimizers leave them alone, and state
    dictionaries and checkpoints hold them. A :class:`metatoolkit.MetaTrainer` across tasks moves
    every such part of its λ after each meta step; :func:`metatoolkit.over_tasks` returns what is to
    be taken in, by the names of the parts, in ``details["observed"]``.
    """

    @abstractmethod
    def observe(self, start: InnerState, final: InnerState) -> Tensors:
        """Return what one task adds, tensors by name, of shapes that are the same for all tasks.

        Args:
            start: Initial state. Called with it twice, the method returns zeros.
            final: State after the inner steps.
        """

    @abstractmethod
    def take_in(self, total: Tensors, tasks: int) -> None:
        """Move by tasks that all began at the same λ.

        Args:
            total: Sums over the tasks of what :meth:`observe` returned.
            tasks: Their number.
        """
