"""The experiment database: recording with Sacred, a managed server, queries, spool and sync.

A run writes to a local spool first and MongoDB receives a copy at every heartbeat, so that a run
neither dies of its database nor loses a value to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metatoolkit.records.comparison import Comparison, compare
    from metatoolkit.records.edits import delete, note, tag
    from metatoolkit.records.experiments import experiment, record
    from metatoolkit.records.query import Database, connect
    from metatoolkit.records.recorder import mark_resumed, run_id, run_uuid
    from metatoolkit.records.report import write_report
    from metatoolkit.records.run import Run
    from metatoolkit.records.selection import RunSet
    from metatoolkit.records.syncing import sync

_LOCATION = {
    "Comparison": "comparison",
    "compare": "comparison",
    "delete": "edits",
    "note": "edits",
    "tag": "edits",
    "experiment": "experiments",
    "record": "experiments",
    "mark_resumed": "recorder",
    "run_id": "recorder",
    "run_uuid": "recorder",
    "Database": "query",
    "RunSet": "selection",
    "connect": "query",
    "write_report": "report",
    "Run": "run",
    "sync": "syncing",
}

__all__ = [
    "Comparison",
    "Database",
    "Run",
    "RunSet",
    "compare",
    "connect",
    "delete",
    "experiment",
    "mark_resumed",
    "note",
    "record",
    "run_id",
    "run_uuid",
    "sync",
    "tag",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Sacred, pymongo and pandas take seconds to import: only what is used is loaded.
    if name not in _LOCATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from metatoolkit.errors import check_installed

    check_installed(f"{__name__}.{name}", "pandas", "platformdirs", "psutil", "pymongo", "sacred")
    value = getattr(import_module(f"{__name__}.{_LOCATION[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
