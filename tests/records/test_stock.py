"""Databases that Sacred itself filled, asked for everything."""

import json
import math
from contextlib import nullcontext

import numpy
import pymongo
import pytest

from metatoolkit import records
from metatoolkit.cli import main
from metatoolkit.errors import QueryError, UnknownNameError
from metatoolkit.records.sacred_compat import import_sacred
from metatoolkit.records.server import ManagedServer

from .conftest import kill_server


@pytest.fixture(scope="module")
def filled(mongod, tmp_path_factory):
    """Four runs of stock Sacred, one of which failed; the last one's metrics are nowhere listed."""
    sacred = import_sacred()
    from sacred.observers import MongoObserver

    home = tmp_path_factory.mktemp("stock")
    experiment = sacred.Experiment("stock", interactive=True, save_git_info=False)
    experiment.add_config({"method": "plain", "seed": 1, "lr": 0.1})

    @experiment.main
    def body(_run, method, seed):
        for step in range(5):
            _run.log_scalar("valid_loss", (2.0 if method == "plain" else 1.0) / (step + 1), step)
            _run.log_scalar("val.acc", 0.1 * seed, 10 * step)
        _run.log_scalar("odd", math.nan)
        path = home / "weights.bin"
        path.write_bytes(b"weights %d" % seed)
        _run.add_artifact(str(path))
        if method == "broken":
            raise ValueError("out of memory")
        _run.info["noted"] = numpy.float32(0.5 * seed)
        return {"accuracy": numpy.float64(0.5 + 0.1 * seed), "pair": (1, 2)}

    server = ManagedServer(home)
    try:
        with pymongo.MongoClient(server.start()) as client:
            database = client.get_default_database()
            experiment.observers.append(MongoObserver(client=client, db_name=database.name))
            options = {"--capture": "no"}
            for method, seed in (("plain", 1), ("evograd", 1), ("broken", 3), ("evograd", 2)):
                with pytest.raises(ValueError, match="out of") if seed == 3 else nullcontext():
                    experiment.run(config_updates={"method": method, "seed": seed}, options=options)
            database["runs"].update_one({"_id": 4}, {"$unset": {"info.metrics": 1}})
        yield home
    finally:
        kill_server(home)


@pytest.fixture
def stock(filled, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(filled))
    with records.connect() as connection:
        yield connection


def test_values_of_metrics_are_found_wherever_they_are(stock):
    def found(expression):
        return [run.id for run in stock.find(expression)]

    assert found("metrics.valid_loss.min < 0.3") == [2, 3, 4]
    assert found("metrics.valid_loss.last == 0.4 or metrics.val.acc.max > 0.25") == [1, 3]
    assert found("exists(metrics.valid_loss)") == [1, 2, 3, 4]
    assert found("not exists(metrics.valid_loss) or not metrics.valid_loss.count == 5") == []
    assert found("metrics.valid_loss.at[1] == 0.5 and status == 'COMPLETED'") == [2, 4]
    assert found("metrics.valid_loss.last < result.accuracy and id != 2") == [1, 4]
    with pytest.raises(UnknownNameError, match="Did you mean 'valid_loss'"):
        found("metrics.valid_los.min < 1")
    best = stock.best("valid_loss", mode="min", at="min", where="config.method != 'broken'")
    assert best.id == 2
    assert stock.best("val.acc").id == 3
    assert stock.best("valid_loss", at=2).id == 1
    assert [run.id for run in stock.find().sort("-metrics.val.acc.last", "id")] == [3, 4, 1, 2]
    table = (
        stock.find().sort("id").table(["id", "metrics.valid_loss.min", "metrics.val.acc.max_step"])
    )
    assert table["metrics.valid_loss.min"].tolist() == [0.4, 0.2, 0.2, 0.2]
    assert table["metrics.val.acc.max_step"].tolist() == [0, 0, 0, 0]
    groups = stock.find("status == 'COMPLETED'").group("config.method", "valid_loss")
    assert groups[["config.method", "mean", "count"]].values.tolist() == [
        ["evograd", 0.2, 2], ["plain", 0.4, 1]
    ]  # fmt: skip
    curves = records.compare([1, 4], "valid_loss", stock).table()
    assert curves[4].tolist() == [1.0, 0.5, 1 / 3, 0.25, 0.2]
    assert set(stock[4].metrics) == {"valid_loss", "val.acc", "odd"}
    assert len(stock[4].metrics["odd"]) == 1 and stock.find("metrics.odd.min < 1").runs() == []


