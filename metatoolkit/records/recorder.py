"""What records a run: its events, values and output go into its spool, and on from there."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import time
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, RecordsError
from metatoolkit.records.capture import KeptInMemory, OutputTee, TerminationSignals
from metatoolkit.records.clean import INT64, clean_metric, clean_text
from metatoolkit.records.document import RunDocument
from metatoolkit.records.push import Push
from metatoolkit.records.push_thread import BEAT_SECONDS, PushThread
from metatoolkit.records.spool import RunSpool
from metatoolkit.records.terminal import say


class _Capture(str):
    """A mode of capturing that Sacred takes for its own, and that is told from it by identity."""


CAPTURED_BY_US = _Capture("no")
LONGEST_NAME = 1_000


class RunRecorder:
    """Records one run; what ends in ``_event`` Sacred calls, and says what it passes.

    Args:
        run: The Sacred run.
        home: The data directory.
    """

    priority = 30

    def __init__(self, run: Any, home: Path | None = None) -> None:
        self.run = run
        self.spool = RunSpool.create(home)
        self.uuid = self.spool.uuid
        self._tee: OutputTee | None = None
        self._signals = TerminationSignals()
        self.document = RunDocument(self.spool, run)
        self._names: dict[str, tuple[str, str]] = {}
        self._steps: dict[str, int] = {}
        self._pid = os.getpid()
        self._written: str = ""
        self._filtered = False
        self._finished = False
        self.push = Push(self.spool)
        self._thread = PushThread(self.push, self.document.write, self._release, home)

    def started_event(self, **event: Any) -> int | None:
        """Write the run's first document, take over its metrics, output and signals, push."""
        self.document.begin(event)
        self._take_over()
        self._thread.start()
        return self.run_id

    @property
    def run_id(self) -> int | None:
        """The id in the database, or None before the first push."""
        return self.push.run_id

    def log_scalar(self, metric_name: str, value: Any, step: Any = None) -> None:
        """Write one value of a metric to the spool, at once.

        Args:
            metric_name: The metric's name.
            value: A number, or an array of them; tensors are copied to the CPU.
            step: The step; counted per metric where it is left out.

        Raises:
            ConfigurationError: The value or the step is not numeric.
        """
        known = self._names.get(metric_name)
        if known is None:
            name = clean_text(str(metric_name))
            if len(name) > LONGEST_NAME:
                raise ConfigurationError(
                    f"the name of a metric has up to {LONGEST_NAME} characters, not {len(name)}: "
                    f"{name[:60]!r}..."
                )
            known = self._names[metric_name] = (name, json.dumps(name))
        name, quoted = known
        if type(value) is not float:
            value = clean_metric(name, value)
        if step is None:
            step = self._steps.get(name, -1) + 1
        elif type(step) is not int:
            step = clean_metric(f"{name}, step", step)
            if isinstance(step, list):
                told = f"the step of the metric {name!r} is one number, not {step}"
                raise ConfigurationError(told)
        if type(step) is int and not -INT64 <= step < INT64:
            raise ConfigurationError(
                f"the step of the metric {name!r} has up to 64 bits, and {step} has more. Log a "
                "smaller step, or a float."
            )
        self._steps[name] = step
        # This is called in the innermost loops: what is common takes the short way.
        if type(value) is float and value - value == 0.0 and type(step) is int:
            line = f"[{quoted}, {step}, {value!r}, {time.time()!r}]\n"
        else:
            line = json.dumps([name, step, value, time.time()]) + "\n"
        self.spool.metrics.append(line.encode("ascii"))
        if len(self.run.observers) > 1:
            self.run._metrics.log_scalar_metric(name, value, step)

    def log_metrics(self, **event: Any) -> None:
        """Do nothing: the values are in the spool already; Sacred calls this."""

    def heartbeat_event(
        self, info: dict[str, Any], captured_out: str, beat_time: Any, result: Any
    ) -> None:
        """Push soon; Sacred calls this."""
        if self._finished:
            return
        self._take_output(captured_out)
        self.document.put("result", result)
        if self.run._id is None:
            self.run._id = self.run_id
        self._thread.wake()

    def completed_event(self, stop_time: Any, result: Any) -> None:
        """Record the normal end; Sacred calls this."""
        if not self._finished:
            self.document.put("result", result)
        self._finish("COMPLETED")

    def interrupted_event(self, interrupt_time: Any, status: str) -> None:
        """Record an interruption; Sacred calls this."""
        received = self._signals.received
        self._finish(status, note=f"ended by {received}" if received else None)

    def failed_event(self, fail_time: Any, fail_trace: list[str]) -> None:
        """Record an exception; Sacred calls this."""
        if not self._finished:
            self.document.put("fail_trace", fail_trace)
        self._finish("FAILED")

    def resource_event(self, filename: str) -> None:
        """Record a file that the run has read, with its content's digest; Sacred calls this."""
        try:
            with open(filename, "rb") as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
        except OSError as error:
            say(f"the resource {filename} is not recorded: {error.strerror or error}")
            return
        self.document.add_resource(filename, digest)

    def artifact_event(
        self,
        name: str,
        filename: str,
        metadata: dict[str, Any] | None = None,
        content_type: str | None = None,
    ) -> None:
        """Copy a file of the run into the spool; Sacred calls this."""
        content_type = content_type or mimetypes.guess_type(filename)[0]
        try:
            # Locked, so that the same content is not taken for replaced, and deleted, meanwhile.
            with self.document.lock:
                digest, size = self.spool.add_file(Path(filename))
                self.document.add_artifact(name, digest, size, metadata, content_type)
        except OSError as error:
            # Sacred would switch this observer off for the rest of the run.
            self.document.miss(name, f"{filename}: {error.strerror or error}")
        self._thread.wake()

    def join(self) -> None:
        """Do nothing: the end has been waited for already; Sacred calls this."""

    def _take_over(self) -> None:
        run = self.run
        run.log_scalar = self.log_scalar
        if run.capture_mode is CAPTURED_BY_US:
            self._filtered = run.captured_out_filter is not None
            # What a filter of the experiment is to leave out must not reach the disk before.
            kept = KeptInMemory() if self._filtered else self.spool.output
            self._tee = OutputTee(kept, run.root_logger)
            self._tee.install()
            run._output_file = self._tee
        if run.beat_interval > BEAT_SECONDS:
            run.beat_interval = BEAT_SECONDS
        self._signals.install()

    def _take_output(self, captured_out: str) -> None:
        if (self._tee is not None and not self._filtered) or captured_out == self._written:
            return
        new = captured_out.removeprefix(self._written)
        if not captured_out.startswith(self._written):
            # A filter of the experiment has changed what had been captured before.
            os.truncate(self.spool.output.path, 0)
        self.spool.output.append(new.encode("utf-8", "backslashreplace"))
        self._written = captured_out

    def _take_last_output(self) -> None:
        if self._filtered:
            try:
                self.run._get_captured_output()
            except Exception as error:
                say(f"the filter of the output has failed, and the last of it is lost: {error!r}")
        self._take_output(self.run.captured_out)

    def _finish(self, status: str, note: str | None = None) -> None:
        # A forked child that runs on to the end of the main function is not the run.
        if self._finished or os.getpid() != self._pid:
            return
        self._finished = self._signals.ending = True
        if self._tee is not None:
            self._tee.remove()
        self._take_last_output()
        self.document.end(status, note)
        if self._thread.finish():
            self.spool.remove()
        else:
            self._tell_what_is_left()
        if self.run._id is None:
            self.run._id = self.run_id
        self._signals.restore()

    def _tell_what_is_left(self) -> None:
        """Say what the spool holds of a run that did not reach the database."""
        reason = self._thread.complaint or "the database did not answer in time"
        lost = self.document.write().get("lost")
        if not self.spool.path.is_dir():
            say(f"nothing is kept of the run: {self.spool.path} was deleted, and {reason}")
            return
        held = "complete"
        if lost is not None:
            held = (
                f"not complete, as its disk is full: {lost['values']:,} values and "
                f"{lost['output_bytes']:,} bytes of output are lost with this process; the rest is"
            )
        say(
            f"the run is {held} in {self.spool.path} and not yet in the database ({reason}). "
            "`metatoolkit records sync` brings it there."
        )

    def _release(self) -> None:
        self.spool.close()
        self.spool.unlock()


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

    def join(self, **event: Any) -> None:
        """Do nothing: runs that have begun have recorders of their own; Sacred calls this."""

    failed_event = interrupted_event = join

    def queued_event(self, **event: Any) -> None:
        """Refuse, since nothing would ever start the run; Sacred calls this."""
        raise RecordsError("queued runs are not supported: leave out the option --queue")


def recorder_of(run: Any) -> RunRecorder | None:
    """Find what records a Sacred run; None for a run that is not recorded."""
    return next((one for one in run.observers if isinstance(one, RunRecorder)), None)


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
        recorder._thread.wake()
