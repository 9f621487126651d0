"""Runs as tables: one row per run, or per group of runs that differ in nothing that counts."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import UnknownNameError
from metatoolkit.records.clean import decode_key
from metatoolkit.records.fields import Field, duration, flatten, identity, order
from metatoolkit.records.run import Run, section
from metatoolkit.records.terminal import text

if TYPE_CHECKING:
    import pandas

BOOKKEEPING = ("checkpoint", "checkpoint_every", "device", "progress", "resume")
"""Entries that say how a run is carried out and change no number."""

# Sets of two are tried among so many entries; beyond, the best entry is added at a time.
PAIRS = 100
LONGEST_VALUE = 24
# A run, its value, and its settings.
Sample = tuple[Run, float, dict[str, Any]]


def settings(run: Run, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """List the configuration entries that tell a run from others, such as ``config.network.width``.

    Bookkeeping is left out, and so are the entries to ignore, each with everything below it.
    """
    left_out = _whole_names([*BOOKKEEPING, *ignore])
    config = {f"config.{name}": value for name, value in flatten(run.config).items()}
    return {name: value for name, value in config.items() if not _is_left_out(name, left_out)}


def _whole_names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"config.{one.removeprefix('config.')}" for one in names)


@functools.lru_cache(10_000)
def _is_left_out(name: str, ignore: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in ignore)


def check_entries(names: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse the name of a configuration entry, or of a part, that no run has."""
    known = {name for run in runs for name in flatten(run.config)}
    for name in names:
        bare = name.removeprefix("config.")
        if not any(one == bare or one.startswith(f"{bare}.") for one in known):
            raise UnknownNameError("configuration entry", name, known)


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the names under which configurations hold different values; a missing one is None."""
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if len({identity(config.get(name)) for config in configs}) > 1]


def ranked(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the names of :func:`differing`, those that say most to a reader first.

    Choices, which are words, come before numbers, and short names before long ones.
    """

    def rank(name: str) -> tuple[bool, int, int]:
        values = [config.get(name) for config in configs]
        choice = all(value is None or isinstance(value, str | bool) for value in values)
        short = all(len(str(value)) <= LONGEST_VALUE for value in values)
        return not (choice and short), name.count("."), len(name)

    return sorted(differing(configs), key=rank)


def distinguishing(
    configs: Sequence[Mapping[str, Any]], classes: Sequence[Hashable] | None = None
) -> list[str]:
    """Find the shortest set of entries that tells configurations apart.

    What tells some of them apart already is their class. Of two sets of equal length the first one
    is taken, in the order of :func:`ranked`.
    """
    keys: list[tuple[Hashable, ...]] = [(one,) for one in (classes or [None] * len(configs))]
    names = ranked(configs)
    values = {name: [identity(config.get(name)) for config in configs] for name in names}

    def count(chosen: Sequence[str]) -> int:
        return len(set(zip(keys, *(values[name] for name in chosen), strict=True)))

    wanted = count(names)
    for size in range(3 if len(names) <= PAIRS else 2):
        for chosen in itertools.combinations(names, size):
            if count(chosen) == wanted:
                return list(chosen)
    found: list[str] = []
    while count(found) < wanted:
        found.append(max(names, key=lambda name: count([*found, name])))
    return found


