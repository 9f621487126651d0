"""Every estimator on every application: one study for each, and all of them side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, UnknownNameError, optional_import
from metatoolkit.experiments.claims import Claim, Difference, paired_difference
from metatoolkit.experiments.figures import draw_differences, mark_margin
from metatoolkit.experiments.studies import SIGNAL, Column, Row, Study
from metatoolkit.records.comparison import literal

if TYPE_CHECKING:
    import pandas

NAME = "estimators_by_application"
"""Name of the comparison on the command line and of its figure's file."""

TITLE = "Every estimator on every application"
"""Title of the comparison."""

REFERENCE = "Unrolled, 1 step"
"""Row that the others are compared with: second order, the exact one-step hypergradient."""


def _named(name: str, **options: Any) -> dict[str, Any]:
    return {"method": "meta", "estimator": {"name": name, **options}}


ESTIMATORS: Mapping[str, Mapping[str, Any]] = {
    REFERENCE: {"method": "second_order"},
    "OneStep": _named("OneStep"),
    "FiniteDifference": _named("FiniteDifference"),
    "SAMA": _named("SAMA"),
    "GuidedEvoGrad": _named("GuidedEvoGrad"),
    "EvoGrad": {"method": "evograd"},
    "Unrolled, 5 steps": _named("Unrolled", steps=5),
    "ForwardMode, 5 steps": _named("ForwardMode", steps=5),
    "ForwardGradient, 5 steps": _named("ForwardGradient", steps=5),
    "SOBA": _named("SOBA"),
    "Penalty": _named("Penalty"),
    "Implicit, GMRES(5)": _named("Implicit", solver={"name": "GMRES", "iterations": 5}),
    "EvolutionStrategies": _named("EvolutionStrategies"),
}
"""Configuration entries of each estimator, by label."""

COSTS = (
    Column("operations [base steps]", "info.flops", over="info.base_flops", spread=False),
    Column(
        "memory [base steps]",
        "info.peak_memory_bytes",
        over="info.base_peak_memory_bytes",
        spread=False,
    ),
    Column(
        "time [base steps]", "info.seconds_of_meta_step", over="info.base_seconds", spread=False
    ),
)
"""What one hypergradient costs, as a multiple of one step of the inner learner."""

NOTE = (
    f"Each difference is to the score of {REFERENCE}, the exact one-step hypergradient, seed by "
    "seed, with its 95 % interval. The costs of one hypergradient are in steps of the inner "
    "learner, as the range over the applications; where it looks ahead five steps, it also moves λ "
    "a fifth as often."
)
"""What the table and the figure show."""


@dataclass(frozen=True)
class EstimatorStudy(Study):
    """The estimators on one application; see :func:`estimator_study`.

    Attributes:
        score: Header of the column that is compared.
        margin: The largest difference in it that does not matter.
        absent: Why an estimator has no row here, in a word or two, by label.
    """

    score: str = ""
    margin: float = 1.0
    absent: Mapping[str, str] = field(default_factory=dict)


def estimator_study(
    application: str,
    title: str,
    score: Column,
    seeds: Sequence[int],
    *,
    absent: Mapping[str, str],
    updates: Mapping[str, Any] | None = None,
    margin: float = 1.0,
    note: str = "",
) -> EstimatorStudy:
    """Return the study of all estimators on an application.

    Args:
        application: Name of the application.
        title: Title of the table.
        score: What the estimators are compared by; larger is better.
        seeds: Seeds of each row.
        absent: Labels of estimators that do not apply, each with the reason in a word or two.
        updates: Configuration entries of all rows.
        margin: The largest difference to the exact one-step hypergradient that does not matter.
        note: Words below the table.

    Returns:
        The study, called like the application with ``_estimators`` behind.

    Raises:
        UnknownNameError: ``absent`` names an estimator that is not compared.
    """
    for label in absent:
        if label not in ESTIMATORS:
            raise UnknownNameError("estimator", label, ESTIMATORS)
    labels = [label for label in ESTIMATORS if label not in absent]

    def draw(frame: pandas.DataFrame, path: Path) -> None:
        headers = [column.header for column in COSTS]
        draw_differences(frame, path, REFERENCE, score.header, headers, margin)

    return EstimatorStudy(
        name=f"{application}_estimators",
        title=title,
        experiment=f"applications.{application}.experiment",
        rows={label: Row({**ESTIMATORS[label], **(updates or {})}) for label in labels},
        columns=(score, SIGNAL, *COSTS),
        seeds=tuple(seeds),
        draw=draw,
        claims=tuple(
            Claim(label, "level", REFERENCE, score.header, margin)
            for label in labels
            if label != REFERENCE
        ),
        note=note,
        usual_seeds=0,
        score=score.header,
        margin=margin,
        absent=absent,
    )


@dataclass(frozen=True)
class Cell:
    """One estimator on one application.

    Attributes:
        difference: Score less that of the reference; ``None`` where there is none.
        costs: Multiples of a base step by header, NaN where not measured.
        reason: Why there is no difference, in a word or two.
        seeds: Seeds that the reference has.
    """

    difference: Difference | None
    costs: Mapping[str, float]
    reason: str = ""
    seeds: int = 0


