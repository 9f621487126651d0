import math
import os
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from metatoolkit import records
from metatoolkit.errors import (
    ConfigurationError,
    QueryError,
    RecordsError,
    StorageError,
    UnknownNameError,
)
from metatoolkit.records.run import DEAD_SECONDS, Artifact, status_of
from metatoolkit.records.server import ManagedServer
from metatoolkit.records.spool import utcnow

from .conftest import kill_server
from .experiments import make


@pytest.fixture(scope="module")
def filled(mongod, tmp_path_factory):
    """A database with eight runs: two methods, three seeds each, one that failed, one odd."""
    home = tmp_path_factory.mktemp("filled")
    former = os.environ.get("METATOOLKIT_HOME")
    os.environ["METATOOLKIT_HOME"] = str(home)

    def main(_run, method, seed, lr):
        for step in range(5):
            _run.log_scalar(
                "valid_loss", (2.0 if method == "plain" else 1.0) / (step + 1) + seed, step
            )
        path = home / "weights.bin"
        path.write_bytes(b"weights %d" % seed)
        _run.add_artifact(path)
        _run.add_artifact(path, "../../outside.bin")
        if method == "broken":
            raise ValueError("broken")
        accuracy = {"plain": 0.7, "evograd": 0.9}[method] + 0.01 * seed
        return {"test_accuracy": accuracy, "nested": {"count": seed}}

    try:
        for method in ("plain", "evograd"):
            for seed in (1, 2, 3):
                made = make(main, lr=0.1)
                made.run(config_updates={"method": method, "seed": seed})
        with pytest.raises(ValueError, match="broken"):
            make(main, lr=0.5).run(config_updates={"method": "broken", "seed": 4})
        odd = make(lambda _run: _run.info.update({"a.b": 1}), lr=0.1)
        odd.run()
        yield home
    finally:
        kill_server(home)
        if former is not None:
            os.environ["METATOOLKIT_HOME"] = former
        else:
            del os.environ["METATOOLKIT_HOME"]


@pytest.fixture
def connection(filled):
    with records.connect(home=filled) as opened:
        yield opened


def test_find_sorts_limits_and_makes_tables(connection):
    found = connection.find("config.method == 'evograd' and result.test_accuracy > 0.8")
    table = found.sort("-result.test_accuracy").table()
    assert list(table["result.test_accuracy"]) == [0.93, 0.92, 0.91]
    assert list(table["config.seed"]) == [3, 2, 1]
    assert table["start_time"].dtype.kind == "M"
    assert [run.id for run in found.sort("result.test_accuracy").limit(2)] == [4, 5]
    assert len(connection.find()) == 8
    assert len(connection.find(experiment="tested")) == 8
    assert len(connection.find(experiment="other")) == 0
    assert [run.id for run in connection.latest(2)] == [8, 7]


def test_what_lacks_the_field_comes_last_in_either_direction(connection):
    for key in ("result.test_accuracy", "-result.test_accuracy"):
        assert {run.id for run in connection.find().sort(key).runs()[-2:]} == {7, 8}
    by_two = connection.find().sort("config.method", "-config.seed").table(["config.method", "id"])
    assert list(by_two["id"]) == [7, 6, 8, 5, 4, 3, 2, 1]


def test_tables_have_the_columns_that_are_asked_for(connection):
    table = connection.find("id <= 2").table(["id", "metrics.valid_loss.min", "result.nested"])
    assert list(table.columns) == ["id", "metrics.valid_loss.min", "result.nested"]
    assert table["metrics.valid_loss.min"].tolist() == [1.4, 2.4]
    assert table["result.nested"].tolist() == [{"count": 1}, {"count": 2}]


def test_the_best_run_by_a_result_and_by_a_metric(connection):
    assert connection.best("result.test_accuracy").id == 6
    assert connection.best("result.test_accuracy", where="config.method == 'plain'").id == 3
    assert connection.best("result.test_accuracy", mode="min").id == 1
    assert connection.best("valid_loss", mode="min", at="min").id == 4
    assert connection.best("valid_loss", mode="max", at="last", experiment="tested").id == 7
    with pytest.raises(RecordsError, match="none of the 1 selected runs"):
        connection.best("result.test_accuracy", where="config.method == 'broken'")
    with pytest.raises(RecordsError, match="no runs match"):
        connection.best("result.test_accuracy", experiment="other")
    with pytest.raises(ConfigurationError, match="'max' or 'min'"):
        connection.best("valid_loss", mode="most")