def labels(configs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Write configurations in a few words.

    For each, the first of the names that tell them apart, as many as it takes to be the only one of
    its kind, with their values; blank where there are no names.
    """
    keys = [tuple(identity(config.get(name)) for name in names) for config in configs]
    told = []
    for key, config in zip(keys, configs, strict=True):
        others = {one for one in keys if one != key}
        shown = min(len(names), 1)
        while any(one[:shown] == key[:shown] for one in others):
            shown += 1
        told.append(", ".join(_entry(name, config.get(name)) for name in names[:shown]))
    return told


def _entry(name: str, value: Any) -> str:
    shown = "none" if value is None else text(value)
    if len(shown) > LONGEST_VALUE:
        shown = f"{shown[: LONGEST_VALUE // 2]}…{shown[-LONGEST_VALUE // 2 + 1 :]}"
    return f"{text(name.removeprefix('config.'))}={shown}"


def finite(value: Any) -> bool:
    """Say whether a value is a number that can be averaged."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def table(runs: list[Run], fields: Sequence[Field] | None = None) -> pandas.DataFrame:
    """Put runs into a table, by default with their configurations and results."""
    import pandas

    if fields is None:
        return pandas.DataFrame([_everything(run) for run in runs])
    rows = [[run.value(field) for field in fields] for run in runs]
    return pandas.DataFrame(rows, columns=[field.name for field in fields])


def group(
    runs: list[Run], by: list[Field], value: Field, over: Sequence[str] = ("seed",)
) -> pandas.DataFrame:
    """Aggregate a value over groups of runs, as :meth:`RunSet.group` describes."""
    import pandas

    shared = [".".join(decode_key(part) for part in one.path.split(".")) for one in by]
    shared = [name for name in shared if name.startswith("config")]
    pooled = _whole_names([*shared, *over])
    left_out: list[str] = []
    groups: dict[Any, tuple[list[Any], dict[str, Any], list[Sample]]] = {}
    for run in runs:
        number = run.value(value)
        if not finite(number):
            left_out.append(str(run.id))
            continue
        fields = [run.value(field) for field in by]
        whole = settings(run)
        kept = {n: v for n, v in whole.items() if not _is_left_out(n, pooled)}
        rest = {"experiment": run.experiment, **kept}
        key = (identity(fields), identity({n: v for n, v in rest.items() if v is not None}))
        groups.setdefault(key, (fields, rest, []))[2].append((run, float(number), whole))
    ordered = sorted(groups.values(), key=lambda one: [order(part) for part in one[0]])
    told_apart = [rest for _, rest, _ in ordered], [identity(fields) for fields, _, _ in ordered]
    extra = distinguishing(*told_apart) if "config" not in shared else []
    rows = []
    for fields, rest, members in ordered:
        numbers = pandas.Series([number for _, number, _ in members])
        count, mean, spread = len(numbers), numbers.mean(), numbers.std()
        half = half_width(numbers)
        told = [*fields, *(rest.get(name) for name in extra)]
        rows.append([*told, mean, spread, count, mean - half, mean + half])
    names = [*(field.name for field in by), *extra]
    found = pandas.DataFrame(rows, columns=[*names, "mean", "std", "count", "low95", "high95"])
    notes = _notes([members for *_, members in groups.values()], extra, over)
    if left_out:
        notes.append(f"left out, without a number there: {few(left_out)}")
    found.attrs["notes"] = notes
    return found


def half_width(numbers: pandas.Series[float]) -> float:
    """Return half the 95 % interval of a mean, by Student's t; NaN for a single number."""
    # Not scipy.stats, which takes a second to load.
    from scipy.special import stdtrit

    count = len(numbers)
    if count < 2:
        return math.nan
    return float(stdtrit(count - 1, 0.975) * numbers.std() / math.sqrt(count))


def _notes(samples: list[list[Sample]], extra: list[str], over: Sequence[str]) -> list[str]:
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
    pooled.pop("config.seed", None)
    told = [f"{name} (up to {n} values)" for name, n in pooled.items() if n]
    if told:
        notes.append(f"averaged over {', '.join(told)}")
    if repeated:
        same = "another run has the same settings and seed"
        notes.append(f"counted although {same}: {few(repeated)}")
    if unfinished:
        notes.append(f"counted although not completed: {few(unfinished)}")
    return notes


def few(ids: list[str]) -> str:
    """Name runs, and not more than eight of them, such as ``runs 1, 2``."""
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return f"run{'s' * (len(ids) > 1)} {', '.join(ids[:8])}{more}"


def series(runs: list[Run], metric: str) -> pandas.DataFrame:
    """Put a metric into a table: a row for each value, with run, step and time (UTC)."""
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
