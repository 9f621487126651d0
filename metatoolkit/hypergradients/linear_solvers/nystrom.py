"""A low-rank Nyström approximation of the matrix."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.linear_solvers.base import LinearSolver, LinearSystem, Solution


@dataclasses.dataclass(frozen=True)
class Nystrom(LinearSolver):
    """A low-rank Nyström approximation of M, inverted in closed form.

    Hataya and Yamada 2023, arXiv 2302.09726: M_k = M Ω (Ωᵀ M Ω)⁻¹ Ωᵀ M for k directions Ω, and
    x = (M_k + ρ I)⁻¹ b by the eigenvalues of M_k. The directions are random and orthonormal, where
    the paper takes coordinates. For a symmetric M whose eigenvalues decay fast; no iterations:
    k products; memory: 2 k vectors.

    Args:
        rank: Number k of directions.
        damping: ρ, above 0; it stands for all eigenvalues that M_k leaves out.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    rank: int = 10
    damping: float = 0.01
    symmetric: ClassVar[bool] = True
    warm_startable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigurationError(f"rank is {self.rank}; at least 1 is needed.")
        if not 0 < self.damping < float("inf"):
            raise ConfigurationError(f"damping is {self.damping}; a number above 0 is needed.")

    def solve(self, system: LinearSystem) -> Solution:
        """Return (M_k + ρ I)⁻¹ b.

        Args:
            system: The system; a start is not used.
        """
        rhs = system.right_hand_side
        generator = torch.Generator(rhs.device).manual_seed(system.key)
        rank = min(self.rank, len(rhs))
        drawn = torch.randn(len(rhs), rank, generator=generator, dtype=rhs.dtype, device=rhs.device)
        directions = torch.linalg.qr(drawn).Q
        images = torch.stack([system.product(column) for column in directions.T], dim=1)
        basis, triangle = torch.linalg.qr(images)
        core = (directions.T @ images).double()
        # The inverse of the core, without directions that M sends to zero.
        cutoff = rank * torch.finfo(rhs.dtype).eps
        inverse = torch.linalg.pinv((core + core.T) / 2, hermitian=True, rtol=cutoff)
        values, vectors = torch.linalg.eigh(triangle.double() @ inverse @ triangle.T.double())
        basis = basis @ vectors.to(basis.dtype)
        inside = basis.T @ rhs
        scaled = inside / (values + self.damping).to(rhs.dtype)
        return Solution(basis @ scaled + (rhs - basis @ inside) / self.damping, rank)
