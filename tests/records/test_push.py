import pytest
from pymongo.errors import AutoReconnect, OperationFailure

from metatoolkit.errors import RecordsError
from metatoolkit.records import metrics as pushed
from metatoolkit.records import push as pushing
from metatoolkit.records.home import AppendedFile
from metatoolkit.records.metrics import metric_id
from metatoolkit.records.push import Push, next_id, shorten
from metatoolkit.records.spool import RunSpool, utcnow


class Flaky:
    """A database whose n-th operation fails, either before or after it has taken effect."""

    OPERATIONS = (
        "find_one", "insert_one", "update_one", "find_one_and_update", "bulk_write", "aggregate",
        "create_index", "find", "count_documents",
    )  # fmt: skip

    def __init__(self, target, fail_at, after, count=None):
        self.target, self.fail_at, self.after = target, fail_at, after
        self.count = count if count is not None else [0]

    def __getitem__(self, name):
        return Flaky(self.target[name], self.fail_at, self.after, self.count)

    def with_options(self, **options):
        return Flaky(self.target.with_options(**options), self.fail_at, self.after, self.count)

    def __getattr__(self, name):
        method = getattr(self.target, name)
        if name not in self.OPERATIONS:
            return method

        def call(*args, **kwargs):
            self.count[0] += 1
            if self.count[0] != self.fail_at:
                return method(*args, **kwargs)
            if self.after:
                method(*args, **kwargs)
            raise AutoReconnect("cut off")

        return call


@pytest.fixture
def spool(tmp_path, home):
    made = RunSpool.create(home)
    source = tmp_path / "artifact.bin"
    source.write_bytes(b"z" * 700_000)
    digest, size = made.add_file(source)
    document = {
        "run_uuid": made.uuid,
        "status": "COMPLETED",
        "start_time": utcnow(),
        "experiment": {
            "name": "e",
            "sources": [{"name": "s.py", "path": "/s.py", "sha256": digest}],
        },
        "info": {},
        "artifacts": [{"name": "a.bin", "sha256": digest, "size": size}],
    }
    made.write_document(document)
    return made


def log(spool, name, start, count):
    file = AppendedFile(spool.path / "metrics.jsonl")
    for step in range(start, start + count):
        file.append(f'["{name}", {step}, {step}.5, 1000.0]\n'.encode())
    file.close()


def check(database, spool, names, count):
    assert database["runs"].count_documents({}) == 1
    run = database["runs"].find_one({"run_uuid": spool.uuid})
    for name in names:
        parts = database["metrics"].find({"run_id": run["_id"], "name": name}).sort("part", 1)
        values = [value for part in parts for value in part["values"]]
        assert values == [step + 0.5 for step in range(count)]
    assert database["fs.files"].count_documents({}) == 2
    chunks = database["fs.chunks"].aggregate([{"$group": {"_id": "$files_id", "n": {"$sum": 1}}}])
    assert [chunk["n"] for chunk in chunks] == [3, 3]
    return run


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_attempt_cut_off_anywhere_is_repeated_without_loss_or_double(
    database, spool, monkeypatch, after
):
    monkeypatch.setattr(pushed, "PART", 7)
    names = ("loss", "val.acc")
    fail_at = 0
    cut_off = True
    while cut_off:
        fail_at += 1
        for collection in database.list_collection_names():
            database[collection].delete_many({})
        (spool.path / "metrics.jsonl").unlink(missing_ok=True)
        spool = RunSpool(spool.path)
        for name in names:
            log(spool, name, 0, 10)
        document = spool.read_document()
        push = Push(spool)
        flaky = Flaky(database, fail_at, after)
        cut_off = False
        for part in range(2):
            for _ in range(2):
                try:
                    push(flaky, document, final=part == 1)
                except AutoReconnect:
                    push.forget()
                    cut_off = True
            if part == 0:
                for name in names:
                    log(spool, name, 10, 10)
        check(database, spool, names, 20)
        assert push.verify(database, document)
        # A second process that knows nothing of the first changes nothing.
        again = Push(spool)
        again(database, document, final=True)
        assert again.verify(database, document)
        run = check(database, spool, names, 20)
        assert run["summary"]["loss"]["count"] == 20
        spool.close()
    assert fail_at > 20


