"""All estimators of the package, by name."""

from __future__ import annotations

import inspect

from metatoolkit.hypergradients.base import Estimator


def all_estimators() -> dict[str, type[Estimator]]:
    """Return each estimator of the package by its name, exact ones first."""
    from metatoolkit import hypergradients

    found = {
        name: value
        for name, value in vars(hypergradients).items()
        if inspect.isclass(value) and issubclass(value, Estimator) and not inspect.isabstract(value)
    }
    order = ("exact", "iterative", "approximate", "stochastic")
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1].traits.kind), item[0])))
