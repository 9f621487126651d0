"""Registries in which a test may register components that are forgotten afterwards."""

from __future__ import annotations

import pytest

from metatoolkit.hypergradients import estimators
from metatoolkit.hypergradients.linear_solvers import solvers
from metatoolkit.inner import learners
from metatoolkit.metaparameters import modules


def set_apart(patch: pytest.MonkeyPatch) -> None:
    """Let all that is registered from now on be gone with the patch."""
    for registry in (estimators, learners, solvers, modules):
        list(registry)
        patch.setattr(registry, "_components", dict(registry._components))