def test_a_run_gives_its_configuration_metrics_and_artifacts(connection, tmp_path):
    run = connection[4]
    assert run.config["method"] == "evograd"
    assert run.status == "COMPLETED"
    series = run.metrics["valid_loss"]
    assert isinstance(series, pandas.Series)
    assert series.index.name == "step"
    assert series.tolist() == [1.0 / (step + 1) + 1 for step in range(5)]
    assert run.metrics.times("valid_loss").is_monotonic_increasing
    assert list(run.metrics) == ["valid_loss"]
    assert "valid_loss" in run.metrics and "valid_los" not in run.metrics
    with pytest.raises(UnknownNameError, match="Did you mean 'valid_loss'"):
        run.metrics["valid_los"]
    assert run.artifacts["weights.bin"].read() == b"weights 1"
    assert connection[run.uuid[:10]].id == 4
    assert connection["4"].id == 4
    assert "ValueError: broken" in connection[7].fail_trace
    assert connection[8].info["a.b"] == 1
    assert len(connection.find("info['a.b'] == 1")) == 1
    with pytest.raises(QueryError, match="there is no run '99'"):
        connection[99]


def test_an_artifact_never_leaves_the_folder(connection, tmp_path):
    folder = tmp_path / "folder"
    path = connection[4].artifacts["../../outside.bin"].save(folder)
    assert path == folder / "outside.bin"
    assert path.read_bytes() == b"weights 1"

    class Planted:
        def content(self, document, entry):
            yield b"planted"

    class Run:
        store, document = Planted(), {}

    (folder / "link").symlink_to(tmp_path)
    for name in ("/etc/passwd", "..", "", "a/../../b", "..\\..\\c", "x\0y", "."):
        saved = Artifact(Run(), {"name": name}).save(folder)
        assert folder in saved.resolve().parents
    with pytest.raises(StorageError, match="leads out"):
        Artifact(Run(), {"name": "link/escaped"}).save(folder)
    assert not (tmp_path / "escaped").exists()


def test_groups_have_mean_deviation_and_interval(connection):
    table = connection.find("status == 'COMPLETED'").group("config.method", "result.test_accuracy")
    row = table[table["config.method"] == "evograd"].iloc[0]
    values = np.array([0.91, 0.92, 0.93])
    assert math.isclose(row["mean"], values.mean())
    assert math.isclose(row["std"], values.std(ddof=1))
    assert row["count"] == 3
    half = 4.302652729911275 * values.std(ddof=1) / math.sqrt(3)
    assert math.isclose(row["low95"], values.mean() - half)
    assert math.isclose(row["high95"], values.mean() + half)
    by_two = connection.find().group(["config.method", "config.lr"], "valid_loss", at="min")
    assert list(by_two.columns[:2]) == ["config.method", "config.lr"]
    assert by_two["count"].sum() == 7


def test_runs_are_compared_and_drawn(filled, tmp_path, connection):
    comparison = records.compare([1, 4], metric="valid_loss", database=connection)
    differences = comparison.differences()
    assert differences.index[0] == "config.method"
    assert differences.loc["config.method"].tolist() == ["plain", "evograd"]
    assert list(comparison.table().columns) == [1, 4]
    for name in ("curves.png", "curves.svg", "curves.pdf"):
        assert comparison.plot(tmp_path / name).stat().st_size > 1000
    over = records.compare([1, 2, 3, 4, 5, 6], "valid_loss", connection)
    assert [label for label, _ in over._groups("seed")] == ["method=plain", "method=evograd"]
    assert {curves.shape for _, curves in over._groups("seed")} == {(5, 3)}
    over.plot(tmp_path / "seeds.png", over="seed", log_x=True, log_y=True)
    # Averaged over methods, two seeds are two curves.
    labels = [label for label, _ in over._groups("method")]
    assert labels == ["seed=1", "seed=2", "seed=3"]
    with pytest.raises(UnknownNameError, match="Did you mean 'seed'"):
        over.plot(tmp_path / "wrong.png", over="sed")
    with pytest.raises(ConfigurationError, match="must end in"):
        comparison.plot(tmp_path / "curves.exe")
    with pytest.raises(UnknownNameError, match="valid_loss"):
        records.compare([1], metric="loss", database=connection)


