import math

import pytest

from metatoolkit import records
from metatoolkit.errors import QueryError, UnknownNameError
from metatoolkit.records.stores import complete_metrics, metrics_asked, reason

from .experiments import make


def test_what_is_asked_of_metrics_is_read_from_the_paths():
    paths = ["summary.a．b.min", "summary.loss.at.100", "summary.loss.at.0．5", "config.summary"]
    assert metrics_asked(paths) == {"a.b": [], "loss": ["100", "0．5"]}
    assert metrics_asked(["summary"]) == {}


def test_metrics_are_summarized_as_when_they_are_recorded():
    steps, values = [0, 10, 10, 0.5, 20], [3.0, math.nan, 1, [1, 2], 2.0]
    document = {"summary": {"kept": {"min": 7}}}
    series = {"a.b": (steps, values), "none": ([], [])}
    complete_metrics(document, series.__getitem__, series, {"a.b": ["10", "0．5", "7"]})
    assert document["summary"] == {
        "kept": {"min": 7},
        "a．b": {
            "count": 5, "last": 2.0, "step": 20, "min": 1, "min_step": 10, "max": 3.0,
            "max_step": 0, "at": {"10": 1, "0．5": [1, 2]},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"fail_trace": ["Traceback\n", '  File "x"\n', "ValueError: no\n"]}, "ValueError: no"),
        ({"fail_trace": ["Traceback\n  File\nKeyError: 'a'\n", "\n"]}, "KeyError: 'a'"),
        ({"fail_trace": ["E: one\n  two\n"], "status_note": "n"}, "E: one"),
        ({"fail_trace": [], "status_note": "ended by SIGTERM"}, "ended by SIGTERM"),
        ({"fail_trace": "text"}, "text"),
        ({}, None),
    ],
)
def test_the_reason_is_one_line(document, told):
    assert reason(document) == told


@pytest.fixture
def connection(home, monkeypatch):
    """Three runs that no database has, the last of which failed."""
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")

    def body(_run, seed):
        for step in range(5):
            _run.log_scalar("loss", seed / (step + 1), 10 * step)
        print(f"epoch {seed}")
        if seed == 3:
            raise ValueError("out of memory")
        return {"accuracy": 0.1 * seed}

    for seed in (1, 2, 3):
        experiment = make(body, lr=0.1)
        if seed == 3:
            with pytest.raises(ValueError, match="memory"):
                experiment.run(config_updates={"seed": seed})
        else:
            experiment.run(config_updates={"seed": seed})
    with records.connect() as opened:
        yield opened


def test_the_spool_answers_as_a_database_does(connection):
    def seeds(expression):
        return sorted(run.config["seed"] for run in connection.find(expression))

    for expression, wanted in {
        "metrics.loss.last < 0.5": [1, 2],
        "metrics.loss.at[10] == 1.0": [2],
        "metrics.loss.at[11] > 0": [],
        "metrics.loss.last * 5 == config.seed": [1, 2, 3],
        "result.accuracy < config.lr * 1.5": [1],
        "reason == 'ValueError: out of memory'": [3],
        "contains(output, 'epoch 2')": [2],
        "not exists(reason)": [1, 2],
    }.items():
        assert seeds(expression) == wanted, expression
    table = connection.find().sort("config.seed").table(["metrics.loss.at[40]", "reason"])
    assert table["metrics.loss.at[40]"].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert connection.best("loss", at=20).config["seed"] == 3
    with pytest.raises(QueryError, match=r"config\.lr is a number"):
        seeds("config.lr != '0.1'")
    with pytest.raises(UnknownNameError, match="Did you mean 'loss'"):
        seeds("metrics.los.last != 3")
    assert any(name.endswith("test_stores.py") for name in connection["latest"].sources)
