"""Linear systems of several tasks, solved in turns, so that one pass takes the products of all."""

from __future__ import annotations

import contextvars
import dataclasses
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metatoolkit.hypergradients.linear_solvers.base import LinearSolver, LinearSystem, Solution

Products = Callable[[dict[int, Tensor]], dict[int, Tensor]]
"""Takes a vector for each of some systems, by their numbers, and returns the product of each."""


def solve_each(
    solver: LinearSolver,
    systems: Sequence[LinearSystem],
    product: Products,
    transposed_product: Products,
) -> list[Solution]:
    """Return the solution of each of several independent systems.

    Any solver will do, and each system sees the iteration that it would see by itself: it runs on
    a thread of its own, one thread at a time. When all have asked for a product or are done, one
    call answers those that ask. Cost: as many calls as the system that asks most often needs.

    Args:
        solver: The solver.
        systems: The systems, whose own products are not called.
        product: Products with M.
        transposed_product: Products with Mᵀ.

    Raises:
        Exception: What the solver raises for the first system that it fails for.
    """
    if len(systems) == 1:
        single = dataclasses.replace(
            systems[0],
            product=lambda x: product({0: x})[0],
            transposed_product=lambda x: transposed_product({0: x})[0],
        )
        return [solver.solve(single)]
    turns = [_Turns(solver, system) for system in systems]
    try:
        for one in turns:
            one.begin()
        while any(one.asks is not None for one in turns):
            _answer(turns, False, product)
            _answer(turns, True, transposed_product)
    finally:
        for one in turns:
            one.end()
    return [one.solution() for one in turns]


def _answer(turns: Sequence[_Turns], transposed: bool, products: Products) -> None:
    """Answer those that ask for a kind of product, which each goes on from."""
    asked = {
        number: one.asks[1]
        for number, one in enumerate(turns)
        if one.asks is not None and one.asks[0] == transposed
    }
    if asked:
        for number, image in products(asked).items():
            turns[number].go_on(image)


class _Ended(BaseException):
    """Ends the thread of a system that another one's failure has made needless."""


class _Turns:
    """The solution of one system on a thread that runs while the caller waits.

    Attributes:
        asks: Whether the product is the transposed one, and the vector; ``None`` at the end.
    """

    def __init__(self, solver: LinearSolver, system: LinearSystem) -> None:
        self.asks: tuple[bool, Tensor] | None = None
        self._mine, self._callers = threading.Semaphore(0), threading.Semaphore(0)
        self._image: Tensor | None = None
        self._found: Solution | BaseException | None = None
        system = dataclasses.replace(
            system,
            product=lambda x: self._ask(False, x),
            transposed_product=lambda x: self._ask(True, x),
        )
        gradients, context = torch.is_grad_enabled(), contextvars.copy_context()

        def run() -> None:
            try:
                with torch.set_grad_enabled(gradients):
                    self._found = context.run(solver.solve, system)
            except BaseException as error:
                self._found = error
            self.asks = None
            self._callers.release()

        self._thread = threading.Thread(target=run, daemon=True)

    def begin(self) -> None:
        self._thread.start()
        self._callers.acquire()
        self._raise()

    def go_on(self, image: Tensor | None) -> None:
        self._image = image
        self._mine.release()
        self._callers.acquire()
        self._raise()

    def _raise(self) -> None:
        if isinstance(self._found, BaseException) and not isinstance(self._found, _Ended):
            raise self._found

    def _ask(self, transposed: bool, vector: Tensor) -> Tensor:
        self.asks = transposed, vector
        self._callers.release()
        self._mine.acquire()
        if self._image is None:
            raise _Ended
        return self._image

    def end(self) -> None:
        """Let the thread end, if it has begun."""
        if self.asks is not None:
            self.go_on(None)

    def solution(self) -> Solution:
        assert isinstance(self._found, Solution)
        return self._found