def test_values_that_a_killed_server_forgot_are_pushed_again(database, spool):
    log(spool, "loss", 0, 10)
    push = Push(spool)
    document = spool.read_document()
    push(database, document)
    database["metrics"].update_one({}, {"$pop": {"steps": 1, "values": 1, "timestamps": 1}})
    log(spool, "loss", 10, 10)
    push(database, document, final=True)
    assert push.verify(database, document)
    check(database, spool, ["loss"], 20)
    database["metrics"].delete_many({})
    assert not push.verify(database, document)
    push(database, document, final=True)
    assert push.verify(database, document)
    check(database, spool, ["loss"], 20)
    spool.close()


def test_ids_go_on_after_those_that_somebody_else_gave(database, spool):
    database["runs"].insert_many([{"_id": number, "status": "COMPLETED"} for number in (1, 2, 7)])
    assert Push(spool)(database, spool.read_document()) == 8
    assert Push(spool)(database, spool.read_document()) == 8
    spool.close()


def test_a_damaged_line_is_left_out_and_said(database, spool, capsys):
    log(spool, "loss", 0, 3)
    with open(spool.path / "metrics.jsonl", "ab") as file:
        file.write(b"\0\0\0\n12\n[]\n{}\n[[1], 3, 0.5, 1.0]\n")
        file.write(b'["loss", 3, null, 1.0]\n["a", 1, 2, 3], ["b", 1, 2, 3]\n')
    log(spool, "loss", 3, 3)
    push = Push(spool)
    push(database, spool.read_document(), final=True)
    (found,) = database["metrics"].find()
    assert found["values"] == [step + 0.5 for step in range(6)]
    assert capsys.readouterr().err.count("damaged line") == 7
    spool.close()


def test_output_is_cut_in_the_middle_and_progress_bars_to_their_last_state():
    assert shorten(b"10%\r50%\r100%\r\ndone") == "100%\ndone"
    long = shorten(b"a" * 2_000_000 + b"end")
    assert len(long) < 1_001_000
    assert long.startswith("aaa") and long.endswith("end") and "cout.txt" in long


@pytest.mark.parametrize("kept", [("metrics",), ("runs",), (), ("metrics", "runs")])
def test_a_run_that_is_deleted_while_it_goes_on_is_written_again(database, spool, kept):
    """Without a loop that never ends, whatever part of it is left."""
    log(spool, "loss", 0, 10)
    push = Push(spool)
    document = spool.read_document()
    push(database, document)
    for name in {"metrics", "runs"} - set(kept):
        database[name].delete_many({})
    log(spool, "loss", 10, 10)
    for _ in range(2):
        try:
            push(database, document, final=True)
        except RecordsError as error:
            assert "has been deleted" in str(error)
            push.forget()
    assert push.verify(database, document)
    check(database, spool, ["loss"], 20)
    assert database["metrics"].distinct("run_id") == [push.run_id]
    # Another process that knows nothing, as a query's sync.
    database["runs"].delete_many({})
    again = Push(spool)
    again(database, document, final=True)
    assert again.verify(database, document)
    check(database, spool, ["loss"], 20)
    spool.close()


def test_a_database_that_keeps_nothing_is_given_up(database, spool, monkeypatch):
    log(spool, "loss", 0, 10)
    push = Push(spool)
    monkeypatch.setattr(pushed, "metric_lengths", lambda *arguments: {})
    database["metrics"].insert_one({"_id": metric_id(spool.uuid, "loss", 0), "steps": [0]})
    with pytest.raises(RecordsError, match="does not keep what is written"):
        push(database, spool.read_document())
    spool.close()


def test_numbers_are_given_whatever_stands_in_the_database(database, monkeypatch):
    for odd in (2**63 - 1, 1e300, float("nan"), "text", 5.0, -3):
        database["runs"].insert_one({"_id": odd})
    assert [next_id(database) for _ in range(6)] == [1, 2, 3, 4, 6, 7]
    monkeypatch.setattr(pushing, "ATTEMPTS", 3)
    database["runs"].insert_many([{"_id": float(number)} for number in range(8, 20)])
    with pytest.raises(RecordsError, match="are taken"):
        next_id(database)


