"""The document of a run: what is known about it, as plain data and within a document's limits."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metatoolkit.errors import StorageError
from metatoolkit.records import capture
from metatoolkit.records.clean import clean, clean_text, clean_update
from metatoolkit.records.fields import duration
from metatoolkit.records.home import process_identity
from metatoolkit.records.spool import RunSpool, utcnow
from metatoolkit.records.terminal import say

FORMAT = "metatoolkit-1"
SECTION_LIMIT = 1_000_000
ENTRY_LIMIT = 100_000
LONGEST_TEXT = 1_000
MISSING = 1_000
LAST_FIELDS = (
    *("status", "status_note", "stop_time", "heartbeat", "duration", "beats", "lost"),
    *("missing_files", "result", "fail_trace"),
)
SECTIONS = ("config", "meta", "info", "result", "fail_trace")


class RunDocument:
    """The document of a run that goes on; threads may change it at once.

    Args:
        spool: The run's folder.
        run: The Sacred run, whose notes are read at every writing.
    """

    def __init__(self, spool: RunSpool, run: Any) -> None:
        self.spool = spool
        self.lock = threading.RLock()
        self.data: dict[str, Any] = {}
        self._run = run
        self._roots: list[Path] = []
        self._digests: dict[Path, str] = {}
        self._replaced: set[str] = set()
        self._failing = False
        self._words = False
        self._metadata_length = 0
        self._resources_length = 0

    def begin(self, event: Mapping[str, Any]) -> None:
        """Write down what is known when the run starts: what Sacred says, and the configuration.

        Raises:
            StorageError: The spool cannot be written.
        """
        host = {key: value for key, value in event["host_info"].items() if value is not None}
        self.data = {
            "run_uuid": self.spool.uuid,
            "format": FORMAT,
            "proc": process_identity(),
            "command": event["command"],
            "experiment": clean(self._experiment(event["ex_info"])),
            "host": clean(host),
            "config": clean(event["config"]),
            "status": "RUNNING",
            "start_time": utcnow(),
            "resources": [],
            "artifacts": [],
            "missing_files": [],
            "result": None,
            "beats": 0,
        }
        self.write(strict=True)

    def describe(self) -> None:
        """Note sources and packages again, since more modules may be loaded by now."""
        with self.lock:
            experiment = dict(self.data["experiment"])
            experiment["sources"] = clean(self._sources())
            experiment["dependencies"] = capture.package_versions()
            self.data["experiment"] = experiment

    def put(self, field: str, value: Any) -> None:
        """Set a field of the document to any value, which is cleaned."""
        with self.lock:
            self.data[field] = clean(value)

    def add_resource(self, filename: str, digest: str) -> None:
        """Note a file that the run has read, with the MD5 of its content."""
        entry = [clean(filename), digest]
        with self.lock:
            if entry not in self.data["resources"]:
                self._resources_length += len(entry[0])
                if self._resources_length > SECTION_LIMIT:
                    say(f"the resource {filename} is not recorded: there are too many")
                    return
                self.data["resources"].append(entry)

    def add_artifact(
        self,
        name: str,
        digest: str,
        size: int,
        metadata: dict[str, Any] | None,
        content_type: str | None,
    ) -> None:
        """Note an artifact whose content is in the spool; one of the same name is replaced.

        Args:
            name: What it is called.
            digest: The SHA-256 of its content.
            size: Its length in bytes.
            metadata: What to store beside it.
            content_type: Its MIME type.
        """
        kind = None if content_type is None else clean_text(str(content_type))[:LONGEST_TEXT]
        name = clean_text(str(name))[:LONGEST_TEXT]
        entry = {"name": name, "sha256": digest, "size": size, "content_type": kind}
        with self.lock:
            if metadata:
                entry["metadata"] = self._bounded_metadata(name, clean(metadata))
            present = self.data["artifacts"]
            others = [one for one in present if one["name"] != entry["name"]]
            self._replaced.update(one["sha256"] for one in present if one not in others)
            self.data["artifacts"] = [*others, entry]
            missing = self.data["missing_files"]
            self.data["missing_files"] = [one for one in missing if one != entry["name"]]

    def _bounded_metadata(self, name: str, metadata: Any) -> Any:
        length = _length(metadata)
        if length <= ENTRY_LIMIT and self._metadata_length + length <= SECTION_LIMIT:
            self._metadata_length += length
            return metadata
        say(f"the metadata of the artifact {name!r} ({length:,} bytes) becomes an artifact")
        return self._moved(f"{name}.metadata", metadata)

    def miss(self, name: str, reason: object) -> None:
        """Note that a file of the run could not be kept, and say why."""
        say(f"{name} is not recorded: {reason}")
        with self.lock:
            missing = [one for one in self.data.get("missing_files", []) if one != clean(name)]
            self.data["missing_files"] = [*missing, clean(name)][-MISSING:]

    def end(self, status: str, note: str | None) -> None:
        """Note how and when the run has ended, and write that down."""
        with self.lock:
            self.describe()
            self.data["status"] = status
            # The clock may have been set back meanwhile.
            self.data["stop_time"] = max(utcnow(), self.data["start_time"])
            self.data["heartbeat"] = self.data["stop_time"]
            if note:
                self.data["status_note"] = note
        self.write()

    def write(self, strict: bool = False) -> dict[str, Any]:
        """Write the document to the spool, with the run's notes as they are now, and return it.

        Args:
            strict: Whether a disk that does not take it is an error; else it is said once.

        Raises:
            StorageError: The disk does not take it.
        """
        with self.lock:
            document = self.data
            self._delete_replaced()
            document["meta"] = clean(_without_secrets(self._run.meta_info))
            document["info"] = clean(self._run.info)
            for section in SECTIONS:
                if section in document:
                    document[section] = self._bounded(section, document[section])
            gpus = capture.gpu_information()
            if gpus is not None:
                document["host"] = {**document["host"], "gpus": clean(gpus)}
            if document["status"] == "RUNNING":
                document["heartbeat"] = utcnow()
            document["duration"] = duration(document)
            document["beats"] += 1
            # First the values, so that a power failure finds no document that knows of more.
            for file in (self.spool.metrics, self.spool.output):
                file.sync()
            document.pop("lost", None)
            values, lost_bytes = self.spool.metrics.lost()[0], self.spool.output.lost()[1]
            if values or lost_bytes:
                document["lost"] = {"values": values, "output_bytes": lost_bytes}
            snapshot = dict(document)
            try:
                self.spool.write_document(snapshot)
                if self._words:
                    self.spool.write_last_words({})
                self._failing = self._words = False
            except StorageError as error:
                if strict:
                    raise
                if not self._failing:
                    say(f"{error} The run goes on.")
                self._failing = True
                self._say_last(snapshot)
            return snapshot

    def _say_last(self, document: dict[str, Any]) -> None:
        """Write the most important into the room that was kept for it, as the disk is full."""
        words = {field: document[field] for field in LAST_FIELDS if field in document}
        self._words = True
        for field in (None, "fail_trace", "result", "missing_files"):
            if field is not None and words.pop(field, None):
                words["missing_files"] = [*words.get("missing_files", [])[:20], field]
            try:
                self.spool.write_last_words(words)
                return
            except StorageError as error:
                reason = error
        say(f"{reason} How the run ended is known to the database alone, if to any.")

    def _delete_replaced(self) -> None:
        """Delete contents that a later artifact of the same name has replaced."""
        document = self.data
        used = {one["sha256"] for one in document["artifacts"]}
        used.update(one["sha256"] for one in document["experiment"]["sources"])
        for digest in self._replaced - used:
            self.spool.file(digest).unlink(missing_ok=True)
        self._replaced.clear()

    def _experiment(self, ex_info: dict[str, Any]) -> dict[str, Any]:
        base = Path(os.path.realpath(ex_info.get("base_dir") or "."))
        git = capture.git_state(base)
        roots = [base] if git is None else [base, Path(git["root"])]
        self._roots = roots
        repositories = [] if git is None else [{k: git[k] for k in ("url", "commit", "dirty")}]
        return {
            "name": ex_info.get("name"),
            "base_dir": str(base),
            "mainfile": ex_info.get("mainfile"),
            "sources": self._sources(),
            "dependencies": capture.package_versions(),
            "repositories": repositories,
        }

    def _sources(self) -> list[dict[str, str]]:
        base = self._roots[0]
        sources = []
        for path in capture.source_files(self._roots):
            if path not in self._digests:
                try:
                    self._digests[path], _ = self.spool.add_file(path)
                except OSError as error:
                    self.miss(f"the source {path}", error.strerror or error)
                    continue
            name = os.path.relpath(path, base)
            sources.append({"name": name, "path": str(path), "sha256": self._digests[path]})
        return sources

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
            self.miss(name, f"too large for the run's document, and {error.strerror or error}")
            return {"too_large": name}
        self.add_artifact(name, digest, size, None, "application/json")
        return {"artifact": name}


def _length(data: Any) -> int:
    from bson import encode

    # As the database counts: a list of small numbers is six times as long there as in JSON.
    return len(encode({"": data}))


def _without_secrets(meta: dict[str, Any]) -> dict[str, Any]:
    """Take credentials out of what was typed on the command line."""
    options = dict(meta.get("options") or {})
    for option, value in options.items():
        if isinstance(value, str) and "@" in value and option in ("--mongo_db", "--sql"):
            options[option] = value.rpartition("@")[2]
        elif isinstance(value, list):
            options[option] = [clean_update(one) for one in value]
    return {**meta, "options": options} if options else meta
