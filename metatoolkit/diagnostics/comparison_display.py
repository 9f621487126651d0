"""How a comparison of estimators is shown: error against cost in a figure, a table as text."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.diagnostics.log_ticks import plain_log_ticks
from metatoolkit.errors import optional_import

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Mapping[str, Mapping[str, Any]]

_MARKERS = "osD^vPX"
"""As many as have no divisor in common with the ten colors, so that pairs differ for long."""
_ROUNDING = 1e-16
_LONG = 200.0
"""Ratio of the ends of an axis from which on powers of ten alone are marked."""


def draw(rows: Rows) -> Figure:
    """Draw the error of each estimator against the costs of a call.

    Args:
        rows: :attr:`EstimatorComparison.rows`. Where a row has ``relative_error_interval`` or
            ``seconds_interval``, a pair of ends, it is drawn as a line through the point.

    Returns:
        A figure with a panel each for time, operations and memory. A point is a call, and the
        small mark in its color the mean over the draws of a random estimator. Errors below
        rounding are drawn at 1e-16.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    with optional_import("the figure of a comparison"):
        from matplotlib.figure import Figure

    shown = {name: row for name, row in rows.items() if _known(row)}
    panels = [
        ("seconds", "time of a call [ms]", 1e3),
        ("flops", "operations [forward passes]", 1.0),
        ("peak_bytes", "peak memory [MiB]", 2.0**-20),
    ]
    figure = Figure(figsize=(15, max(4.5, 1.0 + 0.2 * len(shown))), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    points = []
    for axis, (column, label, scale) in zip(axes, panels, strict=True):
        for place, row in enumerate(shown.values()):
            error, mean = (
                max(float(row[entry]), _ROUNDING)
                for entry in ("relative_error", "mean_relative_error")
            )
            color, cost = f"C{place % 10}", scale * float(row[column])
            drawn = axis.errorbar(
                cost,
                error,
                xerr=_ends(row, column, scale),
                yerr=_ends(row, "relative_error", 1.0),
                fmt=_MARKERS[place % len(_MARKERS)],
                color=color,
                linewidth=1,
            )
            points.append(drawn[0])
            if mean != error:
                axis.plot(cost, mean, "_", color=color)
        if shown:
            axis.set_yscale("log")
        if any(float(row[column]) > 0 for row in shown.values()):
            axis.set_xscale("log")
            plain_log_ticks(axis.xaxis, _LONG)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative error of a call")
    # Once for both panels, and without the intervals.
    named = points[: len(shown)]
    figure.legend(named, list(shown), loc="outside right center", fontsize="small")
    return figure


def print_table(rows: Rows) -> None:
    """Print a comparison, on a terminal no wider than that.

    Args:
        rows: :attr:`EstimatorComparison.rows`.
    """
    headings = ["estimator", "cosine", "rel. error", "fwd", "bwd", "jvp", "hvp"]
    headings += ["FLOPs [F]", "peak [MiB]", "time [ms]"]
    cells, notes = [headings], []
    for name, row in rows.items():
        note = row.get("note")
        if not _known(row):
            notes.append(f"left out: {name}: {note}")
            continue
        if isinstance(note, str):
            notes.append(f"{name}: {note}")
        passes = [str(int(row[kind])) for kind in ("forward", "backward", "jvp", "hvp")]
        figures = [
            _fixed(row["flops"], 1),
            _fixed(row["peak_bytes"] / 2**20, 2),
            _fixed(1e3 * row["seconds"], 2),
        ]
        errors = [f"{row['cosine']:.4f}", f"{row['relative_error']:.1e}"]
        cells.append([name, *errors, *passes, *figures])
    lines = align(cells)
    lines.insert(1, "-" * len(lines[0]))
    # A pipe has no width of its own; take what the table needs.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("Hypergradient estimators against the reference")
    for line in lines:
        print(line[:width])
    for note in notes:
        print(note)


def align(cells: Sequence[Sequence[str]]) -> list[str]:
    """Write cells in columns: the first to the left, all others to the right.

    Args:
        cells: A list for each line, all of one length.

    Returns:
        The lines.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [first.ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        )
        for first, *others in cells
    ]


def _known(row: Mapping[str, Any]) -> bool:
    return not math.isnan(row.get("cosine", math.nan))


def _ends(row: Mapping[str, Any], column: str, scale: float) -> list[list[float]] | None:
    """Return how far the ends of an interval are from its point, if there is one."""
    if f"{column}_interval" not in row:
        return None
    value = float(row[column])
    low, high = (float(end) for end in row[f"{column}_interval"])
    return [[scale * max(0.0, value - low)], [scale * max(0.0, high - value)]]


def _fixed(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
