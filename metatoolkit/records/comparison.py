"""Several runs side by side: what differs in their configuration, and a metric's curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, RecordsError, StorageError, UnknownNameError
from metatoolkit.records.fields import flatten
from metatoolkit.records.query import Database, connect
from metatoolkit.records.run import Run

if TYPE_CHECKING:
    import pandas

FORMATS = (".png", ".pdf", ".svg")


def compare(
    ids: Sequence[int | str], metric: str | None = None, database: Database | None = None
) -> Comparison:
    """Put runs side by side.

    Args:
        ids: The runs' ids.
        metric: The metric whose curves are compared.
        database: Where the runs are; by default what :func:`connect` opens.

    Returns:
        The comparison.

    Raises:
        ConfigurationError: No run is named.
        QueryError: There is no such run.
        UnknownNameError: No run has the metric.
    """
    if not ids:
        raise ConfigurationError("name at least one run to compare")
    database = database if database is not None else connect()
    runs = [database[one] for one in ids]
    if metric is not None and not any(metric in run.metrics for run in runs):
        raise UnknownNameError("metric", metric, {name for run in runs for name in run.metrics})
    return Comparison(runs, metric)


class Comparison:
    """Several runs side by side.

    Args:
        runs: The runs.
        metric: The metric whose curves are compared.
    """

    def __init__(self, runs: Sequence[Run], metric: str | None = None) -> None:
        self.runs = list(runs)
        self.metric = metric

    def differences(self) -> pandas.DataFrame:
        """Say in which entries of the configuration the runs differ, and what came out.

        Returns:
            One row per entry, one column per run.
        """
        import pandas

        columns = [run.id for run in self.runs]
        rows = self.differing()
        return pandas.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=object)

    def differing(self) -> dict[str, list[Any]]:
        """Say the same as :meth:`differences`, without loading pandas.

        Returns:
            The entries, each with one value per run.
        """
        configs = [flatten(run.config, "config") for run in self.runs]
        names = list(dict.fromkeys(name for config in configs for name in config))
        rows: dict[str, list[Any]] = {}
        for name in names:
            values = [config.get(name) for config in configs]
            if any(repr(value) != repr(values[0]) for value in values):
                rows[name] = values
        results = [
            flatten(run.result, "result") if run.result is not None else {} for run in self.runs
        ]
        for name in dict.fromkeys(name for result in results for name in result):
            rows[name] = [result.get(name) for result in results]
        return rows

    def table(self) -> pandas.DataFrame:
        """Put the metric's curves into a table.

        Returns:
            One row per step, one column per run.

        Raises:
            ConfigurationError: No metric was named.
        """
        import pandas

        series = {run.id: curve for run, curve in self._curves()}
        # A resumed run may have logged a step twice: the later value counts.
        kept = {key: one[~one.index.duplicated(keep="last")] for key, one in series.items()}
        return pandas.DataFrame(kept).sort_index()

    def plot(
        self,
        path: str | os.PathLike[str],
        over: str | None = None,
        log_x: bool = False,
        log_y: bool = False,
    ) -> Path:
        """Draw the metric's curves.

        Args:
            path: Where to; the ending chooses the format: png, pdf or svg.
            over: A field of the configuration, such as ``seed``: runs that differ in nothing else
                are drawn as their mean and a band of one standard deviation.
            log_x: Whether the axis of the steps is logarithmic.
            log_y: Whether the axis of the values is logarithmic.

        Returns:
            The path.

        Raises:
            ConfigurationError: No metric was named, or the format is unknown.
            UnknownNameError: No run has ``over`` in its configuration.
            StorageError: The file cannot be written.
        """
        target = Path(path)
        if target.suffix.lower() not in FORMATS:
            raise ConfigurationError(f"{target} must end in one of {', '.join(FORMATS)}")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for label, curves in self._groups(over):
            mean = curves.mean(axis=1)
            (line,) = axes.plot(mean.index, mean.to_numpy(), label=label)
            if curves.shape[1] > 1:
                spread = curves.std(axis=1)
                low, high = (mean - spread).to_numpy(), (mean + spread).to_numpy()
                axes.fill_between(mean.index, low, high, color=line.get_color(), alpha=0.2, lw=0)
        axes.set_xlabel("step")
        axes.set_ylabel(str(self.metric))
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(target, dpi=150)
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
        return target

    def _curves(self) -> list[tuple[Run, Any]]:
        if self.metric is None:
            raise ConfigurationError("name the metric: records.compare(ids, metric='valid_loss')")
        found = [(run, run.metrics[self.metric]) for run in self.runs if self.metric in run.metrics]
        for run, curve in found:
            if curve.dtype == object:
                raise RecordsError(f"run {run.id}: {self.metric!r} holds arrays, not numbers")
        return found

    def _groups(self, over: str | None) -> list[tuple[str, pandas.DataFrame]]:
        table = self.table()
        if over is not None:
            known = {name for run in self.runs for name in flatten(run.config)}
            if over.removeprefix("config.") not in known:
                raise UnknownNameError("configuration entry", over, known)
        differing = [
            str(name)
            for name in self.differences().index
            if str(name).startswith("config.") and str(name) not in (f"config.{over}", over)
        ]
        labels = {}
        for run in self.runs:
            config = flatten(run.config, "config")
            told = [f"{name[7:]}={config.get(name)}" for name in differing]
            if over is None:
                told = [one for one in told if not one.startswith("seed=")]
                labels[run.id] = f"{run.id}: {', '.join(told[:3])}" if told else f"run {run.id}"
            else:
                labels[run.id] = ", ".join(told) or run.experiment
        groups: dict[str, list[Any]] = {}
        for column in table.columns:
            groups.setdefault(labels[column], []).append(column)
        return [(label, table[columns]) for label, columns in groups.items()]
