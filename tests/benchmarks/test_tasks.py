"""The benchmark of tasks runs, and its methods compute one gradient."""

import pytest
import torch

from benchmarks import tasks
from benchmarks.task_problems import METHODS, PEERS, images, sinusoids


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # The number of threads is the whole process's.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def test_it_writes_a_page_without_peers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "installed", lambda module: False)
    monkeypatch.setattr(tasks, "in_own_process", tasks.memory)
    arguments = ["--sinusoids", "3", "--images", "2", "--repeats", "1", "--output", str(tmp_path)]
    assert tasks.main(arguments) == 0
    told = capsys.readouterr().err
    assert all(f"{name} is not installed" in told for name in PEERS)
    assert (tmp_path / "tasks.png").stat().st_size > 0
    page = (tmp_path / "tasks.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| 3", "| 2"))]
    assert len(rows) == 2 * (len(METHODS) - len(PEERS))
    for row in rows:
        # The first-order gradient leaves something out.
        assert (float(row[-1].rstrip(" |")) < 1e-5) == ("FirstOrder" not in row[1]), row
        assert float(row[2]) > 0 and float(row[5]) > 0


@pytest.mark.parametrize("family", [sinusoids, images])
@pytest.mark.parametrize("peer", PEERS)
def test_peers_compute_the_same(family, peer):
    pytest.importorskip(PEERS[peer])
    found = tasks.compare(family(2), 2, [next(iter(METHODS)), peer])
    assert len(found) == 2 and found[peer]["difference"] < 1e-5


def test_memory_is_measured_in_a_process_of_its_own():
    found = tasks.in_own_process("sinusoids", 2, "loop by hand")
    assert found == tasks.memory("sinusoids", 2, "loop by hand") > 0
