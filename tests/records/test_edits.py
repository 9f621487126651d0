"""Tags, notes, deletion and following of runs, by hand and on the command line."""

import re
import subprocess
import sys

import pytest

from metatoolkit import records
from metatoolkit.cli import main
from metatoolkit.errors import ConfigurationError, QueryError, RecordsError
from metatoolkit.records import edits
from metatoolkit.records.spool import RunSpool, spooled_runs, utcnow

from . import faults, faulty_runs
from .experiments import count_up, make, run


def add_artifact(path, content):
    def body(_run):
        count_up(_run)
        path.write_bytes(content)
        _run.add_artifact(path)
        return {"accuracy": 0.9}

    return body


def test_tags_and_notes_are_stored_where_omniboard_keeps_them(database, capsys):
    run(count_up)
    run(count_up)
    assert main(["runs", "tag", "paper, final", "1", "2"]) == 0
    assert main(["runs", "tag", "final", "2", "--remove"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "run 2: paper"
    assert main(["runs", "note", "latest", "the one in table 2"]) == 0
    assert main(["runs", "note", "2"]) == 0
    assert capsys.readouterr().out == "the one in table 2\n" * 2
    # What a shell may hand over that is no text.
    assert main(["runs", "tag", "\udcff", "1"]) == main(["runs", "note", "1", "\udcff"]) == 0
    assert capsys.readouterr().out == "run 1: paper, final, \\udcff\n\\udcff\n"
    assert main(["runs", "tag", "\udcff", "1", "--remove"]) == 0
    capsys.readouterr()
    stored = database["runs"].find_one({"_id": 2})["omniboard"]
    assert stored == {"tags": ["paper"], "notes": "the one in table 2"}
    with records.connect() as connection:
        assert [one.id for one in connection.find("'final' in tags")] == [1]
        assert connection.find("contains(notes, 'table')")[0].notes == "the one in table 2"
        with pytest.raises(ConfigurationError, match="1 to 100 characters"):
            edits.tag(connection[1], [" "])
    database["runs"].insert_one({"_id": 9, "omniboard": "planted", "status": "COMPLETED"})
    assert main(["runs", "tag", "paper", "9"]) == 0


def test_a_run_in_the_spool_has_no_tags_but_can_be_deleted(home, monkeypatch, capsys):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    run(count_up)
    with records.connect() as connection:
        with pytest.raises(RecordsError, match="records sync"):
            edits.tag(connection["latest"], ["paper"])
    assert main(["runs", "rm", "latest", "--yes"]) == 0
    assert list(spooled_runs(home)) == [] and list((home / "spool").iterdir()) == []
    assert main(["runs", "show", "latest"]) == 2
    assert "there are no runs yet" in capsys.readouterr().err


def test_deletion_asks_and_leaves_what_others_need(database, tmp_path, monkeypatch, capsys):
    for content in (b"one", b"two"):
        run(add_artifact(tmp_path / "weights.bin", content))
    others = database["runs"].find_one({"_id": 2})["artifacts"]
    # A document that claims another run's file takes it with it no more than its own sources.
    database["runs"].insert_one({"_id": 3, "status": "COMPLETED", "artifacts": others})
    assert main(["runs", "rm", "1"]) == 2
    assert "add --yes" in capsys.readouterr().err
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdin", None)
        assert main(["runs", "rm", "1"]) == 2
    assert "add --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, code in {"": 1, "n": 1, "x": 1}.items():
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert main(["runs", "rm", "1", "3"]) == code
    assert database["runs"].count_documents({}) == 3
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    assert main(["runs", "rm", "1", "3"]) == 0
    assert "deleted: 1, 3" in capsys.readouterr().out
    assert [one["_id"] for one in database["runs"].find()] == [2]
    assert database["metrics"].distinct("run_id") == [2]
    with records.connect() as connection:
        assert connection[2].artifacts["weights.bin"].read() == b"two"
        assert connection[2].details()["experiment"]["sources"]
    assert database["fs.files"].count_documents({"filename": {"$regex": "^artifact"}}) == 1
    used = database["fs.files"].distinct("_id", {"length": {"$gt": 0}})
    assert set(database["fs.chunks"].distinct("files_id")) == set(used)
    assert main(["runs", "rm"]) == 2
    assert main(["runs", "rm", "--where", "status == 'FAILED'", "--yes"]) == 0
    assert main(["runs", "rm", "--where", "id == 2", "--yes"]) == 0
    assert database["fs.chunks"].count_documents({"files_id": {"$in": [others[0]["file_id"]]}}) == 0


def test_a_run_that_goes_on_is_not_deleted(database, capsys):
    database["runs"].insert_one({"_id": 1, "status": "RUNNING", "heartbeat": utcnow()})
    assert main(["runs", "rm", "1", "--yes"]) == 2
    assert "still running: 1" in capsys.readouterr().err


def test_a_live_run_is_not_deleted_whatever_the_clock_says(home, database, capsys):
    import datetime

    def main(_run):
        count_up(_run)
        uuid = records.run_uuid(_run)
        late = utcnow() - datetime.timedelta(days=1)
        for status in ("RUNNING", "COMPLETED"):
            # The lock of its folder is held, whatever the document says.
            update = {"$set": {"heartbeat": late, "start_time": late, "status": status}}
            database["runs"].update_one({"run_uuid": uuid}, update)
            assert main_of_cli(["runs", "rm", uuid, "--yes"]) == 2
            database["runs"].update_one({"run_uuid": uuid}, {"$unset": {"proc.ticks": 1}})
        assert database["runs"].count_documents({}) == 1
        return {}

    main_of_cli = globals()["main"]
    run(main)
    told = capsys.readouterr().err
    assert "still running: 1" in told and "is being written or pushed" in told
    assert main_of_cli(["runs", "rm", "1", "--yes"]) == 0
    assert database["runs"].count_documents({}) == 0


def test_what_is_deleted_does_not_come_back_from_the_spool(home, database):
    done = run(count_up)
    made = RunSpool.create(home)
    made.path = made.path.rename(made.path.with_name(f"20260101-{records.run_uuid(done)}"))
    made.write_document({"run_uuid": made.uuid, "status": "COMPLETED", "artifacts": "damaged"})
    made.unlock()
    assert main(["runs", "rm", "1", "--yes"]) == 0
    assert list(spooled_runs(home)) == [] and database["metrics"].count_documents({}) == 0


def test_a_document_deletes_no_files_but_its_own(database, tmp_path):
    run(add_artifact(tmp_path / "weights.bin", b"one"))
    sources = [one[1] for one in database["runs"].find_one()["experiment"]["sources"]]
    files = database["fs.files"].count_documents({})
    planted = [
        {"run_uuid": {"$exists": True}},
        {"run_uuid": {"$ne": "x"}, "artifacts": [{"file_id": {"$ne": 1}}, {"name": "n"}]},
        {"artifacts": [{"file_id": one} for one in sources]},
        {"artifacts": [{"file_id": re.compile(".")}], "run_uuid": ["x"]},
    ]
    for number, document in enumerate(planted, 2):
        database["runs"].insert_one({"_id": number, "status": "COMPLETED", **document})
        assert main(["runs", "rm", str(number), "--yes"]) == 0
    assert database["fs.files"].count_documents({}) == files
    with records.connect() as connection:
        assert connection[1].artifacts["weights.bin"].read() == b"one"


@pytest.mark.slow
def test_tail_follows_a_live_run_to_its_end(home, server, tmp_path):
    worker = faults.Worker(tmp_path / "run", faulty_runs.slow_start)
    worker.wait_for_start()
    command = [sys.executable, "-m", "metatoolkit.cli", "runs", "tail"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as tail:
        first = tail.stdout.readline()
        # It follows: now the run may go on.
        (tmp_path / "run" / "go").touch()
        rest, told = tail.communicate(timeout=240)
    worker.join()
    assert tail.returncode == 0, told
    lines = (first + rest).splitlines()
    values = [line for line in lines if line.startswith("loss  step ")]
    assert values == [f"loss  step {step}  {step}" for step in range(faulty_runs.VALUES)]
    assert any("Started" in line for line in lines)
    assert lines[-1] == "run 1: COMPLETED"


def test_tail_of_a_run_elsewhere_reads_the_database(database, capsys):
    done = run(count_up)
    uuid = records.run_uuid(done)
    assert main(["runs", "tail", uuid[:8], "--metric", "loss", "--quiet"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 21 and shown[0] == "loss  step 0  1" and shown[-1] == "run 1: COMPLETED"
    database["runs"].update_one({"_id": 1}, {"$set": {"status": "FAILED"}})
    assert main(["runs", "tail", "1", "--quiet"]) == 1
    assert main(["runs", "tail"]) == 2
    assert "no run goes on" in capsys.readouterr().err


def test_what_follows_is_what_is_new(database):
    from metatoolkit.cli.tail import Follower

    run(count_up)
    runs = database["runs"]
    now = {"status": "RUNNING", "heartbeat": utcnow(), "proc": {}}
    runs.update_one({"_id": 1}, {"$set": {**now, "captured_out": "one\ntwo: 100%\n"}})
    with records.connect() as connection:
        follower = Follower(connection, connection[1])
        # The first part has come from the spool, its progress bar included.
        follower._printed = b"one\ntwo: 10%\rtwo: 100%\n"
        assert [news.value for news in follower._from_database() if news.metric is None] == []
        runs.update_one({"_id": 1}, {"$set": {"captured_out": "one\ntwo: 100%\nthree\n"}})
        assert [news.value for news in follower._from_database()] == ["three\n"]
        assert list(follower._from_database()) == []


def test_the_latest_run_has_a_name(database):
    with records.connect() as connection:
        with pytest.raises(QueryError, match="no runs yet"):
            connection["latest"]
    make(count_up).run()
    with records.connect() as connection:
        assert connection["latest"].id == 1