def compare(
    found: Sequence[tuple[EstimatorStudy, pandas.DataFrame]],
) -> dict[str, dict[str, Cell]]:
    """Put the estimators of several applications side by side.

    Args:
        found: Studies with their frames, see :func:`metatoolkit.experiments.studies.collect`.

    Returns:
        Cells by the label of the estimator and the name of the application.

    Raises:
        ConfigurationError: There is no study.
    """
    if not found:
        raise ConfigurationError("no application has a study of its estimators.")
    return {
        label: {study.application: _cell(study, frame, label) for study, frame in found}
        for label in ESTIMATORS
    }


def _cell(study: EstimatorStudy, frame: pandas.DataFrame, label: str) -> Cell:
    own = frame[frame["row"] == label]
    headers = [column.header for column in COSTS]
    costs = {h: float(own[h].mean()) if len(own) else math.nan for h in headers}
    if label in study.absent:
        return Cell(None, costs, study.absent[label])
    if own.empty:
        return Cell(None, costs, "not run")
    if label == REFERENCE:
        return Cell(None, costs, f"{own[study.score].mean():.2f}")
    seeds = int((frame["row"] == REFERENCE).sum())
    found = paired_difference(frame, label, REFERENCE, study.score)
    return Cell(found, costs, "no pair", seeds)


def table(found: Sequence[tuple[EstimatorStudy, pandas.DataFrame]]) -> list[list[str]]:
    """Return the cells of the table: a header line, then a line for each estimator.

    Args:
        found: As for :func:`compare`.

    Returns:
        Label, difference to the reference with its 95 % interval for each application (the
        reference has its mean score there), and the costs, each as the range over the applications.
    """
    studies = [study for study, _ in found]
    scores = [f"{study.application}, {study.score}" for study in studies]
    lines = [["", *scores, *(column.header for column in COSTS)]]
    for label, cells in compare(found).items():
        told = [_told(cells[study.application]) for study in studies]
        costs = [_range([cell.costs[c.header] for cell in cells.values()]) for c in COSTS]
        lines.append([label, *told, *costs])
    return lines


def _told(cell: Cell) -> str:
    if cell.difference is None:
        return cell.reason
    found = cell.difference
    told = f"{found.mean:+.2f}"
    if found.pairs > 1:
        told += f" ({found.low:+.2f} to {found.high:+.2f})"
    return told if found.pairs == cell.seeds else f"{told}, {found.pairs} of {cell.seeds} seeds"


def _range(values: Sequence[float]) -> str:
    known = [f"{value:.1f}" for value in sorted(v for v in values if not math.isnan(v))]
    if not known:
        return "–"
    return known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def draw(found: Sequence[tuple[EstimatorStudy, pandas.DataFrame]], path: Path) -> None:
    """Draw each estimator's difference on each application, and beside it what it costs.

    Args:
        found: As for :func:`compare`.
        path: File to write.
    """
    with optional_import("a figure"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter

    cells, count = compare(found), len(found)
    labels = list(cells)
    figure = Figure(figsize=(3 + 2.2 * count + 1.8 * len(COSTS), 5.5), layout="constrained")
    ratios = [1.3] * count + [1.0] * len(COSTS)
    axes: Sequence[Any] = figure.subplots(
        1, len(ratios), sharey=True, gridspec_kw={"width_ratios": ratios}
    )
    for number, (axis, (study, _)) in enumerate(zip(axes, found, strict=False)):
        _draw_differences(
            axis, study, [cells[label][study.application] for label in labels], number
        )
    for axis, column in zip(axes[count:], COSTS, strict=True):
        for number, (study, _) in enumerate(found):
            values = [cells[label][study.application].costs[column.header] for label in labels]
            axis.plot(values, range(len(labels)), linestyle="", alpha=0.7, **_style(number))
        axis.set(xscale="log", xlabel=literal(column.header))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.axvline(1, color="black", linewidth=1)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(labels)), [literal(label) for label in labels])
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def _style(number: int) -> dict[str, str]:
    """Return marker and color of an application."""
    return {"marker": "osD^vP*X"[number % 8], "color": f"C{number % 10}"}


def _draw_differences(axis: Any, study: EstimatorStudy, cells: Sequence[Cell], number: int) -> None:
    mark_margin(axis, study.margin)
    axis.axvline(0, color="black", linewidth=1)
    for place, cell in enumerate(cells):
        found = cell.difference
        if found is None:
            axis.annotate(
                literal(cell.reason),
                (0, place),
                ha="center",
                va="center",
                fontsize="x-small",
                bbox={"color": "white", "pad": 1},
            )
            continue
        half = [[found.mean - found.low], [found.high - found.mean]] if found.pairs > 1 else None
        axis.errorbar(found.mean, place, xerr=half, capsize=3, **_style(number))
    axis.set_title(literal(study.application.replace("_", " ")), fontsize="medium")
    axis.set_xlabel(literal(f"Δ {study.score}"), fontsize="small")
    axis.grid(alpha=0.3)