TAMPERED = {
    "configuration": ("runs", {"$set": {"config.lr": 0.2}}),
    "info": ("runs", {"$set": {"info.note": "another"}}),
    "a field that is gone": ("runs", {"$unset": {"info": 1}}),
    "captured output": ("runs", {"$set": {"captured_out": "another"}}),
    "a value": ("metrics", {"$set": {"values.3": 7.0}}),
    "the kind of a value": ("metrics", {"$set": {"values.0": True}}),
    "a step": ("metrics", {"$set": {"steps.3": 7}}),
    "a time": ("metrics", {"$set": {"timestamps.3": utcnow()}}),
    "a part of an artifact": ("fs.chunks", {"$set": {"data": b"y" * 10}}),
    "the end of an artifact": ("fs.chunks", None),
    "an artifact": ("fs.files", None),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_content_is_compared_and_written_again_before_the_spool_goes(database, spool, case):
    document = {**spool.read_document(), "config": {"lr": 0.1, "nan": float("nan"), "big": 2**40}}
    document["info"] = {"note": "the one"}
    for step, value in enumerate(["0.5", "NaN", "-0.0", "1", "true", "[1, 2.5]", "1e-300"]):
        with open(spool.path / "metrics.jsonl", "a") as file:
            file.write(f'["loss", {step}, {value}, {1000.0005 + step}]\n')
    push = Push(spool)
    spool.output.append("printed ✓\n".encode())
    push(database, document, final=True)
    assert push.verify(database, document)
    collection, update = TAMPERED[case]
    if update is None:
        database[collection].delete_one({})
    else:
        database[collection].update_one({}, update)
    assert not push.verify(database, document)
    push.forget()
    push(database, document, final=True)
    assert push.verify(database, document)
    found = database["metrics"].find_one()
    assert repr(found["values"]) == "[0.5, nan, -0.0, 1, True, [1, 2.5], 1e-300]"
    assert database["runs"].find_one()["config"]["big"] == 2**40
    spool.close()


def test_files_are_compared_where_the_server_cannot_do_it(database, spool, monkeypatch):
    push = Push(spool)
    document = spool.read_document()
    push(database, document, final=True)
    command = type(database).command

    def unknown(self, name, *arguments, **options):
        if name == "filemd5":
            raise OperationFailure("no such command", 59)
        return command(self, name, *arguments, **options)

    monkeypatch.setattr(type(database), "command", unknown)
    assert push.verify(database, document)
    database["fs.chunks"].update_one({"n": 2}, {"$set": {"data": b"z" * 5}})
    assert not push.verify(database, document)
    spool.close()


def test_a_line_that_the_database_cannot_hold_makes_no_run_unreadable(database, spool, capsys):
    log(spool, "loss", 0, 3)
    with open(spool.path / "metrics.jsonl", "ab") as file:
        file.write(b'["loss", 9223372036854775808, 0.5, 1000.0]\n["loss", 3, 1e9, 1e300]\n')
        file.write(b'["loss", 3, [1, [9223372036854775808]], 1000.0]\n["loss", 3, 1, NaN]\n')
        file.write(b'["loss", null, 0.5, 1000.0]\n["loss", 3, ["a"], 1000.0]\n')
    log(spool, "loss", 3, 3)
    push = Push(spool)
    push(database, spool.read_document(), final=True)
    assert push.verify(database, spool.read_document())
    check(database, spool, ["loss"], 6)
    assert capsys.readouterr().err.count("damaged line") == 6
    spool.close()


def test_values_that_the_disk_lost_and_the_database_has_are_not_lost(database, spool):
    log(spool, "loss", 0, 50)
    push = Push(spool)
    document = spool.read_document()
    push(database, document, final=True)
    lines = (spool.path / "metrics.jsonl").read_bytes().splitlines(True)
    (spool.path / "metrics.jsonl").write_bytes(b"".join(lines[:10]))
    for lost, told in {45: 5, 40: None, 0: None}.items():
        document["lost"] = {"values": lost, "output_bytes": 0}
        database["runs"].update_one({}, {"$unset": {"lost": 1}})
        again = Push(spool)
        again(database, document, final=True)
        assert again.verify(database, document)
        found = check(database, spool, ["loss"], 50)
        assert found.get("lost", {}).get("values") == told
    spool.close()


def test_a_run_that_takes_long_to_send_gives_signs_of_life(database, spool, monkeypatch):
    monkeypatch.setattr(pushing, "SIGN_SECONDS", 0.0)
    log(spool, "loss", 0, 10)
    push = Push(spool)
    document = {**spool.read_document(), "status": "RUNNING"}
    seen = []
    monkeypatch.setattr(push.files, "push", lambda *_: seen.append(database["runs"].find_one()))
    with pytest.raises(TypeError):
        push(database, document)
    assert (utcnow() - seen[0]["heartbeat"]).total_seconds() < 60
    spool.close()
