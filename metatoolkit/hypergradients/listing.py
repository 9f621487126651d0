"""All estimators of the package, by name."""

from __future__ import annotations

from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.registry import estimators


def all_estimators() -> dict[str, type[Estimator]]:
    """Return the class of each registered estimator by its name, exact ones first."""
    order = ("exact", "iterative", "approximate", "stochastic")
    classes = [one for one in estimators.values() if isinstance(one, type)]
    found = {one.__name__: one for one in classes if issubclass(one, Estimator)}
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1].traits.kind), item[0])))
