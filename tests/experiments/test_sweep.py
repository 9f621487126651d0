"""Grids over entries of a configuration, of which only what is missing is run."""

import sys

import pytest

from metatoolkit import records
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.sweep import SEED, Sweep, run_missing

SWEPT = """
from metatoolkit import records

experiment = records.experiment("own_swept")
experiment.add_config({"method": "a", "part": {"lr": 0.1, "on": True}, "seed": 1, "progress": True})
experiment.add_named_config("fast", {"part": {"lr": 10.0}})


@experiment.main
def main(method, part, seed):
    if method == "bad" and seed == 2:
        raise ValueError("it went wrong")
    return {"score": part["lr"] * seed, "method": method}
"""


@pytest.fixture
def application(tmp_path, monkeypatch):
    """An application of one file; its runs stay in the spool."""
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "own_swept.py"
    path.write_text(SWEPT)
    yield str(path)
    sys.modules.pop("own_swept", None)


@pytest.fixture
def run():
    """Runs jobs in this process, and keeps which."""

    def run(jobs):
        run.begun += [job.label for job in jobs]
        return [run_job(job) for job in jobs]

    run.begun = []
    return run


def test_every_combination_is_a_run_that_is_found_again(application, run):
    sweep = Sweep(application, {"method": ["a", "b"], "seed": [1, 2]}, {"part": {"on": False}})
    outcomes, ran = run_missing(sweep, run)
    labels = ["method=a, seed=1", "method=a, seed=2", "method=b, seed=1", "method=b, seed=2"]
    assert ran == 4 and run.begun == labels == [one.job.label for one in outcomes]
    assert [one.result["score"] for one in outcomes] == [0.1, 0.2, 0.1, 0.2]
    with records.connect() as database:
        found = database.find(f"info.study.name == '{sweep.name}'", "own_swept").runs()
        assert sorted((one.config["method"], one.config["seed"]) for one in found) == [
            ("a", 1), ("a", 2), ("b", 1), ("b", 2)
        ]  # fmt: skip
        assert all(one.config["part"] == {"lr": 0.1, "on": False} for one in found)
    again, ran = run_missing(sweep, run)
    assert ran == 0 and [one.result for one in again] == [one.result for one in outcomes]


def test_what_is_missing_or_failed_alone_is_run(application, run):
    first = Sweep(application, {"method": ["a", "bad"], "seed": [1, 2]})
    outcomes, _ = run_missing(first, run)
    assert [one.error for one in outcomes] == ["", "", "", "ValueError: it went wrong"]
    run.begun.clear()
    more = Sweep(application, {"seed": [1, 2, 3], "method": ["a", "bad"]})
    assert more.name == first.name
    outcomes, ran = run_missing(more, run)
    assert run.begun == ["seed=2, method=bad", "seed=3, method=a", "seed=3, method=bad"]
    assert ran == 3 and [bool(one.error) for one in outcomes] == [0, 0, 0, 1, 0, 0]
    with records.connect() as database:
        found = database.find(f"info.study.name == '{first.name}' and status == 'FAILED'")
        assert len(found) == 2


def test_other_entries_of_all_points_make_another_sweep(application, run):
    plain = Sweep(application, {"seed": [1]})
    assert plain.name == Sweep(application, {"seed": [4, 5]}).name
    for other in (
        Sweep(application, {"seed": [1]}, {"method": "b"}),
        Sweep(application, {"seed": [1]}, {}, ("fast",)),
        Sweep(application, {"seed": [1], "method": ["a"]}),
    ):
        assert other.name != plain.name
    (outcome,), _ = run_missing(Sweep(application, {"part.on": [False]}, {}, ("fast",)), run)
    assert outcome.job.seed == SEED and outcome.result["score"] == 10.0 * SEED


@pytest.mark.parametrize(
    ("over", "updates", "error", "message"),
    [
        ({"mehtod": ["a"]}, {}, UnknownNameError, "Did you mean 'method'"),
        ({"part.lrr": [1.0]}, {}, UnknownNameError, "part.lrr"),
        ({"seed": [1]}, {"mehtod": "a"}, UnknownNameError, "Did you mean 'method'"),
        ({"method": ["a", 3]}, {}, ConfigurationError, "'method' takes a value of type str"),
        ({"seed": ["one"]}, {}, ConfigurationError, "seed is 'one'"),
        ({"part.lr": [1.0]}, {"part": {"lr": 2.0}}, ConfigurationError, "both swept over and"),
        ({}, {}, ConfigurationError, "needs values"),
        ({"method": []}, {}, ConfigurationError, "needs values"),
    ],
)
def test_what_the_application_does_not_take_is_refused_before_anything_runs(
    application, run, over, updates, error, message
):
    with pytest.raises(error, match=message):
        run_missing(Sweep(application, over, updates), run)
    assert not run.begun


def test_an_unknown_application_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'label_noise'"):
        Sweep("label_nose", {"seed": [1]}).jobs()
