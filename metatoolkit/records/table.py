"""Runs as tables: one row per run, or one per group of runs."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import UnknownNameError
from metatoolkit.records.clean import decode
from metatoolkit.records.expressions import Field, parse_field
from metatoolkit.records.fields import duration, flatten, lookup
from metatoolkit.records.run import Run, section

if TYPE_CHECKING:
    import pandas


def table(runs: list[Run], columns: list[str] | None = None) -> pandas.DataFrame:
    """Put runs into a table.

    Args:
        runs: The runs.
        columns: Fields; by default what every run has, its configuration and its result.

    Returns:
        One row per run.

    Raises:
        QueryError: No such field.
    """
    import pandas

    if columns is None:
        return pandas.DataFrame([_everything(run) for run in runs])
    fields = [parse_field(column) for column in columns]
    rows = [[value_of(run, field) for field in fields] for run in runs]
    return pandas.DataFrame(rows, columns=columns)


def group(runs: list[Run], by: list[Field], value: Field) -> pandas.DataFrame:
    """Aggregate a value over groups of runs.

    Args:
        runs: The runs.
        by: What the runs of a group share.
        value: What is averaged; runs without a finite number there are left out.

    Returns:
        mean, std, count, and the ends of the 95 % interval of the mean, per group.
    """
    import pandas

    # Not scipy.stats, which takes a second to load.
    from scipy.special import stdtrit

    samples: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        number = value_of(run, value)
        if isinstance(number, int | float) and math.isfinite(number):
            key = tuple(_hashable(value_of(run, field)) for field in by)
            samples.setdefault(key, []).append(float(number))
    rows = []
    for key in sorted(samples, key=lambda one: [str(part) for part in one]):
        numbers = pandas.Series(samples[key])
        count, mean, spread = len(numbers), numbers.mean(), numbers.std()
        half = stdtrit(count - 1, 0.975) * spread / math.sqrt(count) if count > 1 else math.nan
        rows.append([*key, mean, spread, count, mean - half, mean + half])
    names = [field.name for field in by]
    return pandas.DataFrame(rows, columns=[*names, "mean", "std", "count", "low95", "high95"])


def series(runs: list[Run], metric: str) -> pandas.DataFrame:
    """Put a metric's values into a table.

    Args:
        runs: The runs.
        metric: The metric.

    Returns:
        One row per value: run, step, value, and the time (UTC) when it was logged.

    Raises:
        UnknownNameError: No run has the metric.
    """
    import pandas

    found = [run for run in runs if metric in run.metrics]
    if not found:
        raise UnknownNameError("metric", metric, {name for run in runs for name in run.metrics})
    rows = []
    for run in found:
        steps, values, times = run.store.metric(run.document, metric)
        rows += [
            (run.id, *one) for one in itertools.zip_longest(steps, values, times[: len(steps)])
        ]
    return pandas.DataFrame(rows, columns=["id", "step", metric, "time"])


def value_of(run: Run, field: Field) -> Any:
    """Read a field of a run.

    Args:
        run: The run.
        field: The field.

    Returns:
        The value; None where there is none.
    """
    if field.root == "status":
        return run.status
    if field.root == "duration" and "duration" not in run.document:
        return duration(run.document)
    found = lookup(run.document, field.path)
    return decode(found[0]) if found else None


def _everything(run: Run) -> dict[str, Any]:
    document = run.document
    result = run.result
    return {
        "id": run.id,
        "experiment": run.experiment,
        "status": run.status,
        "start_time": document.get("start_time"),
        "duration": duration(document),
        "host": section(document, "host").get("hostname"),
        **flatten(run.config, "config"),
        **(flatten(result, "result") if result is not None else {}),
    }


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) or value is None else str(value)
