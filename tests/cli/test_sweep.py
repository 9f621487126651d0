"""The command `metatoolkit sweep`, from its words to its table."""

import time

import pytest

from metatoolkit.cli import main
from tests.experiments.test_sweep import application

__all__ = ["application"]


def test_a_grid_is_run_shown_and_completed(application, capsys):
    words = ["sweep", application, "--over", "method=a,bad", "--over", "seed=2..3"]
    options = ["--workers", "1", "with", "part.lr=0.5"]
    assert main([*words, *options]) == 1
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert lines[0].split() == ["method", "seed", "status", "run", "result.score", "result.method"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["a", "2", "COMPLETED"],
        ["a", "3", "COMPLETED"],
        ["bad", "2", "FAILED"],
        ["bad", "3", "COMPLETED"],
    ]
    assert [line.split()[-2:] for line in (lines[1], lines[4])] == [["1", "a"], ["1.5", "bad"]]
    assert lines[5] == "failed: method=bad, seed=2: ValueError: it went wrong"
    query = lines[6].partition("--where ")[2].strip('"')
    assert main(["runs", "list", "--experiment", "own_swept", "--where", query]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4
    assert main(["sweep", application, "--over", "seed=2..3", "--over", "method=a", *options]) == 0
    shown = capsys.readouterr()
    assert "2 of 2 runs were there already" in shown.err
    assert shown.out.splitlines()[1].split()[:3] == ["2", "a", "COMPLETED"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--over", "mehtod=a"], "Did you mean 'method'"),
        (["--over", "seed=4..0"], "4..0 in 'seed=4..0' is reversed"),
        (["--over", "method="], "gives an entry no values"),
        (["--over", "seed=1", "--over", "seed=2"], "--over names seed twice"),
        (["--over", "seed=1", "--workers", "0"], "--workers is 0; at least 1 is needed"),
        (["--over", "seed=1", "with", "slow"], "unknown named configuration 'slow'"),
        (["--over", "seed=1", "with", "seed=2"], "seed is both swept over and given"),
    ],
)
def test_wrong_words_are_answered_in_one_line(application, words, message, capsys):
    assert main(["sweep", application, *words]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_an_unknown_application_is_answered(capsys):
    assert main(["sweep", "label_nose", "--over", "seed=1,2"]) == 2
    assert "Did you mean 'label_noise'" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere", "ftp://127.0.0.1:1"])
def test_a_scheduler_that_cannot_be_reached_is_answered_soon(
    application, address, monkeypatch, capsys
):
    pytest.importorskip("distributed", reason="distributed is not installed")
    from metatoolkit.experiments import cluster

    monkeypatch.setattr(cluster, "SECONDS", 0.5)
    begun = time.monotonic()
    assert main(["sweep", application, "--over", "seed=1,2", "--scheduler", address]) == 2
    # Many times what it waits, on a machine that does other things besides.
    assert time.monotonic() - begun < 60
    assert f"no Dask scheduler answers at '{address}'" in capsys.readouterr().err
