"""Figures of benchmarks: error against cost, curves over sizes, ratios to the reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.declared import Benchmark
from metatoolkit.diagnostics.comparison_display import draw as draw_errors
from metatoolkit.diagnostics.log_ticks import plain_log_ticks
from metatoolkit.records.comparison import literal

if TYPE_CHECKING:
    import pandas

MARKERS = "osD^vPX*<>"


def draw(benchmark: Benchmark, frame: pandas.DataFrame, folder: Path) -> dict[str, list[Path]]:
    """Draw a benchmark as it asks for it.

    Args:
        benchmark: The benchmark.
        frame: Frame of :func:`benchmarks.harness.table.frame_of`.
        folder: Where to write.

    Returns:
        The files by the label of their case; of all cases in one figure, by the first.
    """
    known = frame[frame["time"].notna()]
    if known.empty:
        return {}
    if benchmark.figure == "errors":
        return {
            str(label): [_errors(part, folder / f"{benchmark.name}_{label}.png")]
            for label, part in known.groupby("case", sort=False)
        }
    path = folder / f"{benchmark.name}.png"
    figure = (_curves if benchmark.figure == "curves" else _ratios)(benchmark, known)
    figure.savefig(path, dpi=150)
    return {str(known["case"].iloc[0]): [path]}


def _errors(frame: pandas.DataFrame, path: Path) -> Path:
    """Draw error against costs, with the figure of a comparison of estimators."""
    rows = {
        row["contender"]: {
            "cosine": row["cosine"],
            "relative_error": row["error"],
            "relative_error_interval": (row["error_low"], row["error_high"]),
            "mean_relative_error": row["mean_error"],
            "flops": row["floor"],
            "peak_bytes": row["memory"] * 2**20,
            "seconds": row["time"],
            "seconds_interval": (row["time_low"], row["time_high"]),
        }
        for _, row in frame.iterrows()
    }
    draw_errors(rows).savefig(path, dpi=120)
    return path


def _curves(benchmark: Benchmark, frame: pandas.DataFrame) -> Any:
    """Draw memory and time over the sizes of the cases, a line for each contender."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    memory, time = figure.subplots(1, 2)
    # What tensors hold, and what resident memory grows by, make no curve together.
    counted = [label for label in frame["case"].unique() if benchmark.cases[label].counted]
    for place, (name, part) in enumerate(frame.groupby("contender", sort=False)):
        style = {"color": f"C{place % 10}", "marker": MARKERS[place % len(MARKERS)]}
        style |= {"label": literal(str(name)), "markersize": 5}
        scale = 1e3 / (part["size"] if benchmark.per_size else 1.0)
        ends = [part["time"] - part["time_low"], part["time_high"] - part["time"]]
        half = [scale * one for one in ends]
        held = part[part["case"].isin(counted)] if counted else part
        memory.plot(held["size"], held["memory"], **style)
        time.errorbar(part["size"], scale * part["time"], yerr=half, capsize=3, **style)
    memory.set(xscale="log", yscale="log", xlabel=benchmark.axis, ylabel="memory (MiB)")
    each = "time per step (ms)" if benchmark.per_size else "time (ms)"
    time.set(xscale="log", yscale="log", xlabel=benchmark.axis, ylabel=each)
    for axis in (memory, time):
        _few_ticks(axis, sorted(set(frame["size"])))
        axis.grid(alpha=0.3)
    figure.legend(*memory.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def _few_ticks(axis: Any, sizes: list[float]) -> None:
    """Mark the sizes that were measured, and numbers along y without exponents."""
    from matplotlib.ticker import NullLocator

    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())
    plain_log_ticks(axis.yaxis, 100)


def _ratios(benchmark: Benchmark, frame: pandas.DataFrame) -> Any:
    """Draw time and memory as multiples of the reference's, a row for each contender."""
    from matplotlib.figure import Figure

    cases = list(frame.groupby("case", sort=False))
    heights = [len(part) + 1.0 for _, part in cases]
    figure = Figure(figsize=(10, 1.0 + 0.27 * sum(heights)), layout="constrained")
    axes = figure.subplots(
        len(cases),
        2,
        squeeze=False,
        sharex="col",
        gridspec_kw={"height_ratios": heights},
    )
    for (label, part), (time, memory) in zip(cases, axes, strict=True):
        places = range(len(part))
        half = [part["ratio"] - part["ratio_low"], part["ratio_high"] - part["ratio"]]
        time.errorbar(part["ratio"], places, xerr=half, fmt="o", color="tab:blue", capsize=3)
        memory.plot(part["memory_ratio"], places, "D", color="tab:orange")
        names = [literal(name.replace("`", "")) for name in part["contender"]]
        for axis in (time, memory):
            axis.axvline(1, color="black", linewidth=1)
            axis.set(xscale="log", ylim=(len(part) - 0.5, -0.5))
            axis.set_yticks(places, names if axis is time else [""] * len(part))
            axis.grid(alpha=0.3)
        reference = str(part["reference"].iloc[0]).replace("`", "")
        time.set_title(literal(f"{label}: / {reference}"), fontsize="medium", loc="left")
    for axis, name in zip(axes[-1], ("time, quartiles", "memory"), strict=True):
        axis.set_xlabel(f"{name}, multiples of the reference's")
        plain_log_ticks(axis.xaxis, 50)
    return figure
