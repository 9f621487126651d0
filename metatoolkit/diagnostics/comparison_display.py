"""How a comparison of estimators is shown: bars in a figure, a table as text."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import optional_import

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Mapping[str, Mapping[str, Any]]


def draw(rows: Rows) -> Figure:
    """Draw a comparison as bars.

    Args:
        rows: :attr:`EstimatorComparison.rows`.

    Returns:
        A figure with the error, the operations, the memory and the time of each estimator.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    with optional_import("the figure of a comparison"):
        from matplotlib.figure import Figure

    shown = {name: row for name, row in rows.items() if _known(row)}
    panels = [
        ("relative_error", "relative error of a call", 1.0),
        ("flops", "operations [forward passes]", 1.0),
        ("peak_bytes", "peak memory [MiB]", 2.0**-20),
        ("seconds", "time of a call [ms]", 1e3),
    ]
    figure = Figure(figsize=(14, 1.2 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    places = range(len(shown))
    for axis, (column, label, scale) in zip(axes, panels, strict=True):
        values = [float(row[column]) * scale for row in shown.values()]
        if column == "relative_error":
            values = _above_rounding(values)
        if any(value > 0 for value in values):
            axis.set_xscale("log")
        lengths = [0.0 if math.isnan(value) else value for value in values]
        axis.barh(places, lengths, color="tab:blue", alpha=0.6)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].plot(
        _above_rounding([float(row["mean_relative_error"]) for row in shown.values()]),
        places,
        "k|",
        markersize=9,
        label="of the mean over draws",
    )
    axes[0].legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize="small")
    axes[0].set_yticks(list(places), list(shown))
    axes[0].invert_yaxis()
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


def _above_rounding(values: Sequence[float]) -> list[float]:
    """Draw all errors below rounding at one place, and keep those that are not known."""
    return [value if math.isnan(value) else max(value, 1e-16) for value in values]


def _fixed(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
