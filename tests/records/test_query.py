import math
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
from metatoolkit.records.run import Artifact
from metatoolkit.records.server import ManagedServer

from .experiments import make


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


def test_the_server_is_left_alone_by_an_address_of_ones_own(filled, tmp_path):
    uri = ManagedServer(Path(filled)).running_uri()
    with records.connect(uri, home=tmp_path) as connection:
        assert len(connection.find()) == 8
