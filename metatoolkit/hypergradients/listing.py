"""The list of all estimators that the command line prints."""

from __future__ import annotations

import argparse
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


def list_estimators(options: argparse.Namespace) -> int:
    """Print all estimators: what each computes, assumes and costs.

    Args:
        options: Not used; the command has no options.

    Returns:
        The exit code.
    """
    del options
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, estimator in all_estimators().items():
        for place, (part, words) in enumerate(vars(estimator.traits).items()):
            table.add_row(name if place == 0 else "", part, words)
        table.add_row()
    console.print(table)
    console.print("F is one forward pass over one training batch.")
    return 0
