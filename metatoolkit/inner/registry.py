"""Inner learners and schedules of their hyper-parameters by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metatoolkit.components.registry import Registry

if TYPE_CHECKING:
    from metatoolkit.inner.base import InnerLearner

schedules: Registry[Callable[[Any, int], float]] = Registry(
    "schedule", "metatoolkit.inner", "metatoolkit.schedules"
)
learners: Registry[InnerLearner] = Registry(
    "inner learner", "metatoolkit.inner", "metatoolkit.inner", parts=(schedules,), nested=True
)
