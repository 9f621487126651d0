"""How a comparison of estimators is shown: bars in a figure, a table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def draw(table: pandas.DataFrame) -> Figure:
    """Draw a comparison as bars.

    Args:
        table: :attr:`EstimatorComparison.table`.

    Returns:
        A figure with the error, the operations, the memory and the time of each estimator.
    """
    from matplotlib.figure import Figure

    shown = table[table["cosine"].notna()]
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
        values = shown[column].astype(float) * scale
        if column == "relative_error":
            # Below rounding all errors are the same.
            values = values.clip(lower=1e-16)
        if bool((values > 0).any()):
            axis.set_xscale("log")
        axis.barh(places, values.fillna(0.0), color="tab:blue", alpha=0.6)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].plot(
        shown["mean_relative_error"].astype(float).clip(lower=1e-16),
        places,
        "k|",
        markersize=9,
        label="of the mean over draws",
    )
    axes[0].legend(fontsize="small")
    axes[0].set_yticks(list(places), [str(name) for name in shown.index])
    axes[0].invert_yaxis()
    return figure


def print_table(table: pandas.DataFrame) -> None:
    """Print a comparison, as wide as the terminal.

    Args:
        table: :attr:`EstimatorComparison.table`.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title="Hypergradient estimators against the reference")
    headings = ("estimator", "cosine", "rel. error", "fwd", "bwd", "jvp", "hvp")
    for heading in (*headings, "FLOPs [F]", "peak [MiB]", "time [ms]"):
        left = heading == "estimator"
        # What stands in brackets is no markup, here and in the names.
        shown.add_column(Text(heading), justify="left" if left else "right", no_wrap=True)
    notes = []
    for name, row in table.iterrows():
        if row["cosine"] != row["cosine"]:
            notes.append(f"left out: {name}: {row['note']}")
            continue
        if isinstance(row["note"], str):
            notes.append(f"{name}: {row['note']}")
        passes = [str(int(row[kind])) for kind in ("forward", "backward", "jvp", "hvp")]
        flops = "" if row["flops"] != row["flops"] else f"{row['flops']:.1f}"
        memory, milliseconds = row["peak_bytes"] / 2**20, 1e3 * row["seconds"]
        peak = "" if memory != memory else f"{memory:.2f}"
        figures = (flops, peak, f"{milliseconds:.2f}")
        errors = (f"{row['cosine']:.4f}", f"{row['relative_error']:.1e}")
        shown.add_row(Text(str(name)), *errors, *passes, *figures)
    console = Console()
    if not console.is_terminal:
        # A pipe has no width of its own; take what the table needs.
        console = Console(width=Console(width=1000).measure(shown).maximum)
    console.print(shown)
    for note in notes:
        console.print(note, markup=False, highlight=False)
