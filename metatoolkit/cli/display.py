"""Tables and values on the terminal: fitted and colored on one, plain text elsewhere."""

from __future__ import annotations

import datetime
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metatoolkit.records.terminal import text

STATUS_COLORS = {
    "COMPLETED": "green",
    "RUNNING": "cyan",
    "FAILED": "red",
    "INTERRUPTED": "yellow",
    "PROBABLY_DEAD": "magenta",
    "TIMEOUT": "yellow",
}
GAP = 2


def span(seconds: float | None) -> str:
    """Write a duration.

    Args:
        seconds: Its length.

    Returns:
        For instance ``2h03m``.
    """
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}m{rest:02}s"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h" if days else f"{hours}h{minutes:02}m"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], essential: int | None = None
) -> None:
    """Print a table.

    Args:
        columns: The heads.
        rows: The values.
        essential: How many columns are shown in any case; further ones only where they fit, the
            first ones first. All of them by default.
    """
    columns = [text(column) for column in columns]
    cells = [[text(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain(columns, cells)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widths = _widths(columns, cells)
    shown = _fitting(widths, len(columns) if essential is None else essential)
    hidden = [column for index, column in enumerate(columns) if index not in shown]
    # One blank and the box's own column make the gap that widths are reckoned with.
    padding = (0, GAP - 1, 0, 0)
    table = Table(box=SIMPLE_HEAD, padding=padding, pad_edge=False, show_edge=False)
    for index in shown:
        table.add_column(Text(columns[index]), overflow="fold")
    for row in cells:
        entries = [Text(row[index], style=STATUS_COLORS.get(row[index], "")) for index in shown]
        table.add_row(*entries)
    Console().print(table)
    if hidden:
        print(f"{len(hidden)} more: {', '.join(hidden)}")


def print_pairs(pairs: Sequence[tuple[str, Any]]) -> None:
    """Print names and values below each other.

    Args:
        pairs: Names and values.
    """
    shown = [(text(name), value) for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {text(value)}".rstrip())


def print_json(data: Any) -> None:
    """Print data for other programs.

    Args:
        data: Plain data; times become ISO 8601 in UTC, NaN and infinity text, since JSON has none.
    """
    print(json.dumps(as_json(data), indent=2))


def as_json(value: Any) -> Any:
    """Make data such that JSON can hold it.

    Args:
        value: Plain data.

    Returns:
        The same with text for times, NaN, infinity and everything else that JSON has not.
    """
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    if isinstance(value, datetime.datetime):
        return f"{value.isoformat()}Z"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def heading(title: str) -> None:
    """Print a heading, bold on a terminal.

    Args:
        title: The heading.
    """
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{title}{plain}")


def _widths(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [
        max([len(column), *(len(row[index]) for row in cells)])
        for index, column in enumerate(columns)
    ]


def _fitting(widths: list[int], essential: int) -> list[int]:
    """Choose columns; one that is too wide does not keep narrower ones after it away."""
    available = shutil.get_terminal_size().columns
    used = sum(width + GAP for width in widths[:essential]) - GAP
    shown = list(range(essential))
    for index, width in enumerate(widths[essential:], essential):
        if used + width + GAP <= available:
            used += width + GAP
            shown.append(index)
    return shown


def _print_plain(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = _widths(columns, cells)
    for row in [columns, *cells]:
        padded = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print((" " * GAP).join(padded).rstrip())
