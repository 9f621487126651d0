"""Runs as tables: one row per run, or one per group of runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import UnknownNameError
from metatoolkit.records.clean import decode, decode_key
from metatoolkit.records.expressions import parse_field
from metatoolkit.records.fields import Field, duration, flatten, identity, lookup
from metatoolkit.records.matching import order
from metatoolkit.records.run import Run, section

if TYPE_CHECKING:
    import pandas
from metatoolkit.records.settings import differing, distinguishing, finite, settings, without


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


def group(
    runs: list[Run], by: list[Field], value: Field, over: Sequence[str] = ("seed",)
) -> pandas.DataFrame:
    """Aggregate a value over groups of runs that differ in nothing but ``over``.

    Args:
        runs: The runs.
        by: What the runs of a group share. Runs that share it and differ in other entries of the
            configuration, or in their experiment, are kept apart.
        value: What is averaged; runs without a finite number there are left out.
        over: Entries that are averaged over.

    Returns:
        The fields, the entries that tell groups of the same fields apart, mean, std, count, and the
        ends of the 95 % interval of the mean; ``attrs["notes"]`` says what must be known of it.
    """
    import pandas

    # Not scipy.stats, which takes a second to load.
    from scipy.special import stdtrit

    shared = [".".join(decode_key(part) for part in one.path.split(".")) for one in by]
    shared = [name for name in shared if name.startswith("config")]
    samples: dict[Any, list[tuple[Run, float, dict[str, Any]]]] = {}
    left_out: list[str] = []
    heads: dict[Any, tuple[list[Any], dict[str, Any]]] = {}
    for run in runs:
        number = value_of(run, value)
        if not finite(number):
            left_out.append(str(run.id))
            continue
        fields = [value_of(run, field) for field in by]
        whole = settings(run)
        rest = {"experiment": run.experiment, **without(whole, [*shared, *over])}
        key = (identity(fields), identity({n: v for n, v in rest.items() if v is not None}))
        heads.setdefault(key, (fields, rest))
        samples.setdefault(key, []).append((run, float(number), whole))
    keys = sorted(heads, key=lambda one: [order(part) for part in heads[one][0]])
    rests = [heads[key][1] for key in keys]
    extra = distinguishing(rests, [key[0] for key in keys]) if "config" not in shared else []
    rows = []
    for key in keys:
        numbers = pandas.Series([number for _, number, _ in samples[key]])
        count, mean, spread = len(numbers), numbers.mean(), numbers.std()
        half = stdtrit(count - 1, 0.975) * spread / math.sqrt(count) if count > 1 else math.nan
        told = [*heads[key][0], *(heads[key][1].get(name) for name in extra)]
        rows.append([*told, mean, spread, count, mean - half, mean + half])
    names = [*(field.name for field in by), *extra]
    found = pandas.DataFrame(rows, columns=[*names, "mean", "std", "count", "low95", "high95"])
    notes = _notes(list(samples.values()), extra, over)
    if left_out:
        notes.append(f"left out, without a number there: {few(left_out)}")
    found.attrs["notes"] = notes
    return found


def _notes(
    samples: list[list[tuple[Run, float, dict[str, Any]]]], extra: list[str], over: Sequence[str]
) -> list[str]:
    """Say what a reader of means must know: what was kept apart, what was pooled, what is odd."""
    notes = []
    if extra:
        names = ", ".join(extra)
        notes.append(f"groups that differ in {names} are kept apart; --over averages over entries")
    pooled = {f"config.{name.removeprefix('config.')}": 0 for name in over}
    repeated: list[str] = []
    unfinished: list[str] = []
    for group in samples:
        configs = [config for _, _, config in group]
        for name in differing(configs):
            entry = next((one for one in pooled if f"{name}.".startswith(f"{one}.")), None)
            if entry is not None:
                values = len({identity(config.get(name)) for config in configs})
                pooled[entry] = max(pooled[entry], values)
        seen: set[Any] = set()
        for run, _, config in group:
            key = identity(config)
            repeated += [str(run.id)] if key in seen else []
            seen.add(key)
        unfinished += [str(run.id) for run, _, _ in group if run.status != "COMPLETED"]
    told = [
        f"{name} (up to {n} values)" for name, n in pooled.items() if n and name != "config.seed"
    ]
    if told:
        notes.append(f"averaged over {', '.join(told)}")
    if repeated:
        notes.append(
            f"counted although another run has the same settings and seed: {few(repeated)}"
        )
    if unfinished:
        notes.append(f"counted although not completed: {few(unfinished)}")
    return notes


def few(ids: list[str]) -> str:
    """Name runs, and not more than eight of them.

    Args:
        ids: Their ids.

    Returns:
        For instance ``runs 1, 2``.
    """
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return f"run{'s' * (len(ids) > 1)} {', '.join(ids[:8])}{more}"


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
    # Several GPUs, say, each in an entry of a list.
    return decode(found if len(found) > 1 else found[0]) if found else None


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