def test_numbers_that_sacred_has_pickled_are_numbers(stock):
    for expression, wanted in {
        "result.accuracy > 0.65": [4],
        "result.accuracy != 0.7 and status == 'COMPLETED'": [1, 2],
        "info.noted == 0.5 or info.noted >= 1": [1, 2, 4],
        "not result.accuracy < 0.65 and status == 'COMPLETED'": [4],
        "result.accuracy - 0.5 > 0.15": [4],
        "2 in result.pair and config.seed > 1": [4],
    }.items():
        assert [run.id for run in stock.find(expression)] == wanted, expression
    assert stock.best("result.accuracy").id == 4
    assert stock[4].result == {"accuracy": 0.7, "pair": [1, 2]} and stock[4].info["noted"] == 1.0
    assert [run.id for run in stock.find().sort("-result.accuracy", "id")] == [4, 1, 2, 3]
    assert stock.find("id < 3").table(["result.accuracy"])["result.accuracy"].tolist() == [0.6, 0.6]
    with pytest.raises(QueryError, match=r"result\.accuracy is a number such as 0\.6"):
        stock.find("result.accuracy > '0.65'").runs()


def test_the_commands_answer(stock, tmp_path, capsys):
    def shown(*words, code=0):
        assert main(["runs", *words]) == code
        return capsys.readouterr().out

    assert [line.split()[0] for line in shown("list").splitlines()[1:]] == ["4", "3", "2", "1"]
    lines = shown("list", "--columns", "id,metrics.valid_loss.last,reason", "--sort", "id")
    assert [line.split()[1] for line in lines.splitlines()[1:]] == ["0.4", "0.2", "0.2", "0.2"]
    assert "ValueError: out of memory" in lines
    for number in ("1", "4"):
        told = shown("show", number)
        assert "valid_loss  5" in told and "val.acc     5" in told
    assert "run                        2" in shown("best", "valid_loss", "--min", "--at", "min")
    assert "evograd        0.2" in shown("group", "valid_loss", "--by", "config.method")
    assert "config.method    plain  evograd" in shown("compare", "1", "4")
    path = tmp_path / "curves.png"
    shown("plot", "--metric", "valid_loss", "--output", str(path))
    assert path.stat().st_size > 1000
    lines = shown("export", "--metric", "valid_loss").splitlines()
    assert len(lines) == 1 + 4 * 5 and lines[1].startswith("4,0,1.0,")
    assert "metrics.valid_loss.max\n1,2.0\n" in shown(
        "export", "--columns", "id,metrics.valid_loss.max", "--sort", "id", "--where", "id == 1"
    )
    page = tmp_path / "report.html"
    shown("report", "--output", str(page))
    data = json.loads(page.read_text().partition('id="data">')[2].partition("</script>")[0])
    assert data["metrics"] == ["odd", "val.acc", "valid_loss"]
    assert "valid_loss  step 4  0.2" in shown("tail", "4")


def test_failures_and_files_are_asked_for(stock):
    for expression, wanted in {
        "contains(reason, 'memory')": [3],
        "reason == 'ValueError: out of memory'": [3],
        "exists(reason) and startswith(reason, 'ValueError')": [3],
        "not exists(reason)": [1, 2, 4],
        "'weights.bin' in artifacts and config.seed > 1": [3, 4],
        "contains(artifacts, '.bin') and not contains(reason, 'memory')": [1, 2, 4],
    }.items():
        assert [run.id for run in stock.find(expression)] == wanted, expression
    assert stock[4].artifacts["weights.bin"].read() == b"weights 2"


def test_comparisons_that_would_be_answered_falsely_are_refused(stock):
    for expression, told in {
        "config.lr > '0.05'": "config.lr is a number such as 0.1",
        "config.method < 5": "config.method is text such as 'plain'",
        "config.seed != '2'": "config.seed is a number",
        "not config.seed == '2'": "config.seed is a number",
        "config.method + 1 > 2": "config.method is text",
        "contains(config.lr, '0.1')": "config.lr is a number",
        "config.seed not in ['1', '2']": "config.seed is a number",
        "config.metod != 'evograd'": "Did you mean config.method",
        "not config.metod == 'evograd'": "Did you mean config.method",
        "config.sed * 2 > 1": "Did you mean config.seed",
        "config.sed < config.lr or id > 0": "Did you mean config.seed",
    }.items():
        with pytest.raises(QueryError, match=told.replace("[", r"\[")):
            stock.find(expression).runs()
    either = stock.find("config.seed == '2' or config.method == 'plain'")
    assert [run.id for run in either] == [1]
    assert "config.seed is a number" in either.hint()
    assert "did you mean 2?" in stock.find("config.seed == '2'").hint()


def test_hints_are_not_learned_from_runs_that_failed(stock):
    assert "did you mean 'evograd'" in stock.find("config.method == 'evogrd'").hint()
    told = stock.find("config.method == 'broke'").hint()
    assert "did you mean" not in told and "('broken' in failed runs only)" in told
    assert len(stock.find("config.method == 'broken'")) == 1
