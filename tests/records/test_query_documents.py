"""Runs that died, printed much, or were not written by the toolkit."""

import sys

from metatoolkit import records
from metatoolkit.records.run import DEAD_SECONDS, status_of
from metatoolkit.records.spool import utcnow


def test_a_silent_run_is_probably_dead():
    import datetime

    late = utcnow() - datetime.timedelta(seconds=DEAD_SECONDS + 5)
    elsewhere = {"host": "another", "pid": 1}
    assert status_of({"status": "RUNNING", "heartbeat": late, "proc": elsewhere}) == "PROBABLY_DEAD"
    assert status_of({"status": "RUNNING", "heartbeat": utcnow(), "proc": elsewhere}) == "RUNNING"
    assert status_of({"status": "COMPLETED", "heartbeat": late}) == "COMPLETED"


def test_a_dead_run_is_asked_for_by_what_is_shown(server):
    import datetime

    import pymongo

    late = utcnow() - datetime.timedelta(seconds=DEAD_SECONDS + 5)
    with pymongo.MongoClient(server.running_uri()) as client:
        client.get_default_database()["runs"].insert_many(
            [
                {"_id": 1, "status": "RUNNING", "heartbeat": late},
                {"_id": 2, "status": "RUNNING", "heartbeat": utcnow()},
                {"_id": 3, "status": "COMPLETED", "heartbeat": late},
            ]
        )
    with records.connect() as connection:
        for expression, wanted in {
            "status == 'RUNNING'": [2],
            "status == 'PROBABLY_DEAD'": [1],
            "status != 'RUNNING'": [1, 3],
            "status in ['RUNNING', 'PROBABLY_DEAD'] and id < 9": [1, 2],
            "not status == 'PROBABLY_DEAD'": [2, 3],
            "matches(status, 'DEAD$') or id == 3": [1, 3],
        }.items():
            assert [run.id for run in connection.find(expression)] == wanted, expression


def test_what_runs_printed_is_searched_some_at_a_time(server):
    import pymongo

    with pymongo.MongoClient(server.running_uri()) as client:
        client.get_default_database()["runs"].insert_many(
            [{"_id": n, "captured_out": f"Epoch {n}\n" * 100} for n in range(130)]
        )
    with records.connect() as connection:
        for pattern in ("(?i)EPOCH 12$", r"(?i)EPOCH 12\\b", r"^Epoch 12\\s"):
            found = connection.find(f"matches(output, '{pattern}')")
            assert [run.id for run in found] == [12]
            assert [header["captured_out"] for _, header in found.select()] == [""]
        assert len(connection.find("contains(output, 'Epoch 1') and id > 99")) == 30
        assert connection.find("contains(output, 'epoch')").runs() == []
        assert connection[12].output.startswith("Epoch 12")


def test_documents_of_stock_sacred_are_read_too(server):
    import pymongo

    with pymongo.MongoClient(server.running_uri()) as client:
        database = client.get_default_database()
        database["runs"].insert_one(
            {"_id": 5, "experiment": {"name": "old"}, "status": "RUNNING", "config": {"lr": 1},
             "info": {"metrics": [{"name": "loss", "id": "x"}]}, "start_time": utcnow()}
        )  # fmt: skip
        database["metrics"].insert_one(
            {"run_id": 5, "name": "loss", "steps": [0, 1], "values": [2.0, 1.0], "timestamps": []}
        )
    with records.connect() as connection:
        assert connection[5].metrics["loss"].tolist() == [2.0, 1.0]
        assert connection.find("config.lr == 1").table()["experiment"].tolist() == ["old"]


def test_planted_documents_are_data_and_nothing_else(server, monkeypatch, capsys):
    import pymongo

    from metatoolkit.cli import main

    evil = {"py/object": "os.system", "py/reduce": [{"py/function": "os.system"}, ["touch /tmp/x"]]}
    with pymongo.MongoClient(server.running_uri()) as client:
        client.get_default_database()["runs"].insert_one(
            {"_id": 1, "experiment": {"name": "\x1b[31m[red]e[/red]"}, "status": "COMPLETED",
             "config": {"x": evil, "$(touch y)": 1}, "result": evil, "start_time": utcnow(),
             "host": "no dictionary"}
        )  # fmt: skip
    with records.connect() as connection:
        assert connection[1].config["x"] == evil
        assert connection[1].result == evil
    assert main(["runs", "list"]) == main(["runs", "show", "1"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["runs", "export"]) == 0
    assert "\x1b[31m[red]e" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["runs", "export"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_odd_ids_keys_and_errors_are_shown_and_found(server, monkeypatch, capsys, tmp_path):
    import bson
    import pymongo

    from metatoolkit.cli import main

    ids = [{"host": "a", "n": 1}, "named by hand", bson.ObjectId("0123456789ab0123456789ab"), 4]
    with pymongo.MongoClient(server.running_uri()) as client:
        database = client.get_default_database()
        for number, one in enumerate(ids):
            database["runs"].insert_one(
                {"_id": one, "experiment": {"name": "odd"}, "status": "FAILED",
                 "config": {"\x1b[31mlr": number, "seed": 1}, "start_time": utcnow(),
                 "result": {"\x1b]0;title\x07": 1.0 * number},
                 "fail_trace": ["Traceback\n", "ValueError: \x1b[2J\n"],
                 "info": {"metrics": [{"name": "\x1b[31mloss", "id": "x"}]}}
            )  # fmt: skip
            database["metrics"].insert_one(
                {"run_id": one, "name": "\x1b[31mloss", "steps": [0], "values": [1.0 * number]}
            )
    with records.connect() as connection:
        assert len(connection.find("not id == 7")) == 4
        for one in ids:
            assert connection[one].id == one and connection[str(one)].id == one
        assert connection.best("\x1b[31mloss").id == 4
        records.tag(connection[ids[0]], "paper")
        assert records.tag(4, ["paper", "x"]) == ["paper", "x"]
        records.note("named by hand", "mine")
        assert len(connection.find("'paper' in tags")) == 2
        assert records.compare(connection.find()).runs[0].experiment == "odd"
        compared = [connection[4], ids[0], "named by hand"]
        assert len(records.compare(compared, database=connection).differing()) == 2
    for words in (
        ["list"], ["list", "--json"], ["list", "--columns", "id,config,reason,result"],
        ["show", str(ids[0])], ["show", "4", "--json"], ["compare", "4", str(ids[2])],
        ["group", "\x1b[31mloss", "--by", "id"], ["best", "\x1b[31mloss"],
        ["tag", "a", str(ids[0])],
        ["export", "--format", "json"], ["plot", "--metric", "\x1b[31mloss", "--output", "a.png"],
        ["report", "--output", "a.html"], ["tail", "4"], ["best", "nothing"],
        ["list", "--where", "config.sed > 1"], ["rm", str(ids[0]), "4", "--yes"],
    ):  # fmt: skip
        monkeypatch.chdir(tmp_path)
        main(["runs", *words])
        told = capsys.readouterr()
        assert "\x1b" not in told.out + told.err and "\x07" not in told.out + told.err, words
    with records.connect() as connection:
        assert {str(run.id) for run in connection.find()} == {str(ids[1]), str(ids[2])}
