import math

import pytest

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments import search_space, tuning
from metatoolkit.experiments.jobs import Outcome
from metatoolkit.experiments.search_space import Range, Space
from metatoolkit.experiments.tuning import Search, trials, tune

SIZES = {"count": 4, "seeds": 2, "finalists": 2, "more_seeds": 3}


def _search(**spaces):
    return Search("some.module", "score", spaces, first_seed=10)


def _space(*names):
    return Space({name: Range(0, 1, digits=None) for name in names})


@pytest.fixture
def runs(monkeypatch):
    """Runs whose score is the first setting, and which fail where that is 1/8."""
    done = []

    def run_jobs(jobs, processes):
        assert processes == 1
        done.extend(jobs)
        return [
            Outcome(job, error="it failed")
            if job.updates["a"] == 0.125
            else Outcome(job, {"score": job.updates["a"] + 0.001 * job.seed})
            for job in jobs
        ]

    monkeypatch.setattr(search_space, "configuration_of", lambda job: dict(job.updates))
    monkeypatch.setattr(tuning, "run_jobs", run_jobs)
    return done


def test_trials_are_halton_points():
    found = trials(_space("a", "b"), 4)
    expected = [(1 / 2, 1 / 3), (1 / 4, 2 / 3), (3 / 4, 1 / 9), (1 / 8, 4 / 9)]
    for trial, (a, b) in zip(found, expected, strict=True):
        assert trial.updates == pytest.approx({"a": a, "b": b})


def test_the_best_trials_get_more_seeds(runs):
    table = tune(_search(one=_space("a"), two=_space("a")), **SIZES, common={"steps": 5})
    assert len(runs) == 2 * (4 * 2 + 2 * 3)
    assert {job.seed for job in runs} == {10, 11, 12, 13, 14}
    assert all(job.updates["steps"] == 5 for job in runs)
    assert list(table["method"]) == ["one"] * 4 + ["two"] * 4
    for method in ("one", "two"):
        part = table[table["method"] == method]
        assert list(part["count"]) == [5, 5, 2, 2]
        assert list(part["settings"])[:2] == ["{'a': 0.75}", "{'a': 0.5}"]
        assert part["mean"].iloc[0] == pytest.approx(0.762)
        assert part["std"].iloc[0] == pytest.approx(0.001 * math.sqrt(2.5))


def test_a_run_that_fails_counts_as_zero(runs):
    table = tune(_search(one=_space("a")), **SIZES)
    worst = table.iloc[-1]
    assert worst["settings"] == "{'a': 0.125}" and worst["mean"] == 0.0
    assert list(table["failed"]) == [0, 0, 0, 2]


def test_a_score_may_be_minimized_and_what_fails_is_then_last(runs):
    search = Search("some.module", "score", {"one": _space("a")}, 10, minimized=True)
    table = tune(search, **SIZES)
    assert list(table["settings"]) == [f"{{'a': {a}}}" for a in (0.25, 0.5, 0.75, 0.125)]
    assert list(table["count"]) == [5, 5, 2, 2]
    assert list(table["failed"]) == [0, 0, 0, 2]
    assert math.isinf(table["mean"].iloc[-1])


def test_the_table_is_printed(runs, capsys):
    sizes = ["--trials", "2", "--seeds", "1", "--finalists", "1", "--more-seeds", "1"]
    search = _search(one=_space("a"), two=_space("a"))
    entries = ["steps=5", "data.name=generated"]
    assert tuning.main(search, "what it is", [*sizes, *entries, "--processes", "1"]) == 0
    assert all(job.updates["steps"] == 5 for job in runs)
    assert all(job.updates["data"] == {"name": "generated"} for job in runs)
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["one", "two"]
    for block in blocks:
        assert [line.split()[-3] for line in block.splitlines()[2:]] == ["2", "1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smoke"], "'smoke' is no configuration entry"),
        (["stepss=5"], "Did you mean 'steps'"),
        (["--seeds", "0"], "seeds is 0"),
    ],
)
def test_wrong_words_are_answered_before_anything_runs(words, message, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "run_jobs", None)
    space = _space("lr")
    search = Search("applications.label_noise.experiment", "tuning_accuracy", {"one": space}, 1)
    assert tuning.main(search, "what it is", words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", SIZES)
def test_numbers_below_one_are_refused(name, runs):
    with pytest.raises(ConfigurationError, match=f"{name} is 0"):
        tune(_search(one=_space("a")), **{**SIZES, name: 0})
    assert runs == []


def test_some_methods_alone_are_tuned(runs, capsys):
    search = _search(one=_space("a"), two=_space("a"), three=_space("a"))
    table = tune(search, **SIZES, methods=["three", "one"])
    assert list(table["method"]) == ["three"] * 4 + ["one"] * 4
    with pytest.raises(UnknownNameError, match="four"):
        tune(search, **SIZES, methods=["four"])
    sizes = ["--trials", "2", "--seeds", "1", "--finalists", "1", "--more-seeds", "1"]
    assert tuning.main(search, "", [*sizes, "--method", "two", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    assert "two" in told and "one" not in told
