"""Linear solvers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metatoolkit.components.registry import Registry

if TYPE_CHECKING:
    from metatoolkit.hypergradients.linear_solvers.base import LinearSolver

solvers: Registry[LinearSolver] = Registry(
    "linear solver", "metatoolkit.hypergradients.linear_solvers", "metatoolkit.solvers"
)
