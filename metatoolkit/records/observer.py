"""The observer that is attached to an experiment, and what a run's record is known by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.recorder import RunRecorder


class SpoolObserver:
    """What is attached to an experiment; every run of it gets a recorder of its own.

    Args:
        experiment: The Sacred experiment.
        home: The data directory; None for the user's own.
    """

    priority = 30

    def __init__(self, experiment: Any, home: str | os.PathLike[str] | None = None) -> None:
        self.experiment = experiment
        self.home = Path(home).absolute() if home is not None else None

    def started_event(self, **event: Any) -> int | None:
        """Begin to record; Sacred calls this."""
        run = self.experiment.current_run
        if run is None or self not in run.observers:
            raise RecordsError(
                "the run does not belong to the experiment that records were attached to"
            )
        recorder = RunRecorder(run, self.home)
        run_id = recorder.started_event(**event)
        # Runs of one experiment may be nested, and Sacred's later events do not say whose they are.
        run.observers[run.observers.index(self)] = recorder
        return run_id

    def failed_event(self, **event: Any) -> None:
        """Do nothing: the run could not begin, and the reason is on its way; Sacred calls this."""

    def interrupted_event(self, **event: Any) -> None:
        """Do nothing: the run was interrupted before it began; Sacred calls this."""

    def queued_event(self, **event: Any) -> None:
        """Refuse, since nothing would ever start the run; Sacred calls this."""
        raise RecordsError("queued runs are not supported: leave out the option --queue")

    def join(self) -> None:
        """Do nothing: runs that have begun have recorders of their own; Sacred calls this."""


def recorder_of(run: Any) -> RunRecorder | None:
    """Find what records a run.

    Args:
        run: A Sacred run.

    Returns:
        Its recorder, or None for a run that is not recorded.
    """
    for observer in run.observers:
        if isinstance(observer, RunRecorder):
            return observer
    return None


def run_uuid(run: Any) -> str | None:
    """Say which id a run carries from its first moment on, with or without a database.

    Args:
        run: The Sacred run (``_run``).

    Returns:
        32 hexadecimal digits, or None for a run that is not recorded.
    """
    recorder = recorder_of(run)
    return recorder.uuid if recorder is not None else None


def run_id(run: Any) -> int | None:
    """Say which number a run has in the database.

    Args:
        run: The Sacred run (``_run``).

    Returns:
        The number, or None as long as no database could be reached.
    """
    recorder = recorder_of(run)
    return recorder.run_id if recorder is not None else None


def mark_resumed(run: Any, previous: str) -> None:
    """Note that a run continues an earlier one.

    Args:
        run: The Sacred run (``_run``) that continues.
        previous: What :func:`run_uuid` returned in the earlier run.
    """
    run.meta_info["resumed_from"] = str(previous)
    recorder = recorder_of(run)
    if recorder is not None:
        recorder._pusher.wake()
