"""The linear system behind an implicit hypergradient, and the one interface of its solvers."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError

Product = Callable[[Tensor], Tensor]


def _accept(image: Tensor) -> None:
    """Accept a product, whatever it is."""


@dataclasses.dataclass(frozen=True)
class LinearSystem:
    """The system M x = b over vectors of length n.

    Attributes:
        product: x ↦ M x, finite or an error.
        transposed_product: x ↦ Mᵀ x, likewise.
        right_hand_side: b, in float32 or float64.
        start: First iterate, or ``None`` for zero.
        key: Random key for solvers that draw vectors.
        rounding: Relative rounding error of a product; ``None`` for that of b's type.
        check: Raises for a product that is not finite, for solvers that look at products
            themselves.
    """

    product: Product
    transposed_product: Product
    right_hand_side: Tensor
    start: Tensor | None = None
    key: int = 0
    rounding: float | None = None
    check: Callable[[Tensor], None] = _accept

    @property
    def eps(self) -> float:
        """Relative rounding error of a product."""
        own = torch.finfo(self.right_hand_side.dtype).eps
        return own if self.rounding is None else max(own, self.rounding)

    def first_residual(self) -> tuple[Tensor, Tensor]:
        """Return the first iterate and its residual; one product where there is a start.

        A start that is worse than zero is left out. Both tensors are the caller's to change.
        """
        rhs = self.right_hand_side
        if self.start is not None:
            residual = rhs - self.product(self.start)
            if float(residual.norm()) <= float(rhs.norm()):
                return self.start.clone(), residual
        return torch.zeros_like(rhs), rhs.clone()

    def damped(self, damping: float) -> LinearSystem:
        """Return the system (M + ρ I) x = b.

        Args:
            damping: ρ, what is added to the diagonal.
        """
        if damping == 0:
            return self
        return dataclasses.replace(
            self,
            product=lambda x: self.product(x) + damping * x,
            transposed_product=lambda x: self.transposed_product(x) + damping * x,
        )


@dataclasses.dataclass(frozen=True)
class Solution:
    """What a solver reached.

    Attributes:
        vector: The best iterate x, by its residual in the system that is solved.
        iterations: Iterations taken.
        details: What else the solver can tell, 0-d tensors by name. Of an iteration these are
            ``best_iteration``, where x was found, ``estimated_residual``, relative to b with what
            rounding adds, and ``stagnated``, where it came to an end above the tolerance.
    """

    vector: Tensor
    iterations: int
    details: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class LinearSolver(ABC):
    """A way to solve M x = b.

    Attributes:
        symmetric: Whether M must be symmetric.
        warm_startable: Whether a first iterate is of use.
        random: Whether the solution depends on the system's key by more than its accuracy.
        checks_products: Whether it calls the system's ``check`` for a product that is not finite;
            else each product is checked before the solver sees it.
    """

    symmetric: ClassVar[bool] = False
    warm_startable: ClassVar[bool] = True
    random: ClassVar[bool] = False
    checks_products: ClassVar[bool] = False

    @property
    def diagonal(self) -> float:
        """What the solver adds to the diagonal of M."""
        return 0.0

    @abstractmethod
    def solve(self, system: LinearSystem) -> Solution:
        """Return an approximate solution, no worse than zero where the solver iterates.

        Args:
            system: The system.
        """


def check_iteration(iterations: int, tolerance: float, damping: float = 0.0) -> None:
    """Raise unless the arguments that iterative solvers share are in range.

    Args:
        iterations: Largest number of iterations, at least 1.
        tolerance: Norm of the residual relative to b, from 0 to below 1.
        damping: What is added to the diagonal, finite and at least 0.

    Raises:
        ConfigurationError: One is out of range.
    """
    if iterations < 1:
        raise ConfigurationError(f"iterations is {iterations}; at least 1 is needed.")
    if not 0 <= tolerance < 1:
        raise ConfigurationError(f"tolerance is {tolerance}; accepted: at least 0 and below 1.")
    if not 0 <= damping < math.inf:
        raise ConfigurationError(f"damping is {damping}; a finite number of at least 0 is needed.")
