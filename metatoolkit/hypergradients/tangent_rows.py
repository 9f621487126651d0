"""Which direction each row of tangents belongs to: those that a state moves along come first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Rows:
    """The rows of the directions that are pushed at a time.

    The rows of directions that the state has moved along come first, so that a slice leaves out
    all others, which are zero.

    Args:
        first: First direction.
        last: Direction after the last one.

    Attributes:
        first: First row, which is the first direction, too.
        last: Row after the last one.
        order: Direction of each row, both counted from the first.
        moved: Number of rows of directions that the state has moved along.
        changes: Number of times that the order has changed.
    """

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.order = list(range(last - first))
        self.moved = 0
        self.changes = 0
        self._sorted = True

    def __len__(self) -> int:
        return self.last - self.first

    def arrange(self, bending: Sequence[bool], stirred: Sequence[bool]) -> tuple[int, int]:
        """Let rows follow those that have moved which may move by a step.

        Args:
            bending: For each direction, whether the training loss reads λ along it.
            stirred: For each direction, whether the update does.

        Returns:
            The number of rows along which the gradient may change, and of those along which the
            state may.
        """
        done, rest = self.order[: self.moved], self.order[self.moved :]
        read = [place for place in rest if bending[place]]
        turned = [place for place in rest if stirred[place] and not bending[place]]
        if not (read or turned):
            return self.moved, self.moved
        still = [place for place in rest if not (stirred[place] or bending[place])]
        self._set([*done, *read, *turned, *still])
        bent = self.moved + len(read)
        return bent, bent + len(turned)

    def settle(self, matrices: Sequence[Tensor], active: int) -> None:
        """Note which rows after those that had moved are no longer zero.

        Args:
            matrices: Tangents, (count, *shape) each, whose rows are moved where need be.
            active: Number of rows that may have changed.
        """
        if active == self.moved:
            return
        begin, end = self.first + self.moved, self.first + active
        order = list(self.order)
        for row, moves in enumerate(nonzero([m[begin:end] for m in matrices]), self.moved):
            if moves:
                if row != self.moved:
                    for matrix in matrices:
                        # The row in front is zero.
                        matrix[self.first + self.moved].copy_(matrix[self.first + row])
                        matrix[self.first + row].zero_()
                    order[self.moved], order[row] = order[row], order[self.moved]
                self.moved += 1
        self._set(order)

    def taken(self, part: Tensor, count: int) -> Tensor:
        """Return what belongs to some of the first rows, without a copy where order allows it.

        Args:
            part: A row for each direction, (last − first, *shape).
            count: Number of rows.
        """
        if self._sorted:
            return part if count == len(part) else part[:count]
        return part[torch.tensor(self.order[:count], device=part.device)]

    def _set(self, order: list[int]) -> None:
        if order != self.order:
            self.order = order
            self.changes += 1
            self._sorted = order == sorted(order)


def nonzero(parts: Sequence[Tensor]) -> list[bool]:
    """Return whether each row of tensors (count, *shape) has an entry other than zero.

    Args:
        parts: The tensors, at least one.
    """
    rows = [(part != 0).reshape(len(part), -1).any(1) for part in parts]
    found: list[bool] = torch.stack(rows).any(0).tolist()
    return found
