"""The benchmark of tasks runs, and its methods compute one gradient."""

import pytest
import torch

from benchmarks import tasks
from benchmarks.task_problems import METHODS, images, sinusoids


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # The number of threads is the whole process's.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def test_it_writes_a_page_without_learn2learn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "installed", lambda module: False)
    arguments = ["--sinusoids", "3", "--images", "2", "--repeats", "1", "--output", str(tmp_path)]
    assert tasks.main(arguments) == 0
    assert "learn2learn is not installed" in capsys.readouterr().err
    page = (tmp_path / "tasks.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| 3", "| 2"))]
    assert len(rows) == 2 * (len(METHODS) - 1)
    for row in rows:
        # The first-order gradient leaves something out.
        assert (float(row[-1].rstrip(" |")) < 1e-5) == ("FirstOrder" not in row[1]), row
        assert float(row[2]) > 0 and float(row[4]) > 0


@pytest.mark.parametrize("family", [sinusoids, images])
def test_learn2learn_computes_the_same(family):
    pytest.importorskip("learn2learn")
    names = [name for name in METHODS if "hand" in name or name == "learn2learn"]
    found = tasks.compare(family(2), 1, names)
    assert len(found) == 2 and found["learn2learn"]["difference"] < 1e-5
