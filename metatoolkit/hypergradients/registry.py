"""Estimators by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metatoolkit.components.registry import Registry
from metatoolkit.hypergradients.linear_solvers.registry import solvers

if TYPE_CHECKING:
    from metatoolkit.hypergradients.base import Estimator

estimators: Registry[Estimator] = Registry(
    "estimator", "metatoolkit.hypergradients", "metatoolkit.estimators", parts=(solvers,)
)
