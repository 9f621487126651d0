"""Studies: configurations of an experiment side by side over seeds, drawn from the database."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import UnknownNameError, optional_import
from metatoolkit.experiments import claims
from metatoolkit.experiments.claims import Claim as Claim
from metatoolkit.experiments.jobs import Job
from metatoolkit.experiments.recorded_jobs import completed_runs, digest, placed

if TYPE_CHECKING:
    with optional_import("the table of a study"):
        import pandas

    from metatoolkit.records import Database


@dataclass(frozen=True)
class Column:
    """A column of a study's table.

    Attributes:
        header: Its name, with the unit.
        path: Where the value is in a run: ``result.…``, ``info.…``, ``config.…``, or
            ``metrics.…`` for the last value of a metric.
        scale: Factor from the recorded value to the shown one.
        digits: Digits behind the point.
        spread: Whether the table shows the standard deviation over seeds.
        exact: Whether the value does not depend on the seed, as operations do not, so that claims
            on it are decided by one run of each row.
        over: Where the value is that it is divided by; ``None`` for none.
    """

    header: str
    path: str
    scale: float = 1.0
    digits: int = 2
    spread: bool = True
    exact: bool = False
    over: str | None = None


SIGNAL = Column("signal / noise", "metrics.hypergradient_signal_to_noise", digits=3, spread=False)
"""Signal-to-noise ratio of hypergradients about the end of a run, where an estimator has one."""


@dataclass(frozen=True)
class Row:
    """A row of a study's table: one configuration, run with every seed.

    Attributes:
        updates: Configuration entries.
        named: Named configurations.
        published: Published numbers as text, by column header.
    """

    updates: Mapping[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Configurations of one experiment, run with several seeds and compared.

    Attributes:
        name: Name on the command line and of the figure's file.
        title: Title of the table.
        experiment: Module that holds the Sacred experiment as ``experiment``.
        rows: Rows by label.
        columns: Columns of the table.
        seeds: Seeds of each row.
        draw: Called as ``draw(frame, path)`` to write the figure; the frame is that of
            :func:`collect`. ``None`` for no figure.
        claims: What is expected.
        source: Where the published numbers are from.
        note: Words below the table.
        usual_seeds: How many of its seeds are run where no study is named; ``None`` for all.
    """

    name: str
    title: str
    experiment: str
    rows: Mapping[str, Row]
    columns: Sequence[Column]
    seeds: Sequence[int] = (1, 2, 3)
    draw: Callable[[pandas.DataFrame, Path], None] | None = None
    claims: Sequence[Claim] = ()
    source: str = ""
    note: str = ""
    usual_seeds: int | None = None

    @property
    def application(self) -> str:
        """The name of the application, as on the command line."""
        return self.experiment.split(".")[-2]

    def without(self, labels: Sequence[str]) -> Study:
        """Return the study without some of its rows and what is claimed of them.

        Args:
            labels: Labels of the rows to leave out.

        Raises:
            UnknownNameError: There is no such row.
        """
        for label in labels:
            if label not in self.rows:
                raise UnknownNameError("row", label, self.rows)
        rows = {label: row for label, row in self.rows.items() if label not in labels}
        claimed = tuple(c for c in self.claims if {c.row, c.over} <= set(rows))
        return replace(self, rows=rows, claims=claimed)

    def __post_init__(self) -> None:
        headers = [column.header for column in self.columns]
        for claim in self.claims:
            for label in (claim.row, claim.over):
                if label not in self.rows:
                    raise UnknownNameError("row", label, self.rows)
            if claim.column not in headers:
                raise UnknownNameError("column", claim.column, headers)


def jobs_of(
    study: Study, seeds: Sequence[int] | None = None, updates: Mapping[str, Any] | None = None
) -> list[Job]:
    """Return the jobs of a study, each of which tells its run where it belongs.

    Args:
        study: The study.
        seeds: Seeds; by default the study's.
        updates: Configuration entries for all rows, beyond the rows' own.
    """
    jobs = [
        Job(study.experiment, label, seed, {**row.updates, **(updates or {})}, row.named)
        for label, row in study.rows.items()
        for seed in (study.seeds if seeds is None else seeds)
    ]
    return placed(jobs, study.name)


def collect(study: Study, jobs: Sequence[Job], database: Database) -> pandas.DataFrame:
    """Return the newest completed run of each job as the database has it.

    Args:
        study: The study.
        jobs: Jobs of the study.
        database: Where to look.

    Returns:
        One line for each job that has a completed run with the same configuration, in their order:
        ``row``, ``seed``, ``run`` (a :class:`metatoolkit.records.Run`) and the columns of the
        study, by header.
    """
    with optional_import("the table of a study"):
        import pandas

    newest = completed_runs(database, study.application)
    lines = []
    for job in jobs:
        chosen = newest.get(digest(job))
        if chosen is not None:
            values = {column.header: _value(chosen, column) for column in study.columns}
            lines.append({"row": job.label, "seed": job.seed, "run": chosen, **values})
    names = ["row", "seed", "run", *(column.header for column in study.columns)]
    return pandas.DataFrame(lines, columns=names)


def summarize(study: Study, frame: pandas.DataFrame) -> list[list[str]]:
    """Return the table's cells: for each row its label, and mean ± standard deviation.

    Args:
        study: The study.
        frame: Frame of :func:`collect`.
    """
    lines = []
    for label in study.rows:
        part = frame[frame["row"] == label]
        lines.append([label, *(_cell(part[column.header], column) for column in study.columns)])
    return lines


def judge(study: Study, frame: pandas.DataFrame) -> list[str]:
    """Say of each claim of a study whether the runs bear it out, and by how much.

    Args:
        study: The study.
        frame: Frame of :func:`collect`.

    Returns:
        One sentence for each claim whose rows have a seed in common.
    """
    digits = {column.header: column.digits for column in study.columns}
    exact = frozenset(column.header for column in study.columns if column.exact)
    return claims.judge(study.claims, frame, digits, exact)


def _value(run: Any, column: Column) -> float:
    """Return a run's value for a column; NaN where the run has none."""
    divisor = 1.0 if column.over is None else _recorded(run, column.over)
    return column.scale * _recorded(run, column.path) / divisor


def _recorded(run: Any, path: str) -> float:
    section, _, rest = path.partition(".")
    if section == "metrics":
        if rest not in run.metrics or run.metrics[rest].empty:
            return math.nan
        return float(run.metrics[rest].iloc[-1])
    value = {"result": run.result, "info": run.info, "config": run.config}[section]
    for name in rest.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return math.nan if value is None else float(value)


def _deviation(values: pandas.Series[float]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _cell(values: pandas.Series[float], column: Column) -> str:
    values = values.astype(float).dropna()
    if values.empty:
        return "–"
    mean = f"{values.mean():.{column.digits}f}"
    if column.exact or not column.spread or len(values) < 2:
        return mean
    return f"{mean} ± {_deviation(values):.{column.digits}f}"
