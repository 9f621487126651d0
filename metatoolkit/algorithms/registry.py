"""Algorithms by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metatoolkit.components.registry import Registry
from metatoolkit.hypergradients.linear_solvers.registry import solvers

if TYPE_CHECKING:
    from metatoolkit.algorithms.assembly import Algorithm

algorithms: Registry[Algorithm] = Registry(
    "algorithm", "metatoolkit.algorithms", "metatoolkit.algorithms", parts=(solvers,)
)
