"""The observer that records a run: into the spool first, into MongoDB from there."""

from __future__ import annotations

import datetime
import json
import mimetypes
import os
import threading
import time
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, RecordsError, StorageError
from metatoolkit.records import provenance
from metatoolkit.records.capture import OutputTee
from metatoolkit.records.clean import clean, clean_metric, clean_text
from metatoolkit.records.fields import duration
from metatoolkit.records.messages import say
from metatoolkit.records.push import Push
from metatoolkit.records.pusher import BEAT_SECONDS, Pusher
from metatoolkit.records.redaction import hide_assignment
from metatoolkit.records.signals import TerminationSignals
from metatoolkit.records.spool import RunSpool, utcnow

FORMAT = "metatoolkit-1"
SECTION_LIMIT = 1_000_000
ENTRY_LIMIT = 100_000
SECTIONS = ("config", "meta", "info", "result", "fail_trace")
CAPTURED_BY_US = "no"


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


class RunRecorder:
    """Records one run.

    Args:
        run: The Sacred run.
        home: The data directory.
    """

    priority = 30

    def __init__(self, run: Any, home: Path | None = None) -> None:
        self.run = run
        self.spool = RunSpool.create(home)
        self.uuid = self.spool.uuid
        self._home = home
        self._metrics = self.spool.open_metrics()
        self._output = self.spool.open_output()
        self._tee: OutputTee | None = None
        self._signals = TerminationSignals()
        self._document: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._names: dict[str, tuple[str, str]] = {}
        self._steps: dict[str, int] = {}
        self._digests: dict[Path, str] = {}
        self._replaced: set[str] = set()
        self._pid = os.getpid()
        self._written: str = ""
        self._finished = False
        self._failing = False
        self.push = Push(self.spool, self._metrics, self._output)
        self._pusher = Pusher(self.push, self._write, self._release, home)

    def started_event(
        self,
        ex_info: dict[str, Any],
        command: str,
        host_info: dict[str, Any],
        start_time: datetime.datetime,
        config: dict[str, Any],
        meta_info: dict[str, Any],
        _id: int | None,
    ) -> int | None:
        """Write the run's first document, take over its metrics, output and signals, push.

        Args:
            ex_info: Sacred's description of the experiment.
            command: The command that runs.
            host_info: Sacred's description of the host.
            start_time: When the run started, in UTC.
            config: The final configuration.
            meta_info: Command-line options and the like.
            _id: An id that was asked for; ids are given by the database alone.

        Returns:
            The run's id, or None as long as no database can be reached.
        """
        host = {key: value for key, value in host_info.items() if value is not None}
        self._document = {
            "run_uuid": self.uuid,
            "format": FORMAT,
            "proc": provenance.process_identity(),
            "command": command,
            "experiment": clean(self._experiment(ex_info)),
            "host": clean(host),
            "config": clean(config),
            "status": "RUNNING",
            "start_time": utcnow(),
            "resources": [],
            "artifacts": [],
            "result": None,
        }
        self._write(strict=True)
        self._take_over()
        self._pusher.start()
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
            known = self._names[metric_name] = (name, json.dumps(name))
        name, quoted = known
        if type(value) is not float:
            value = clean_metric(name, value)
        if step is None:
            step = self._steps.get(name, -1) + 1
        elif type(step) is not int:
            step = clean_metric(f"{name}, step", step)
            if isinstance(step, list):
                raise ConfigurationError(
                    f"the step of the metric {name!r} is one number, not {step}"
                )
        self._steps[name] = step
        # This is called in the innermost loops: what is common takes the short way.
        if type(value) is float and value - value == 0.0 and type(step) is int:
            line = f"[{quoted}, {step}, {value!r}, {time.time()!r}]\n"
        else:
            line = json.dumps([name, step, value, time.time()]) + "\n"
        self._metrics.append(line.encode("ascii"))
        if len(self.run.observers) > 1:
            self.run._metrics.log_scalar_metric(name, value, step)

    def describe(self) -> None:
        """Note sources and packages again, since more modules may be loaded by now."""
        with self._lock:
            experiment = dict(self._document["experiment"])
            experiment["sources"] = clean(self._sources())
            experiment["dependencies"] = provenance.package_versions()
            self._document["experiment"] = experiment

    def log_metrics(self, **event: Any) -> None:
        """Do nothing: the values are in the spool already; Sacred calls this."""

    def heartbeat_event(
        self, info: dict[str, Any], captured_out: str, beat_time: Any, result: Any
    ) -> None:
        """Push soon; Sacred calls this.

        Args:
            info: The run's own notes; read from the run itself.
            captured_out: What Sacred has captured, where it does the capturing.
            beat_time: Sacred's time of the beat.
            result: The result, once there is one.
        """
        if self._finished:
            return
        self._take_output(captured_out)
        with self._lock:
            self._document["result"] = clean(result)
        if self.run._id is None:
            self.run._id = self.run_id
        self._pusher.wake()

    def completed_event(self, stop_time: Any, result: Any) -> None:
        """Record the normal end; Sacred calls this.

        Args:
            stop_time: When the run ended.
            result: What the main function returned.
        """
        with self._lock:
            if not self._finished:
                self._document["result"] = clean(result)
        self._finish("COMPLETED")

    def interrupted_event(self, interrupt_time: Any, status: str) -> None:
        """Record an interruption; Sacred calls this.

        Args:
            interrupt_time: When the run ended.
            status: INTERRUPTED, TIMEOUT, or what a custom interrupt says.
        """
        received = self._signals.received
        self._finish(status, note=f"ended by {received}" if received else None)

    def failed_event(self, fail_time: Any, fail_trace: list[str]) -> None:
        """Record an exception; Sacred calls this.

        Args:
            fail_time: When the run ended.
            fail_trace: The formatted exception.
        """
        with self._lock:
            if not self._finished:
                self._document["fail_trace"] = clean(fail_trace)
        self._finish("FAILED")

    def resource_event(self, filename: str) -> None:
        """Record a file that the run has read, with its content's digest; Sacred calls this.

        Args:
            filename: The file.
        """
        import hashlib

        try:
            with open(filename, "rb") as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
        except OSError as error:
            say(f"the resource {filename} is not recorded: {error.strerror or error}")
            return
        filename = clean(filename)
        with self._lock:
            if [filename, digest] not in self._document["resources"]:
                self._document["resources"].append([filename, digest])

    def artifact_event(
        self,
        name: str,
        filename: str,
        metadata: dict[str, Any] | None = None,
        content_type: str | None = None,
    ) -> None:
        """Copy a file of the run into the spool; Sacred calls this.

        Args:
            name: What the artifact is called; a later one of the same name replaces it.
            filename: The file.
            metadata: What to store beside it.
            content_type: Its MIME type; guessed where it is left out.
        """
        content_type = content_type or mimetypes.guess_type(filename)[0]
        try:
            # Locked, so that the same content is not taken for replaced, and deleted, meanwhile.
            with self._lock:
                digest, size = self.spool.add_file(Path(filename))
                self._add_artifact(name, digest, size, metadata, content_type)
        except OSError as error:
            # Sacred would switch this observer off for the rest of the run.
            say(f"the artifact {name!r} is not recorded: {filename}: {error.strerror or error}")
            return
        self._pusher.wake()

    def join(self) -> None:
        """Do nothing: the end has been waited for already; Sacred calls this."""

    def _add_artifact(
        self,
        name: str,
        digest: str,
        size: int,
        metadata: dict[str, Any] | None,
        content_type: str | None,
    ) -> None:
        entry = {"name": clean(name), "sha256": digest, "size": size, "content_type": content_type}
        if metadata:
            entry["metadata"] = clean(metadata)
        with self._lock:
            present = self._document["artifacts"]
            others = [one for one in present if one["name"] != entry["name"]]
            self._replaced.update(one["sha256"] for one in present if one not in others)
            self._document["artifacts"] = [*others, entry]

    def _delete_replaced(self) -> None:
        """Delete contents that a later artifact of the same name has replaced."""
        document = self._document
        used = {one["sha256"] for one in document["artifacts"]}
        used.update(one["sha256"] for one in document["experiment"]["sources"])
        for digest in self._replaced - used:
            self.spool.file(digest).unlink(missing_ok=True)
        self._replaced.clear()

    def _experiment(self, ex_info: dict[str, Any]) -> dict[str, Any]:
        base = Path(os.path.realpath(ex_info.get("base_dir") or "."))
        git = provenance.git_state(base)
        roots = [base] if git is None else [base, Path(git["root"])]
        self._roots = roots
        repositories = [] if git is None else [{k: git[k] for k in ("url", "commit", "dirty")}]
        return {
            "name": ex_info.get("name"),
            "base_dir": str(base),
            "mainfile": ex_info.get("mainfile"),
            "sources": self._sources(),
            "dependencies": provenance.package_versions(),
            "repositories": repositories,
        }

    def _sources(self) -> list[dict[str, str]]:
        base = self._roots[0]
        sources = []
        for path in provenance.source_files(self._roots):
            if path not in self._digests:
                try:
                    self._digests[path], _ = self.spool.add_file(path)
                except OSError as error:
                    say(f"the source {path} is not recorded: {error.strerror or error}")
                    continue
            name = os.path.relpath(path, base)
            sources.append({"name": name, "path": str(path), "sha256": self._digests[path]})
        return sources

    def _take_over(self) -> None:
        run = self.run
        run.log_scalar = self.log_scalar
        if run.capture_mode == CAPTURED_BY_US:
            self._tee = OutputTee(self._output, run.root_logger)
            self._tee.install()
            run._output_file = self._tee
        if run.beat_interval > BEAT_SECONDS:
            run.beat_interval = BEAT_SECONDS
        self._signals.install()

    def _take_output(self, captured_out: str) -> None:
        if self._tee is not None or captured_out == self._written:
            return
        if captured_out.startswith(self._written):
            new = captured_out[len(self._written) :]
            self._output.append(new.encode("utf-8", "backslashreplace"))
        else:
            # A filter of the experiment has changed what had been captured before.
            os.truncate(self._output.path, 0)
            self._output.append(captured_out.encode("utf-8", "backslashreplace"))
        self._written = captured_out

    def _write(self, strict: bool = False) -> dict[str, Any]:
        """Write the document to the spool and return it."""
        with self._lock:
            document = self._document
            self._delete_replaced()
            document["meta"] = clean(self.run.meta_info)
            _hide_secrets(document["meta"])
            document["info"] = clean(self.run.info)
            for section in SECTIONS:
                if section in document:
                    document[section] = self._bounded(section, document[section])
            gpus = provenance.gpu_information()
            if gpus is not None:
                document["host"] = {**document["host"], "gpus": clean(gpus)}
            if document["status"] == "RUNNING":
                document["heartbeat"] = utcnow()
            document["duration"] = duration(document)
            snapshot = dict(document)
            try:
                self.spool.write_document(snapshot)
                self._failing = False
            except StorageError as error:
                if strict:
                    raise
                if not self._failing:
                    say(f"{error} The run goes on.")
                self._failing = True
            return snapshot

    def _bounded(self, section: str, data: Any) -> Any:
        """Move what is too large for a document into artifacts."""
        if _length(data) <= SECTION_LIMIT:
            return data
        if isinstance(data, dict):
            result = {
                key: self._moved(f"{section}.{key}", value)
                if _length(value) > ENTRY_LIMIT
                else value
                for key, value in data.items()
            }
            if _length(result) <= SECTION_LIMIT:
                return result
        return self._moved(section, data)

    def _moved(self, name: str, data: Any) -> dict[str, str]:
        path = self.spool.path / "large.json"
        name = f"{name}.json"
        try:
            path.touch(mode=0o600)
            path.write_text(json.dumps(data, default=str), "utf-8")
            digest, size = self.spool.add_file(path)
            path.unlink()
        except OSError as error:
            say(f"{name} is too large for the run's document and is not recorded: {error}")
            return {"too_large": name}
        self._add_artifact(name, digest, size, None, "application/json")
        return {"artifact": name}

    def _finish(self, status: str, note: str | None = None) -> None:
        # A forked child that runs on to the end of the main function is not the run.
        if self._finished or os.getpid() != self._pid:
            return
        self._finished = self._signals.ending = True
        if self._tee is not None:
            self._tee.remove()
        else:
            self._take_output(self.run.captured_out)
        with self._lock:
            self.describe()
            self._document["status"] = status
            # The clock may have been set back meanwhile.
            self._document["stop_time"] = max(utcnow(), self._document["start_time"])
            self._document["heartbeat"] = self._document["stop_time"]
            if note:
                self._document["status_note"] = note
        self._write()
        if self._pusher.finish():
            self.spool.remove()
        else:
            reason = self._pusher.complaint or "the database did not answer in time"
            say(
                f"the run is complete in {self.spool.path} and not yet in the database ({reason}). "
                "`metatoolkit records sync` brings it there."
            )
        if self.run._id is None:
            self.run._id = self.run_id
        self._signals.restore()

    def _release(self) -> None:
        self._metrics.close()
        self._output.close()
        self.spool.unlock()


def _length(data: Any) -> int:
    return len(json.dumps(data, default=str))


def _hide_secrets(meta: dict[str, Any]) -> None:
    """Take credentials out of what was typed on the command line."""
    options: dict[str, Any] = meta.get("options") or {}
    for option, value in options.items():
        if isinstance(value, str) and "@" in value and option in ("--mongo_db", "--sql"):
            options[option] = value.rpartition("@")[2]
        elif isinstance(value, list):
            options[option] = [hide_assignment(one) for one in value]


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
