"""What lists the hypergradient estimators: `metatoolkit estimators`."""

from __future__ import annotations

import argparse
from typing import Any

from metatoolkit.cli.arguments import command


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: Where it goes.
    """
    purpose = "list all hypergradient estimators with what each assumes and costs"
    command(commands, "estimators", purpose, list_estimators)


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

    from metatoolkit.hypergradients.listing import all_estimators

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
