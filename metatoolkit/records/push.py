"""One run from its spool into MongoDB: every step may be repeated and changes nothing then."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import RecordsError
from metatoolkit.records.clean import encode_key
from metatoolkit.records.fields import duration
from metatoolkit.records.files import OUTPUT_ARTIFACT, OUTPUT_LIMIT, FilePush, Pace
from metatoolkit.records.metrics import MetricPush
from metatoolkit.records.spool import RunSpool, utcnow

if TYPE_CHECKING:
    from pymongo.database import Database

NAMES = 10_000
NAMES_LENGTH = 1_000_000
ATTEMPTS = 1_000
SIGN_SECONDS = 5.0
# Somebody may have given a run the largest of all: what comes after it is none.
LARGEST = 2**53
_NEVER = datetime.datetime.min


class Push:
    """What is known about one run's copy in one database.

    Args:
        spool: The run's folder.
    """

    def __init__(self, spool: RunSpool) -> None:
        self.spool = spool
        self.run_id: int | None = None
        self._pace = Pace()
        self.metrics = MetricPush(spool)
        self.files = FilePush(spool, self._pace)
        self._fields: dict[str, int] = {}
        self._shown = (0, "")
        self._pushed: dict[str, Any] = {}
        self._signed = 0.0

    def __call__(
        self,
        database: Database[dict[str, Any]],
        document: dict[str, Any],
        final: bool = False,
        former: Mapping[str, Any] | None = None,
    ) -> int:
        """Bring the database up to the spool.

        Args:
            database: Where the copy goes.
            document: The run's document as the spool has it.
            final: Write every field again, whatever was written before.
            former: The run's document in the database, where it may know more than the spool.

        Returns:
            The run's id in this database.
        """
        from pymongo import WriteConcern

        # Without the journal, a killed server forgets what it has acknowledged.
        database = database.with_options(write_concern=WriteConcern(w="majority", j=True))
        self.metrics.read()
        if self.run_id is None:
            ensure_indexes(database)
            first = {name: document[name] for name in ("status", "start_time")}
            self.run_id, new = number_run(database, {"run_uuid": self.spool.uuid}, first)
            if new:
                # Of a run whose document was deleted, values may be left under another number.
                self.metrics.adopt(database, self.run_id)
        if document["status"] == "RUNNING":
            self._pace.after = lambda: self._sign_of_life(database)
        self.metrics.push(database, self.run_id, self._pace)
        files = self.files.push(database, self.run_id, document)
        self._pushed = self._run_document(document, files)
        if former is not None:
            self._pushed = _not_less(self._pushed, former)
        self._push_document(database, self._pushed, final)
        self.files.remove_outdated(database)
        assert self.run_id is not None
        return self.run_id

    def verify(self, database: Database[dict[str, Any]], document: dict[str, Any]) -> bool:
        """Read back what was pushed, and compare its content.

        Args:
            database: Where the copy is.
            document: The run's document as the spool has it.

        Returns:
            Whether every field, every metric value and every file is there and the same. What is
            not is written again by the next push.
        """
        from bson import encode

        found = database["runs"].find_one({"run_uuid": self.spool.uuid})
        if found is None:
            return False
        for field, value in self._pushed.items():
            if field not in found or encode({"": found[field]}) != encode({"": value}):
                return False
        ids = [entry["file_id"] for entry in self._pushed.get("artifacts", [])]
        ids += [one[1] for one in self._pushed.get("experiment", {}).get("sources", [])]
        files = self.files.same(database, ids)
        return self.metrics.same(database, found["_id"]) and files

    def forget(self) -> None:
        """Ask the database anew what it holds, since an attempt has failed on the way."""
        self.metrics.forget()
        self.files.forget()
        self._fields.clear()

    def _sign_of_life(self, database: Database[dict[str, Any]]) -> None:
        """Say that the run goes on, as it takes long to send what it has."""
        if time.monotonic() - self._signed > SIGN_SECONDS:
            self._signed = time.monotonic()
            beat = {"$set": {"heartbeat": utcnow()}}
            database["runs"].update_one({"_id": self.run_id}, beat)

    def _run_document(self, document: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
        summaries = self.metrics.summary
        every = sorted(summaries)
        # With a name for every step, say, the document would outgrow what MongoDB takes.
        lengths = itertools.accumulate(len(name) for name in every)
        names = [name for name, length in zip(every, lengths, strict=True) if length < NAMES_LENGTH]
        names = names[:NAMES]
        metrics = self.metrics.documents(names)
        result = {key: value for key, value in document.items() if key != "output"}
        result["experiment"] = {**document["experiment"], "sources": files["sources"]}
        result["artifacts"] = files["artifacts"]
        missing = [*result.pop("missing_files", []), *files["missing"]]
        if missing:
            result["missing_files"] = list(dict.fromkeys(missing))
        lost = result.pop("lost", None)
        if lost is not None and document["status"] != "RUNNING":
            # What the disk did not take the database may have.
            lost = {**lost, "values": max(0, lost["values"] - self.metrics.regained)}
            if any(lost.values()):
                result["lost"] = lost
        if metrics and isinstance(document["info"], dict):
            result["info"] = {**document["info"], "metrics": metrics[: 2 * NAMES]}
        result["captured_out"] = self._captured_output()
        result["summary"] = {encode_key(name): summaries[name] for name in names}
        if len(every) > len(names):
            result["unlisted_metrics"] = len(every) - len(names)
        return result

    def _captured_output(self) -> str:
        size = self.spool.output.size()
        if size != self._shown[0]:
            if size <= 4 * OUTPUT_LIMIT:
                text = shorten(self.spool.output.read(0))
            else:
                ends = self.spool.output.read(0, OUTPUT_LIMIT) + self.spool.output.read(
                    size - OUTPUT_LIMIT
                )
                text = shorten(ends, left_out=size - 2 * OUTPUT_LIMIT)
            self._shown = size, text
        return self._shown[1]

    def _push_document(
        self, database: Database[dict[str, Any]], document: dict[str, Any], final: bool
    ) -> None:
        prints = {field: hash(repr(value)) for field, value in document.items()}
        changed = {
            field: value
            for field, value in document.items()
            if final or self._fields.get(field) != prints[field]
        }
        if changed:
            done = database["runs"].update_one({"_id": self.run_id}, {"$set": changed})
            if not done.matched_count:
                self.run_id = None
                raise RecordsError(f"run {document['run_uuid']} has been deleted from the database")
            self._fields.update({field: prints[field] for field in changed})


def _not_less(document: dict[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """Leave what the database knows and the spool has lost, as after a power failure."""
    result = dict(document)
    if former.get("beats", 0) > document.get("beats", 0):
        ended = former.get("status") != "RUNNING"
        kept = {"summary", "unlisted_metrics"}
        kept |= set() if ended else {"status", "status_note", "stop_time", "duration"}
        result = {field: value for field, value in document.items() if field in kept}
        info = former.get("info")
        if not ended:
            # It was heard of later than the spool tells.
            result["stop_time"] = max(result["stop_time"], former.get("heartbeat") or _NEVER)
            result["duration"] = duration({**former, "stop_time": result["stop_time"]})
        if isinstance(info, Mapping) and "metrics" in document.get("info", {}):
            result["info"] = {**info, "metrics": document["info"]["metrics"]}
    elif len(str(former.get("captured_out", ""))) > len(document["captured_out"]):
        del result["captured_out"]
    return result


def shorten(output: bytes, left_out: int = 0) -> str:
    """Cut captured output to what a document should hold, keeping its beginning and its end.

    Args:
        output: The whole output, or its beginning and its end.
        left_out: How many bytes are missing between them.

    Returns:
        Text without overwritten progress bars, of about one megabyte at most.
    """
    text = output.decode("utf-8", "replace")
    if "\r" in text:
        lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
        text = "\n".join(lines)
    if len(text) <= OUTPUT_LIMIT and not left_out:
        return text
    half = min(OUTPUT_LIMIT, len(text)) // 2
    left_out += len(text) - 2 * half
    note = f"[... {left_out} characters: see the artifact {OUTPUT_ARTIFACT} ...]"
    return f"{text[:half]}\n{note}\n{text[-half:]}"


def number_run(
    database: Database[dict[str, Any]],
    identity: Mapping[str, Any],
    first: Mapping[str, Any],
    number: Any = None,
) -> tuple[Any, bool]:
    """Find a run's number, or reserve one, and keep it from others.

    Args:
        database: The database.
        identity: What tells the run from others; it is compared, and never read as a condition.
        first: What else to store of it where it is new.
        number: The number that it should get if no other run has it.

    Returns:
        The number, and whether it is new.

    Raises:
        RecordsError: No number can be had.
    """
    from pymongo.errors import DuplicateKeyError

    runs = database["runs"]
    same = {name: {"$eq": value} for name, value in identity.items()}
    for _ in range(ATTEMPTS):
        found = runs.find_one(same, {"_id": 1})
        if found is not None:
            return found["_id"], False
        number = next_id(database) if number is None else number
        try:
            runs.insert_one({**identity, **first, "_id": number})
        except DuplicateKeyError:
            # Somebody else numbers runs here too, and has just taken this one.
            number = None
            continue
        return number, True
    raise RecordsError(f"no number can be had for the run {dict(identity)}")


def next_id(database: Database[dict[str, Any]]) -> int:
    """Reserve a number above all that are in use; no other process gets the same one."""
    from pymongo import ReturnDocument
    from pymongo.errors import DuplicateKeyError

    runs, counters = database["runs"], database["counters"]
    for _ in range(ATTEMPTS):
        try:
            counter = counters.find_one_and_update(
                {"_id": "runs"},
                {"$inc": {"last": 1}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:
            # Two processes have created the counter at once; now it is there for both.
            continue
        assert counter is not None
        number = int(counter["last"])
        if runs.find_one({"_id": number}, {"_id": 1}) is None:
            return number
        integers = {"$type": ["int", "long"], "$lt": LARGEST}
        largest = runs.find_one({"_id": integers}, {"_id": 1}, sort=[("_id", -1)])
        top = int(largest["_id"]) if largest is not None else 0
        counters.update_one({"_id": "runs"}, {"$max": {"last": top}})
    raise RecordsError("the database gives no number to a new run: those that follow are taken")


def ensure_indexes(database: Database[dict[str, Any]]) -> None:
    """Create the indexes that queries and uniqueness rest on; existing ones are left alone."""
    runs, metrics = database["runs"], database["metrics"]
    # Partial: documents that Sacred's own observer wrote have no run_uuid.
    only_ours = {"run_uuid": {"$exists": True}}
    runs.create_index("run_uuid", unique=True, partialFilterExpression=only_ours)
    runs.create_index("start_time")
    runs.create_index("experiment.name")
    runs.create_index("status")
    metrics.create_index([("run_id", 1), ("name", 1)])
    database["fs.chunks"].create_index([("files_id", 1), ("n", 1)], unique=True)
    database["fs.files"].create_index([("filename", 1), ("uploadDate", 1)])
