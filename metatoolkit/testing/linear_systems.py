"""Dense linear systems with known solutions, which count their products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metatoolkit.hypergradients.linear_solvers.base import LinearSystem

F64 = torch.float64


class Counted:
    """A dense system that counts its products.

    Args:
        matrix: M, shape ``(n, n)``.
        rhs: b, shape ``(n,)``.
        start: First iterate.
        key: Random key.

    Attributes:
        system: The system.
        products: Products with M so far.
        transposed: Products with its transpose.
    """

    def __init__(
        self, matrix: Tensor, rhs: Tensor, start: Tensor | None = None, key: int = 7
    ) -> None:
        self.matrix, self.rhs = matrix, rhs
        self.products = self.transposed = 0
        self.system = LinearSystem(self._product, self._transposed, rhs, start, key)

    def _product(self, x: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ x

    def _transposed(self, x: Tensor) -> Tensor:
        self.transposed += 1
        return self.matrix.T @ x

    @property
    def solution(self) -> Tensor:
        """The solution, by factorization."""
        return torch.linalg.solve(self.matrix, self.rhs)


def symmetric(
    eigenvalues: Tensor | Sequence[float],
    dtype: torch.dtype = F64,
    start: Tensor | None = None,
    key: int = 7,
) -> Counted:
    """Return a symmetric system with given eigenvalues in a random basis.

    Args:
        eigenvalues: The eigenvalues.
        dtype: Type of matrix and right-hand side.
        start: First iterate.
        key: Random key of the system.
    """
    size = len(eigenvalues)
    generator = torch.Generator().manual_seed(size)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64)).Q
    matrix = basis @ torch.as_tensor(eigenvalues, dtype=F64).diag() @ basis.T
    rhs = torch.randn(size, generator=generator, dtype=F64)
    return Counted(((matrix + matrix.T) / 2).to(dtype), rhs.to(dtype), start, key)


def rotation(modulus: float = 0.9, size: int = 6) -> Counted:
    """Return a system I − A with A normal, all its eigenvalues complex and of one modulus.

    Args:
        modulus: The modulus.
        size: Number of unknowns, even.
    """
    angles = torch.linspace(0.4, 2.8, size // 2, dtype=F64)
    blocks = [
        modulus * torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]], dtype=F64) for a in angles
    ]
    matrix = torch.eye(size, dtype=F64) - torch.block_diag(*blocks)
    return Counted(matrix, torch.linspace(1, 2, size, dtype=F64))


def contraction(norm: float = 0.5, size: int = 6) -> Counted:
    """Return a system I − A with A of a given norm and far from normal.

    Args:
        norm: The norm of A, below 1.
        size: Number of unknowns.
    """
    generator = torch.Generator().manual_seed(size)
    drawn = torch.randn(2, size, size, generator=generator, dtype=F64)
    left, right = torch.linalg.qr(drawn).Q
    values = norm * torch.linspace(0.1, 1, size, dtype=F64)
    matrix = torch.eye(size, dtype=F64) - left @ values.diag() @ right
    return Counted(matrix, torch.linspace(1, 2, size, dtype=F64))


def relative_error(system: Counted, x: Tensor) -> float:
    """Return the distance to the solution, relative to its norm.

    Args:
        system: The system.
        x: What a solver returned.
    """
    return float((x - system.solution).norm() / system.solution.norm())