def test_a_misspelled_field_is_told_from_one_without_matches(connection):
    assert len(connection.find("config.lr == 77")) == 0
    with pytest.raises(QueryError, match=r"config\.methd.* Did you mean config\.method\?"):
        connection.find("config.methd == 'x'").runs()
    with pytest.raises(QueryError, match=r"There are: .*result\.test_accuracy"):
        connection.find("result.zzzz > 1").runs()
    with pytest.raises(QueryError, match=r"Did you mean config\.seed, result\.seed"):
        connection.find().group("seed", "valid_loss")


def test_a_misspelled_field_is_told_wherever_it_is_asked_for(connection):
    everything = connection.find()
    for asked in (
        lambda: everything.sort("-result.test_acuracy").runs(),
        lambda: everything.table(["id", "result.test_acuracy"]),
        lambda: everything.group("config.method", "result.test_acuracy"),
        lambda: connection.best("result.test_acuracy"),
    ):
        with pytest.raises(QueryError, match=r"Did you mean result\.test_accuracy\?"):
            asked()
    with pytest.raises(QueryError, match=r"Did you mean config\.method\?"):
        everything.group("config.methd", "valid_loss")
    for asked in (
        lambda: connection.best("valid_los"),
        lambda: everything.group("config.method", "valid_los"),
    ):
        with pytest.raises(UnknownNameError, match="Did you mean 'valid_loss'"):
            asked()
    # What other runs have is no mistake here.
    broken = connection.find("config.method == 'broken'")
    assert broken.table(["result.test_accuracy"])["result.test_accuracy"].tolist() == [None]
    assert broken.group("config.method", "result.test_accuracy").empty
    assert len(broken.sort("result.test_accuracy")) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["show", "²"],
        ["show", "9" * 30],
        ["show", "9" * 5000],
        ["show", "\udcff"],
        ["list", "--where", "config.method == '\udcff'"],
        ["list", "--where", "config.method == '\\ud800'"],
        ["best", "\udcff"],
    ],
)
def test_odd_text_is_a_mistake_like_any_other(filled, monkeypatch, capsys, words):
    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    assert main(["runs", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["runs", "list", "--experiment", "\udcff"]) == 0
    assert capsys.readouterr().out == "no runs match\n"


def test_what_cannot_be_written_is_told_in_one_line(filled, tmp_path, monkeypatch, capsys):
    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    (tmp_path / "file").write_text("")
    for form in ("csv", "latex", "parquet"):
        target = tmp_path / "file" / f"runs.{form}"
        assert main(["runs", "export", "--format", form, "--output", str(target)]) == 2
        assert f"error: cannot write {target}: " in capsys.readouterr().err
        target = tmp_path / "new" / f"runs.{form}"
        assert main(["runs", "export", "--format", form, "--output", str(target)]) == 0
        assert target.stat().st_size > 100
    capsys.readouterr()
    assert main(["runs", "list", "--limit", "0"]) == 0
    assert capsys.readouterr().out == "no runs match\n"
    assert main(["runs", "list", "--columns", "id, ,config.method,"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["id", "config.method"]
    nothing = ["--where", "id == 77", "--metric", "valid_loss", "--output", "x.png"]
    assert main(["runs", "plot", *nothing]) == 2
    assert "no runs match" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("expression", "hint"),
    [
        ("status == 'completed'", "no run has status == 'completed'; did you mean 'COMPLETED'?"),
        ("status == 'DONE' and id > 0", "no run has status == 'DONE'; there are: 'COMPLETED', "),
        ("status == 'QUEUED'", None),
        ("config.method == 'evogard'", "config.method == 'evogard'; did you mean 'evograd'?"),
        (
            "config.method in ['plane', 'x']",
            "config.method in ['plane', 'x']; did you mean 'plain'",
        ),
        ("config.method in ['plain', 'x'] and config.seed == 4", None),
        ("config.seed == '2'", "no run has config.seed == '2'; did you mean 2?"),
        ("config.seed == 9", "no run has config.seed == 9; there are: 1, 2, 3, 4"),
        ("9 == config.seed or result.nested.count == 8", "there are: 1, 2, 3, 4"),
        ("info['a.b'] == 2", "no run has info['a.b'] == 2; there are: 1"),
        ("experiment == 'test'", "did you mean 'tested'?"),
        ("not config.method != 'evogard' and config.lr > 7", None),
        ("config.lr > 7 and 'paper' in tags", None),
        ("start_time == '2001-01-01'", None),
    ],
)
def test_a_value_that_no_run_has_is_said_with_the_one_that_was_meant(connection, expression, hint):
    told = connection.find(expression).hint()
    assert told is None if hint is None else hint in told, told
    assert connection.find(expression).runs() == []
    assert connection.find("status != 'completed'").hint() is None


def test_the_hint_is_one_line_on_stderr(filled, tmp_path, monkeypatch, capsys):
    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    where = ["--where", "status == 'completed'"]
    hint = "no run has status == 'completed'; did you mean 'COMPLETED'?\n"
    for words, code, shown in (
        (["list", *where], 0, "no runs match\n"),
        (["rm", *where, "--yes"], 0, "no runs match\n"),
        (["export", "--columns", "id", *where], 0, "id\n"),
        (["group", "result.test_accuracy", "--by", "config.lr", *where], 0, "no run has a number"),
        (["best", "result.test_accuracy", *where], 2, ""),
        (["plot", "--metric", "valid_loss", "--output", "x.png", *where], 2, ""),
    ):
        assert main(["runs", *words]) == code, words
        told = capsys.readouterr()
        assert told.out.startswith(shown) and told.err.count(hint) == 1, told
        assert len(told.err.splitlines()) <= 2, told
    assert main(["runs", "list", "--experiment", "tasted"]) == 0
    assert capsys.readouterr().err.endswith("did you mean 'tested'?\n")
    assert main(["runs", "list", "--where", "config.metod == 'evograd'"]) == 2
    told = capsys.readouterr().err
    assert "no run has the field config.metod. Did you mean config.method?" in told


def test_runs_in_the_spool_have_hints_too(home, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    make(lambda _run: None).run()
    with records.connect() as connection:
        assert "did you mean 'evograd'" in connection.find("config.method == 'evogrd'").hint()


def test_a_table_that_just_fits_the_terminal_is_not_folded(monkeypatch, capsys):
    from metatoolkit.cli.display import print_table

    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    columns, row = ["aaaaaa", "bbbbbb", "cccccc", "dddddd"], ["1" * 6, "2" * 6, "3" * 6, "4" * 6]
    print_table(columns, [row], essential=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == row and len(lines[-1]) == 30
    print_table([*columns, "e"], [[*row, "5"]], essential=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == row and lines[-1] == "1 more: e"
    print_table(["wide" * 9, *columns], [["0", *row]], essential=0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == row and lines[-1] == "1 more: " + "wide" * 9


def test_what_varies_comes_first_in_the_list_of_runs(monkeypatch, capsys):
    from metatoolkit.cli.display import print_table
    from metatoolkit.cli.runs import ESSENTIAL, _overview

    from .fakes import fake_run

    runs = [
        fake_run(
            number,
            {"a_long_constant": "x" * 90, **{f"tuned_{n}": n * number for n in range(20)},
             "method": method, "seed": number % 2, "checkpoint": f"/tmp/{number}"},
            result={**{f"constant_{n}": 1 for n in range(20)}, "test_accuracy": 0.1 * number},
        )
        for number, method in enumerate(("plain", "plain", "evograd", "evograd"))
    ]  # fmt: skip
    columns, rows = _overview(runs)
    place = len(ESSENTIAL)
    assert columns[place] == "config.method"
    assert columns.index("config.checkpoint") > columns.index("config.tuned_19")
    assert columns.index("config.seed") < columns.index("result.test_accuracy") < place + 5
    assert columns.index("result.constant_0") > columns.index("config.tuned_19")
    assert rows[2][columns.index("config.method")] == "evograd"
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(columns, rows, essential=place)
    head = capsys.readouterr().out.splitlines()[0]
    assert "config.method" in head and "config.seed" in head and "result.test_accuracy" in head


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


def test_pages_of_a_list_follow_each_other(filled, monkeypatch, capsys):
    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    seen = []
    for offset in (0, 3, 6):
        words = ["--sort", "id", "--limit", "3", "--offset", str(offset), "--columns", "id"]
        assert main(["runs", "list", *words]) == 0
        told = capsys.readouterr()
        seen += told.out.split()[1:]
        following = f"3 of 8 runs; --offset {offset + 3} shows the next" if offset < 6 else ""
        assert following in told.err and bool(following) == bool(told.err)
    assert seen == [str(number) for number in range(1, 9)]
    assert main(["runs", "list", "--offset", "9"]) == 0
    assert capsys.readouterr().out == "no runs match\n"
    assert main(["runs", "list", "--offset", "-1"]) == 2
    with records.connect() as connection:
        page = connection.find("config.lr == 0.1").sort("id").skip(2).limit(2)
        assert [run.id for run in page] == [3, 4] and page.total() == 7


def test_answers_can_be_read_by_programs(filled, monkeypatch, capsys):
    import json

    from metatoolkit.cli import main

    def asked(*words):
        assert main(["runs", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    (first, *_) = asked("list", "--sort", "id")
    assert first["config"]["method"] == "plain" and first["result"]["test_accuracy"] == 0.71
    assert first["start_time"].endswith("Z") and first["status"] == "COMPLETED"
    chosen = asked("list", "--columns", "id,metrics.valid_loss.min", "--where", "id == 2")
    assert chosen == [{"id": 2, "metrics.valid_loss.min": 2.4}]
    assert asked("list", "--where", "id == 99") == []
    shown = asked("show", "7")
    assert shown["metrics"]["valid_loss"]["count"] == 5 and "captured_out" not in shown
    assert shown["fail_trace"][-1].startswith("ValueError: broken")
    assert asked("best", "result.test_accuracy")["run"] == 6
    (group, _) = asked("group", "result.test_accuracy", "--by", "config.method")
    assert group["config.method"] == "evograd" and group["count"] == 3
    assert asked("compare", "1", "4")["config.method"] == {"1": "plain", "4": "evograd"}
    assert asked("best", "valid_loss", "--min", "--at", "2")["run"] == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "csv", "--output", "r.parquet"], "--format csv contradicts r.parquet"),
        (["--format", "parquet", "--output", "r.csv"], "contradicts"),
        (["--format", "latex", "--output", "r.json"], "contradicts"),
        (["--format", "parquet"], "name it with --output"),
        (["--output", "r.xlsx"], "no format ends in .xlsx"),
    ],
)
def test_a_format_that_contradicts_the_file_is_refused(
    filled, monkeypatch, capsys, tmp_path, words, told
):
    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "export", *words]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_ending_of_a_file_says_its_format(filled, monkeypatch, tmp_path):
    import json

    from metatoolkit.cli import main

    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    columns = ["id", "config.seed", "result.test_accuracy"]
    for name, read in {
        "r.csv": pandas.read_csv,
        "r.parquet": pandas.read_parquet,
        "r.json": lambda path: pandas.DataFrame(json.loads(path.read_text())),
        "r": pandas.read_csv,
    }.items():
        words = ["--columns", ",".join(columns), "--sort", "id", "--output", str(tmp_path / name)]
        assert main(["runs", "export", *words]) == 0
        table = read(tmp_path / name)
        assert list(table.columns) == columns and table["config.seed"].tolist()[:3] == [1, 2, 3]


def test_the_server_is_left_alone_by_an_address_of_ones_own(filled, tmp_path):
    uri = ManagedServer(Path(filled)).running_uri()
    with records.connect(uri, home=tmp_path) as connection:
        assert len(connection.find()) == 8
