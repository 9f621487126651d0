"""The linear systems of the adjoints at the fixed points of one or several inner problems."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.hypergradients.linear_solvers import LinearSolver, LinearSystem, Solution
from metatoolkit.hypergradients.linear_solvers.side_by_side import solve_each
from metatoolkit.hypergradients.linearization import StepLinearization
from metatoolkit.hypergradients.products import Adjoint
from metatoolkit.hypergradients.solution_share import checked_share, relative_residual
from metatoolkit.randomness import Keys


@dataclasses.dataclass(frozen=True)
class Solved:
    """The solution of one system.

    Attributes:
        vector: Solution, in the variable that the solver sees.
        iterations: Iterations of the solver.
        residual: True residual relative to the right-hand side, of the system without damping.
        jvp: Products with I − ∂Φ.
        hvp: Products with its transpose.
        details: What the solver tells, and ``share`` where that is not 1.
    """

    vector: Tensor
    iterations: int
    residual: float
    jvp: int
    hvp: int
    details: dict[str, Tensor]


class AdjointSystems:
    """The systems (I − ∂Φ)ᵀ u = ∂L/∂s of independent problems, whose step is one linearization.

    Each is solved by itself, and products are taken for all at once. A vector over the variables
    of all problems is cut into those of each; norms and inner products never mix them.

    Args:
        step: The step, of one problem or of several.
        count: Number of problems, the leading dimension of each variable where it is above 1.
        factor: D of the symmetric system H w = ∂L/∂s with w = D u, of the length of
            all variables; ``None`` for the system in u.

    Raises:
        UnsupportedError: The problems share a variable.
    """

    def __init__(self, step: StepLinearization, count: int, factor: Tensor | None = None) -> None:
        self._step, self._count, self._factor = step, count, factor
        self._sizes = [size // count for size in step.sizes]
        shared = [name for name, one in step.shapes.items() if count > 1 and one[:1] != (count,)]
        if shared:
            raise UnsupportedError(
                f"{shared[0]} is a variable of the fixed point and common to all tasks, so that "
                "their systems cannot be told apart. Use through='parameters', or another learner."
            )

    def cut(self, vector: Tensor) -> list[Tensor]:
        """Return the part of a vector that belongs to each problem.

        Args:
            vector: Vector over all variables.
        """
        if self._count == 1:
            return [vector]
        parts = vector.split([self._count * size for size in self._sizes])
        return list(torch.cat([part.view(self._count, -1) for part in parts], 1))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the vector that :meth:`cut` makes these parts of.

        Args:
            parts: A vector for each problem.
        """
        if self._count == 1:
            return parts[0]
        columns = torch.stack(list(parts)).split(self._sizes, 1)
        return torch.cat([column.reshape(-1) for column in columns])

    def solve(
        self, solver: LinearSolver, mean: Tensor, key: int, start: Tensor | None = None
    ) -> tuple[list[Solved], Adjoint]:
        """Return the solutions, and the mean over the problems of uᵀ ∂Φ/∂λ.

        Args:
            solver: The solver.
            mean: Gradient of the mean outer loss in all variables.
            key: Random key, of each problem where there are several.
            start: First iterate, for a single problem.

        Raises:
            NonFiniteError: A product or the solution is NaN or infinite.
            UnsupportedError: A solution is worse than zero, or nothing but zero.
        """
        step, factor = self._step, self._factor
        sides = self.cut(self._count * mean if self._count > 1 else mean)
        # Norms of what is tiny or huge are none in float32: solvers see an exact multiple of it.
        scales = [_power_of_two(side) for side in sides]
        rights = [side / scale for side, scale in zip(sides, scales, strict=True)]
        keys = key.each() if isinstance(key, Keys) else [key]
        check = functools.partial(step.check, "a product with the Jacobian of the inner step")
        systems = [
            LinearSystem(
                product=_unused,
                transposed_product=_unused,
                right_hand_side=right,
                start=None if start is None else start / scale,
                key=own,
                rounding=step.rounding,
                check=check,
            )
            for right, scale, own in zip(rights, scales, keys, strict=True)
        ]
        jvp, hvp = [0] * self._count, [1] * self._count

        zero = torch.zeros_like(sides[0])

        def products(given: dict[int, Tensor], forward: bool) -> dict[int, Tensor]:
            for number in given:
                (jvp if forward else hvp)[number] += 1
            joined = self.join([given.get(number, zero) for number in range(self._count)])
            if forward:
                image = step.product(joined)
            else:
                image = step.transposed_product(joined, factor)
            # The solver sees the part of one problem alone, whose variables have no names.
            if self._count > 1 or not solver.checks_products:
                check(image)
            images = self.cut(image)
            return {number: images[number] for number in given}

        # Once, and not for each product.
        with double_backward_kernels():
            found = solve_each(
                solver,
                systems,
                lambda given: products(given, False),
                lambda given: products(given, factor is None),
            )
        vectors = [one.vector * scale for one, scale in zip(found, scales, strict=True)]
        joined = self.join(vectors)
        u = joined if factor is None else joined / factor
        step.check("the solution of the linear system", u)
        image, through = step.pull_back(u)
        images = [one / scale for one, scale in zip(self.cut(image), scales, strict=True)]
        each = list(zip(found, images, rights, strict=True))
        shares = [checked_share(solver, *one) for one in each]
        if self._count > 1:
            if any(share != 1.0 for share in shares):
                parts = [s * part for s, part in zip(shares, self.cut(u), strict=True)]
                _, through = step.pull_back(self.join(parts))
            through = [None if t is None else t / self._count for t in through]
        elif shares[0] != 1.0:
            through = [None if t is None else shares[0] * t for t in through]
        solved = [
            Solved(
                vector=vector,
                iterations=one.iterations,
                residual=relative_residual(right - share * image, right),
                jvp=jvp[number],
                hvp=hvp[number],
                details=_told(one, share),
            )
            for number, (vector, share, (one, image, right)) in enumerate(
                zip(vectors, shares, each, strict=True)
            )
        ]
        return solved, through


def carried_vector(estimator: str, carried: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a vector that an estimator carries, in the type and on the device of another.

    Args:
        estimator: Name of the estimator, for the message.
        carried: The vector, or ``None`` before the first call.
        like: Vector over the variables of the present step.

    Raises:
        ConfigurationError: The vector has another length.
    """
    if carried is None:
        return None
    if carried.shape != like.shape:
        raise ConfigurationError(
            f"the vector that {estimator} carries has {carried.numel()} entries, but the inner "
            f"state has {like.numel()}; make a new {estimator} for another model or inner learner."
        )
    return carried.to(like)


def _told(solution: Solution, share: float) -> dict[str, Tensor]:
    if share == 1.0:
        return dict(solution.details)
    return {**solution.details, "share": torch.tensor(share, dtype=torch.float64)}


def _unused(vector: Tensor) -> Tensor:
    raise AssertionError("products are taken for all systems at once")


def _power_of_two(vector: Tensor) -> float:
    """Return the power of two below the largest entry, 1 for zeros."""
    largest = float(vector.abs().max())
    return 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
