"""What was measured as a frame, and as the table of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.harness.declared import Benchmark
from benchmarks.harness.measure import FORWARD
from metatoolkit.errors import optional_import

if TYPE_CHECKING:
    import pandas

    from metatoolkit.records import Run

MIB = 2.0**20


def frame_of(benchmark: Benchmark, runs: Mapping[str, Run]) -> pandas.DataFrame:
    """Return what the database holds of a benchmark.

    Args:
        benchmark: The benchmark.
        runs: The run of each case, by label.

    Returns:
        A line for each contender of each case that was run. ``time``, ``ratio`` (to the time of the
        reference, turn by turn) and ``error`` are medians (of errors the mean, over draws), each
        with ``…_low`` and ``…_high``: the quartiles. ``floor`` is the number of operations in
        forward passes, ``passes`` the time in those. What is not known is NaN.
    """
    with optional_import("the table of a benchmark"):
        import pandas

    lines = []
    for label, run in runs.items():
        case, rows = benchmark.cases[label], run.result
        timed = [name for name in case.contenders if rows.get(name, {}).get("seconds")]
        reference = case.reference if case.reference in timed else next(iter(timed), "")
        unit = _quartiles(rows[FORWARD]["seconds"])["time"]
        for name in case.contenders:
            row = rows.get(name, {"note": "not measured in this run"})
            memory = "peak_bytes" if case.counted else "resident_bytes"
            base = rows.get(reference, {})
            pairs = zip(row.get("seconds", []), base.get("seconds", []), strict=False)
            line: dict[str, Any] = {
                "case": label,
                "contender": name,
                "size": case.size,
                "reference": reference,
                **_quartiles(row.get("seconds", []), "time"),
                **_quartiles([own / other for own, other in pairs], "ratio"),
                **_quartiles(row.get("errors", []), "error"),
                "mean_error": row.get("mean_error", math.nan),
                "random": len(row.get("errors", [])) > 1,
                "cosine": _mean(row.get("cosines", [])),
                "floor": row.get("flops", math.nan),
                "memory": row.get(memory, math.nan) / MIB,
                "memory_ratio": row.get(memory, math.nan) / (base.get(memory) or math.nan),
                "whole": row.get("whole_bytes", math.nan) / MIB,
                "cost": row.get("cost", {}),
                "note": _note(row),
            }
            line["error"] = _mean(row.get("errors", []))
            line["passes"] = line["time"] / unit
            lines.append(line)
    return pandas.DataFrame(lines)


def _note(row: Mapping[str, Any]) -> str:
    missing = row.get("missing")
    if missing:
        return f"not installed: the module `{missing}` cannot be imported"
    return str(row.get("note", ""))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _quartiles(values: Sequence[float], name: str = "time") -> dict[str, float]:
    """Return median and quartiles."""
    import numpy

    low, middle, high = numpy.quantile(values, [0.25, 0.5, 0.75]) if values else [math.nan] * 3
    return {name: float(middle), f"{name}_low": float(low), f"{name}_high": float(high)}


def table(frame: pandas.DataFrame, with_case: bool) -> list[str]:
    """Return the lines of a Markdown table, with notes on what is not there below it.

    Args:
        frame: Frame of :func:`frame_of`, or a part of it.
        with_case: Whether the first column names the case.
    """
    known = frame[frame["time"].notna()]
    passes = known["cost"].map(lambda cost: any(cost.get(kind) for kind in _KINDS)).any()
    columns = [name for name in _COLUMNS if not known.empty and _COLUMNS[name][0](known)]
    head = [*(["case"] if with_case else []), "contender", *columns]
    if passes and not with_case:
        head.append("forward, backward, JVP, HVP")
    words = 1 + with_case
    rule = "|---" * words + "|---:" * (len(head) - words) + "|"
    lines = [f"| {' | '.join(head)} |", rule]
    notes: list[str] = []
    for _, row in frame.iterrows():
        cells = [row["case"]] if with_case else []
        cells.append(row["contender"])
        if math.isnan(row["time"]):
            cells.append("not installed" if row["note"].startswith("not installed") else "failed")
            cells += [""] * (len(head) - len(cells))
        else:
            cells += [_COLUMNS[name][1](row) for name in columns]
            if passes and not with_case:
                cost = row["cost"]
                cells.append(", ".join(str(cost[k]) for k in _KINDS) if cost else "")
        if row["note"] and f"- {row['contender']}: {row['note']}" not in notes:
            notes.append(f"- {row['contender']}: {row['note']}")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *notes, ""] if notes else [*lines, ""]


_KINDS = ("forward", "backward", "jvp", "hvp")


def _number(value: float, digits: int = 3) -> str:
    """Write a number with so many digits that count, and no exponent."""
    if math.isnan(value):
        return ""
    behind = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(behind, 4)}f}"


def _spread(row: Any, name: str, scale: float = 1.0) -> str:
    middle, low, high = (scale * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    told = _number(middle)
    return told if low == high or not told else f"{told} ({_number(low)}–{_number(high)})"


def _any(name: str) -> Any:
    return lambda frame: frame[name].notna().any()


_COLUMNS: dict[str, tuple[Any, Any]] = {
    "cosine": (
        lambda f: (f["cosine"] < 0.9995).any(),
        lambda r: "" if math.isnan(r["cosine"]) else f"{r['cosine']:.3f}",
    ),
    "error": (_any("error"), lambda r: "" if math.isnan(r["error"]) else f"{r['error']:.0e}"),
    "time (ms)": (_any("time"), lambda r: _spread(r, "time", 1e3)),
    "time / reference": (
        lambda f: f["case"].map(f.groupby("case").size()).gt(1).any(),
        lambda r: _spread(r, "ratio"),
    ),
    "floor (F)": (_any("floor"), lambda r: _number(r["floor"])),
    "time (F)": (_any("floor"), lambda r: _number(r["passes"])),
    "memory (MiB)": (_any("memory"), lambda r: _number(r["memory"])),
    "memory / reference": (
        lambda f: f["case"].map(f.groupby("case").size()).gt(1).any(),
        lambda r: _number(r["memory_ratio"]),
    ),
    "whole process (MiB)": (
        lambda f: f["floor"].isna().all(),
        lambda r: _number(r["whole"]),
    ),
}
"""Whether a column is shown, and how a cell of it is written."""
