"""The benchmark of long trajectories runs, with its peers and without them."""

import importlib.util
import sys

import pytest
import torch

from benchmarks import trajectory
from tests.drawings import legend, lines


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # The number of threads is the whole process's.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(trajectory.gc, "collect", lambda: 0)
    monkeypatch.setattr(trajectory, "in_process", lambda kind, steps: dict(ONE))


ONE = {"bytes": 2**20, "total": 2**29, "seconds": 1.0}


def test_without_peers_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys, drawn):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in trajectory.PEERS.values() else real(name),
    )
    names = ("higher", "TorchOpt", "Unrolled", "Unrolled, tree")
    chosen = {name: trajectory.METHODS[name] for name in names}
    monkeypatch.setattr(trajectory, "METHODS", chosen)
    arguments = ["trajectory", "--steps", "1", "3", "--repeats", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    trajectory.main()
    told = capsys.readouterr()
    for name in trajectory.PEERS:
        assert f"{name} is not installed" in told.err and "[benchmarks]" in told.err
    page = (tmp_path / "trajectory.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| 1 |", "| 3 |"))]
    assert len(rows) == 2 * 2
    # All ways agree with the first.
    assert all(float(row.split("|")[3]) < 1e-5 for row in rows)
    memory, seconds = drawn.axes("trajectory.png", tmp_path)
    assert list(lines(memory)) == ["Unrolled", "Unrolled, tree"] == legend(memory)
    for name, (steps, peaks) in lines(memory).items():
        assert steps == [1, 3]
        told = [float(r.split("|")[4]) for r in rows if r.split("|")[2].strip() == name]
        assert peaks == pytest.approx(told, abs=0.051)
    assert all((line.get_ydata() > 0).all() for line in seconds.lines)
    assert (memory.get_ylabel(), memory.get_yscale()) == ("peak memory (MiB)", "log")


@pytest.mark.parametrize("name", trajectory.PEERS)
def test_peers_agree(name):
    pytest.importorskip(trajectory.PEERS[name])
    found = trajectory.compare(3, 1, [name, "Unrolled"])
    assert found["Unrolled"]["difference"] < 1e-5
