"""Solvers of the linear system behind an implicit hypergradient, given by products alone."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, UnsupportedError

Product = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class LinearSystem:
    """The system M x = b over vectors of length n.

    Attributes:
        product: x ↦ M x, finite or an error.
        transposed_product: x ↦ Mᵀ x, likewise.
        right_hand_side: b, in float32 or float64.
        start: First iterate, or ``None`` for zero.
        key: Random key for solvers that draw vectors.
    """

    product: Product
    transposed_product: Product
    right_hand_side: Tensor
    start: Tensor | None = None
    key: int = 0

    def first_residual(self) -> tuple[Tensor, Tensor]:
        """Return the first iterate and its residual; one product where there is a start."""
        if self.start is None:
            return torch.zeros_like(self.right_hand_side), self.right_hand_side.clone()
        return self.start.clone(), self.right_hand_side - self.product(self.start)


@dataclasses.dataclass(frozen=True)
class Solution:
    """What a solver reached.

    Attributes:
        vector: The last iterate x.
        iterations: Iterations taken.
        details: What else the solver can tell, 0-d tensors by name.
    """

    vector: Tensor
    iterations: int
    details: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class LinearSolver(ABC):
    """A way to solve M x = b.

    Attributes:
        symmetric: Whether M must be symmetric.
        warm_startable: Whether a first iterate is of use.
    """

    symmetric: ClassVar[bool] = False
    warm_startable: ClassVar[bool] = True

    @abstractmethod
    def solve(self, system: LinearSystem) -> Solution:
        """Return an approximate solution.

        Args:
            system: The system.
        """


def _check(iterations: int, tolerance: float, damping: float = 0.0) -> None:
    if iterations < 1:
        raise ConfigurationError(f"iterations is {iterations}; at least 1 is needed.")
    if not 0 <= tolerance < 1:
        raise ConfigurationError(f"tolerance is {tolerance}; accepted: at least 0 and below 1.")
    if not 0 <= damping < float("inf"):
        raise ConfigurationError(f"damping is {damping}; a finite number of at least 0 is needed.")


@dataclasses.dataclass(frozen=True)
class ConjugateGradient(LinearSolver):
    """Conjugate gradient, for a symmetric positive definite M (Hestenes and Stiefel 1952).

    After k iterations the error in the norm of M is at most 2 ((√κ − 1)/(√κ + 1))ᵏ times the
    first one, with κ the condition number. One product per iteration; memory: four vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.
        damping: ρ of the system (M + ρ I) x = b that is solved instead, at least 0.
        negative_curvature: What to do where pᵀ(M + ρ I)p ≤ 0 shows that M + ρ I is not positive
            definite: ``"error"``, or ``"stop"`` with the iterate before and the detail
            ``negative_curvature``, that value over pᵀp.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    damping: float = 0.0
    negative_curvature: Literal["error", "stop"] = "error"
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.iterations, self.tolerance, self.damping)
        if self.negative_curvature not in ("error", "stop"):
            raise ConfigurationError(
                f"negative_curvature is {self.negative_curvature!r}; accepted: 'error', 'stop'."
            )

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.

        Raises:
            UnsupportedError: M is not positive definite, unless that is to stop the iteration.
        """
        damped = _damped(system, self.damping)
        x, residual = damped.first_residual()
        target = self.tolerance * float(system.right_hand_side.norm())
        direction = residual.clone()
        square = residual.dot(residual)
        rounding = torch.finfo(residual.dtype).eps
        done = 0
        while done < self.iterations and float(square.sqrt()) > target:
            image = damped.product(direction)
            curvature = direction.dot(image)
            if float(curvature) <= rounding * float(direction.norm() * image.norm()):
                if float(square.sqrt()) <= rounding * float(system.right_hand_side.norm()):
                    # Rounding is all that is left, which tells nothing of M.
                    break
                relative = curvature / direction.dot(direction)
                if self.negative_curvature == "error":
                    raise UnsupportedError(_indefinite(float(relative), self.damping))
                return Solution(x, done, {"negative_curvature": relative})
            step = square / curvature
            x = x + step * direction
            residual = residual - step * image
            before, square = square, residual.dot(residual)
            direction = residual + (square / before) * direction
            done += 1
        return Solution(x, done)


def _indefinite(curvature: float, damping: float) -> str:
    return (
        f"ConjugateGradient met a direction of curvature {curvature:.3g} with damping={damping}: "
        "the training loss is no strictly convex function at this state. Use MINRES (symmetric, "
        "indefinite), NormalEquationCG or GMRES, raise the damping, train θ for longer, or pass "
        "negative_curvature='stop'."
    )


@dataclasses.dataclass(frozen=True)
class NormalEquationCG(LinearSolver):
    """Conjugate gradient on the normal equations MᵀM x = Mᵀb, for any regular M.

    The residual of M x = b falls in every iteration, at a rate of at least (κ − 1)/(κ + 1) with κ
    the condition number of M. Two products per iteration, one with M and one with Mᵀ; memory:
    five vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.
        damping: ρ of the least-squares problem with ρ ‖x‖² added, at least 0.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check(self.iterations, self.tolerance, self.damping)

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.
        """
        x, residual = system.first_residual()
        target = self.tolerance * float(system.right_hand_side.norm())
        gradient = system.transposed_product(residual) - self.damping * x
        direction = gradient.clone()
        square = gradient.dot(gradient)
        done = 0
        while done < self.iterations and float(residual.norm()) > target and float(square) > 0:
            image = system.product(direction)
            curvature = image.dot(image) + self.damping * direction.dot(direction)
            if float(curvature) == 0:
                break
            step = square / curvature
            x = x + step * direction
            residual = residual - step * image
            gradient = system.transposed_product(residual) - self.damping * x
            before, square = square, gradient.dot(gradient)
            direction = gradient + (square / before) * direction
            done += 1
        return Solution(x, done)


@dataclasses.dataclass(frozen=True)
class MINRES(LinearSolver):
    """The minimal residual method of Paige and Saunders 1975, doi 10.1137/0712047.

    For a symmetric M that may be indefinite: x minimizes the residual over the Krylov space,
    which a Lanczos process builds and Givens rotations keep triangular. One product per
    iteration; memory: seven vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.iterations, self.tolerance)

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.
        """
        x, residual = system.first_residual()
        target = self.tolerance * float(system.right_hand_side.norm())
        left = float(residual.norm())
        if left <= target:
            return Solution(x, 0)
        rounding = torch.finfo(residual.dtype).eps
        basis, basis_before = residual / left, torch.zeros_like(residual)
        search, search_before = torch.zeros_like(residual), torch.zeros_like(residual)
        # The two rotations before the present one, as (cosine, sine).
        rotation, rotation_before = (1.0, 0.0), (1.0, 0.0)
        link = scale = 0.0
        done = 0
        while done < self.iterations and abs(left) > target:
            image = system.product(basis) - link * basis_before
            diagonal = float(basis.dot(image))
            image = image - diagonal * basis
            next_link = float(image.norm())
            # The new column of the triangular factor: three entries above the one to be rotated.
            top = rotation_before[1] * link
            above = rotation_before[0] * link
            middle = rotation[0] * above + rotation[1] * diagonal
            corner = rotation[0] * diagonal - rotation[1] * above
            pivot = (corner**2 + next_link**2) ** 0.5
            scale = max(scale, abs(diagonal), next_link)
            if pivot <= rounding * scale:
                break
            rotation_before, rotation = rotation, (corner / pivot, next_link / pivot)
            search_before, search = (
                search,
                (basis - top * search_before - middle * search) / pivot,
            )
            x = x + (rotation[0] * left) * search
            left = -rotation[1] * left
            done += 1
            if next_link <= rounding * scale:
                break
            basis_before, basis, link = basis, image / next_link, next_link
        return Solution(x, done)


@dataclasses.dataclass(frozen=True)
class GMRES(LinearSolver):
    """The generalized minimal residual method of Saad and Schultz 1986, doi 10.1137/0907058.

    For any regular M: x minimizes the residual over the Krylov space, whose basis an Arnoldi
    process keeps. One product per iteration, and one more at every restart; memory:
    ``restart`` + 3 vectors.

    Args:
        iterations: Largest number of iterations, those of all restarts together.
        tolerance: Norm of the residual relative to b at which to stop.
        restart: Iterations after which the basis is dropped; ``None`` for never.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    restart: int | None = None

    def __post_init__(self) -> None:
        _check(self.iterations, self.tolerance)
        if self.restart is not None and self.restart < 1:
            raise ConfigurationError(f"restart is {self.restart}; at least 1, or None.")

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.
        """
        x, residual = system.first_residual()
        target = self.tolerance * float(system.right_hand_side.norm())
        done = 0
        while done < self.iterations and float(residual.norm()) > target:
            length = self.iterations - done
            length = length if self.restart is None else min(length, self.restart)
            correction, taken = self._cycle(system.product, residual, length, target)
            x = x + correction
            done += taken
            if done < self.iterations:
                before, residual = residual, system.right_hand_side - system.product(x)
                if not float(residual.norm()) < 0.999 * float(before.norm()):
                    break
        return Solution(x, done)

    @staticmethod
    def _cycle(
        product: Product, residual: Tensor, length: int, target: float
    ) -> tuple[Tensor, int]:
        """Return the correction after at most ``length`` iterations, and how many there were."""
        norm = float(residual.norm())
        basis = [residual / norm]
        # Column k of the Hessenberg matrix holds k + 2 entries.
        hessenberg = torch.zeros(length + 1, length, dtype=torch.float64)
        goal = torch.zeros(length + 1, dtype=torch.float64)
        goal[0] = norm
        weights = goal[:0]
        rounding = torch.finfo(residual.dtype).eps
        for k in range(length):
            image = product(basis[-1])
            size = float(image.norm())
            # Twice is enough to keep the basis orthogonal to rounding.
            for _ in range(2):
                parts = torch.stack([vector.dot(image) for vector in basis])
                for part, vector in zip(parts, basis, strict=True):
                    image = image - part * vector
                hessenberg[: k + 1, k] += parts.double().cpu()
            hessenberg[k + 1, k] = image.norm()
            small, right = hessenberg[: k + 2, : k + 1], goal[: k + 2]
            weights = torch.linalg.lstsq(small, right, driver="gelsd").solution
            left = float((right - small @ weights).norm())
            if left <= target or float(hessenberg[k + 1, k]) <= rounding * size:
                break
            basis.append(image / image.norm())
        correction = torch.zeros_like(residual)
        for weight, vector in zip(weights.tolist(), basis, strict=False):
            correction += weight * vector
        return correction, len(weights)


@dataclasses.dataclass(frozen=True)
class Neumann(LinearSolver):
    """The Neumann series x = α Σ_k (I − α M)ᵏ b, as x ← x + α (b − M x).

    It converges where all eigenvalues μ of M have abs(1 − α μ) < 1, and for a symmetric positive
    definite M at the rate 1 − 1/κ with α one over the largest eigenvalue. One product per
    iteration, and ``power_iterations`` where α is estimated; memory: three vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.
        step_size: α; ``None`` for one over the largest eigenvalue, from power iteration.
        power_iterations: Iterations of that.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    step_size: float | None = None
    power_iterations: int = 10

    def __post_init__(self) -> None:
        _check(self.iterations, self.tolerance)
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise ConfigurationError(f"step_size is {self.step_size}; a number above 0, or None.")
        if self.power_iterations < 1:
            raise ConfigurationError(
                f"power_iterations is {self.power_iterations}; at least 1 is needed."
            )

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.

        Raises:
            UnsupportedError: The series diverges.
        """
        step_size = self.step_size
        details = {}
        if step_size is None:
            largest = self._largest_eigenvalue(system)
            step_size = 1.0 / largest if largest > 0 else 1.0
            details["largest_eigenvalue"] = system.right_hand_side.new_tensor(largest)
        details["step_size"] = system.right_hand_side.new_tensor(step_size)
        x, done = _iterate(
            system,
            step_size,
            self.iterations,
            self.tolerance,
            f"Neumann does not converge at step_size={step_size:.3g}",
            "Lower step_size or leave it None, raise power_iterations, or",
        )
        return Solution(x, done, details)

    def _largest_eigenvalue(self, system: LinearSystem) -> float:
        """Return the growth of a random vector in the last power iteration."""
        rhs = system.right_hand_side
        generator = torch.Generator(rhs.device).manual_seed(system.key)
        vector = torch.randn(rhs.shape, generator=generator, dtype=rhs.dtype, device=rhs.device)
        growth = vector.norm()
        for _ in range(self.power_iterations):
            vector = system.product(vector / growth)
            # A zero vector stays one.
            growth = vector.norm().clamp_min(torch.finfo(rhs.dtype).tiny)
        return float(vector.norm())


@dataclasses.dataclass(frozen=True)
class FixedPoint(LinearSolver):
    """The adjoint fixed-point iteration x ← x + (b − M x), which is u ← ∂Φᵀ u + b for M = I − ∂Φᵀ.

    It converges for every contraction Φ, at the rate ρ, the spectral radius of ∂Φ (Grazzi et al.
    2020, arXiv 2006.16218). One product per iteration; memory: three vectors.

    Args:
        iterations: Largest number of iterations.
        tolerance: Norm of the residual relative to b at which to stop.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    iterations: int = 50
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        _check(self.iterations, self.tolerance)

    def solve(self, system: LinearSystem) -> Solution:
        """Return the iterate at which the residual fell below the tolerance, or the last.

        Args:
            system: The system.

        Raises:
            UnsupportedError: The iteration diverges, since the inner step is no contraction.
        """
        x, done = _iterate(
            system,
            1.0,
            self.iterations,
            self.tolerance,
            "FixedPoint does not converge, for the inner step is no contraction at this state",
            "Lower the inner learning rate, train θ for longer, or",
        )
        return Solution(x, done)


def _iterate(
    system: LinearSystem,
    step_size: float,
    iterations: int,
    tolerance: float,
    problem: str,
    remedy: str,
) -> tuple[Tensor, int]:
    """Take steps x ← x + α (b − M x) and watch the residual."""
    x, residual = system.first_residual()
    norm = float(system.right_hand_side.norm())
    first = float(residual.norm())
    left, done = first, 0
    while done < iterations and left > tolerance * norm:
        x = x + step_size * residual
        residual = system.right_hand_side - system.product(x)
        left = float(residual.norm())
        done += 1
        # A matrix that is not normal may let the residual grow for a while.
        if left > (100.0 if done < iterations else 1.0) * max(first, norm):
            raise UnsupportedError(
                f"{problem}: after {done} iterations the residual is {left / norm:.3g} times the "
                f"right-hand side. {remedy} use GMRES or NormalEquationCG, which need no "
                "contraction."
            )
    return x, done


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


def _damped(system: LinearSystem, damping: float) -> LinearSystem:
    """Return the system with ``damping`` on the diagonal."""
    if damping == 0:
        return system
    return dataclasses.replace(
        system,
        product=lambda x: system.product(x) + damping * x,
        transposed_product=lambda x: system.transposed_product(x) + damping * x,
    )
