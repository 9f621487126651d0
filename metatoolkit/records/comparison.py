"""Several runs side by side: what differs in their configuration, and a metric's curves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import ConfigurationError, RecordsError, UnknownNameError
from metatoolkit.records.fields import flatten, identity
from metatoolkit.records.query import Database, connect
from metatoolkit.records.run import Run, writing
from metatoolkit.records.table import check_entries, differing, distinguishing, labels, settings
from metatoolkit.records.terminal import text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
# So many labels, and of so many characters, fit inside the axes; so many stand below each other
# beside them, and so many are listed at all.
INSIDE = 10
SHORT = 40
BESIDE = 30
LISTED = 60


def compare(
    ids: Iterable[Run | int | str], metric: str | None = None, database: Database | None = None
) -> Comparison:
    """Put runs side by side.

    Args:
        ids: The runs, or their ids.
        metric: The metric whose curves are compared.
        database: Where ids are looked up; by default what ``records.connect`` opens.

    Returns:
        The comparison.

    Raises:
        ConfigurationError: No run is named.
        QueryError: There is no such run.
        UnknownNameError: No run has the metric.
    """
    given = [ids] if isinstance(ids, Run | int | str) else list(ids)
    if not given:
        raise ConfigurationError("name at least one run to compare")
    if database is None and not all(isinstance(one, Run) for one in given):
        database = connect()
    runs = [one if isinstance(one, Run) else database[one] for one in given]  # type: ignore[index]
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

        columns = [run.key for run in self.runs]
        rows = self.differing()
        return pandas.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=object)

    def differing(self) -> dict[str, list[Any]]:
        """Say the same as :meth:`differences`, without loading pandas.

        Returns:
            The entries, each with one value per run.
        """
        configs = [flatten(run.config, "config") for run in self.runs]
        rows = {name: [config.get(name) for config in configs] for name in differing(configs)}
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

        series = {run.key: curve for run, curve in self._curves()}
        # A resumed run may have logged a step twice: the later value counts.
        kept = {key: one[~one.index.duplicated(keep="last")] for key, one in series.items()}
        return pandas.DataFrame(kept).sort_index()

    def plot(
        self,
        path: str | os.PathLike[str],
        over: str | Sequence[str] | None = None,
        log_x: bool = False,
        log_y: bool = False,
    ) -> Path:
        """Draw the metric's curves.

        Args:
            path: Where to; the ending chooses the format: png, pdf or svg.
            over: An entry of the configuration, such as ``seed``, or several: runs that differ in
                nothing else are drawn as their mean and a band of one standard deviation.
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
        figure = self._draw(self._groups(over), log_x, log_y)
        with writing(target):
            figure.savefig(target, dpi=150)
        return target

    def _draw(self, groups: list[tuple[str, Any]], log_x: bool, log_y: bool) -> Figure:
        from matplotlib.figure import Figure

        colors = _colors(len(groups))
        # Many or long labels get room of their own, so that the curves keep theirs.
        beside = len(groups) > INSIDE or max(len(label) for label, _ in groups) > SHORT
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for (label, curves), color in zip(groups, colors, strict=True):
            mean = curves.mean(axis=1).dropna()
            axes.plot(mean.index, mean.to_numpy(), label=literal(label), color=color)
            if curves.shape[1] > 1:
                spread = curves.std(axis=1).reindex(mean.index)
                low, high = (mean - spread).to_numpy(), (mean + spread).to_numpy()
                axes.fill_between(mean.index, low, high, color=color, alpha=0.2, lw=0)
        axes.set_xlabel("step")
        axes.set_ylabel(literal(text(self.metric)))
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        axes.grid(alpha=0.3)
        if not beside:
            axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize="small")
            return figure
        handles, told = axes.get_legend_handles_labels()
        if len(told) > LISTED:
            told = [*told[: LISTED - 1], f"{len(told) - LISTED + 1} more"]
        handles, columns = handles[: len(told)], -(-len(told) // BESIDE)
        legend = figure.legend(
            handles, told, loc="outside right upper", fontsize="x-small", ncols=columns
        )
        # Wide enough for any legend, until the width of this one is known.
        figure.set_figwidth(100)
        figure.draw_without_rendering()
        figure.set_figwidth(7 + legend.get_window_extent().width / figure.dpi)
        return figure

    def _curves(self) -> list[tuple[Run, Any]]:
        if self.metric is None:
            raise ConfigurationError("name the metric: records.compare(ids, metric='valid_loss')")
        found = [(run, run.metrics[self.metric]) for run in self.runs if self.metric in run.metrics]
        for run, curve in found:
            if curve.dtype == object:
                raise RecordsError(f"run {run.id}: {self.metric!r} holds arrays, not numbers")
        return found

    def _groups(self, over: str | Sequence[str] | None) -> list[tuple[str, pandas.DataFrame]]:
        table = self.table()
        entries = [over] if isinstance(over, str) else list(over or ())
        check_entries(entries, self.runs)
        drawn = [run for run in self.runs if run.key in table.columns]
        # The number tells single runs apart; their seeds would only make labels longer.
        configs = [settings(run, entries or ["seed"]) for run in drawn]
        told = labels(configs, distinguishing(configs))
        groups: dict[Any, tuple[str, list[Any]]] = {}
        for run, config, label in zip(drawn, configs, told, strict=True):
            if not entries:
                key: Any = run.key
                label = f"{text(run.id)}: {label}" if label else f"run {text(run.id)}"
            else:
                key = identity({name: value for name, value in config.items() if value is not None})
                label = label or text(run.experiment)
            groups.setdefault(key, (label, []))[1].append(run.key)
        return [(label, table[columns]) for label, columns in groups.values()]


def literal(words: str) -> str:
    """Keep matplotlib from reading a text as a formula, or from leaving it out of a legend."""
    # A label that begins with an underscore is a hidden one.
    hidden = "\u200b" if words.startswith("_") else ""
    return hidden + words.replace("$", r"\$")


def _colors(count: int) -> list[Any]:
    """Choose colors: the usual ones for a few curves, and a scale for more, in their order."""
    from matplotlib import colormaps

    if count <= 20:
        return [colormaps["tab10" if count <= 10 else "tab20"](place) for place in range(count)]
    return [colormaps["turbo"](place / (count - 1)) for place in range(count)]
