"""The benchmarks by name."""

from __future__ import annotations

import importlib

from benchmarks.harness.declared import Benchmark
from metatoolkit.errors import UnknownNameError

MODULES = ("estimators", "networks", "trajectory", "regression", "tasks", "forward_mode")
"""Modules of this package whose ``BENCHMARKS`` are listed, in the order of the pages."""


def benchmarks() -> dict[str, Benchmark]:
    """Return all benchmarks by name."""
    found = [importlib.import_module(f"benchmarks.{name}").BENCHMARKS for name in MODULES]
    return {one.name: one for several in found for one in several}


def find(name: str) -> Benchmark:
    """Return a benchmark.

    Args:
        name: Its name.

    Raises:
        UnknownNameError: There is no such benchmark.
    """
    known = benchmarks()
    if name not in known:
        raise UnknownNameError("benchmark", name, known)
    return known[name]
