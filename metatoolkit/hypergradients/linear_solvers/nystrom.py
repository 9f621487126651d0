"""A low-rank Nyström approximation of the matrix."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.linear_solvers.base import LinearSolver, LinearSystem, Solution
from metatoolkit.hypergradients.linear_solvers.registry import solvers


@solvers.register()
@dataclasses.dataclass(frozen=True)
class Nystrom(LinearSolver):
    """A low-rank Nyström approximation of M, inverted in closed form.

    Hataya and Yamada 2023, arXiv 2302.09726: M_k = M Ω (Ωᵀ M Ω)⁻¹ Ωᵀ M for k directions Ω, and
    x = (M_k + ρ I)⁻¹ b by the eigenvalues of M_k. The directions are random and orthonormal, where
    the paper takes coordinates. For a symmetric M whose eigenvalues decay fast; no iterations:
    k products; memory: 2 k vectors.

    Args:
        rank: Number k of directions.
        damping: ρ, above 0; it stands for all eigenvalues that M_k leaves out. Where it is far
            below them, x is far too large; ``Implicit`` then takes a multiple of it.

    Raises:
        ConfigurationError: An argument is out of range.

    Example:
        >>> matrix = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> system = LinearSystem(matrix.mv, matrix.T.mv, matrix @ torch.ones(2))
        >>> Nystrom(rank=2, damping=1e-6).solve(system).vector.round(decimals=3)
        tensor([1., 1.])
    """

    rank: int = 10
    damping: float = 0.01
    symmetric: ClassVar[bool] = True
    warm_startable: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigurationError(f"rank is {self.rank}; at least 1 is needed.")
        if not 0 < self.damping < math.inf:
            raise ConfigurationError(f"damping is {self.damping}; a number above 0 is needed.")

    @property
    @override
    def diagonal(self) -> float:
        return self.damping

    @override
    def solve(self, system: LinearSystem) -> Solution:
        """Return (M_k + ρ I)⁻¹ b.

        Args:
            system: The system; a start is not used.
        """
        rhs = system.right_hand_side
        rounding = system.eps
        generator = torch.Generator(rhs.device).manual_seed(system.key)
        rank = min(self.rank, len(rhs))
        drawn = torch.randn(len(rhs), rank, generator=generator, dtype=rhs.dtype, device=rhs.device)
        directions = torch.linalg.qr(drawn).Q
        images = torch.stack([system.product(column) for column in directions.T], dim=1)
        core = (directions.T @ images).double()
        core = (core + core.T) / 2
        if rank == len(rhs):
            # The directions span the whole space: M_k is M.
            basis = directions
            values, vectors = torch.linalg.eigh(core)
        else:
            basis, triangle = torch.linalg.qr(images)
            # The inverse of the core, without directions that M sends to zero.
            inverse = torch.linalg.pinv(core, hermitian=True, rtol=rank * rounding)
            values, vectors = torch.linalg.eigh(triangle.double() @ inverse @ triangle.T.double())
        damped = values + self.damping
        least = float(damped.abs().min())
        if not least > rounding * float(values.abs().max()):
            raise UnsupportedError(
                f"Nystrom with rank={self.rank} finds an eigenvalue of {-self.damping:.3g} to "
                f"rounding, so that damping={self.damping} makes the system of {len(rhs)} "
                "variables singular. Use another damping, or MINRES, which takes indefinite "
                "systems."
            )
        basis = basis @ vectors.to(basis.dtype)
        inside = basis.T @ rhs
        scaled = inside / damped.to(rhs.dtype)
        outside = (rhs - basis @ inside) / self.damping if rank < len(rhs) else 0.0
        return Solution(basis @ scaled + outside, rank)
