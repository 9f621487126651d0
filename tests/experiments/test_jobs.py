"""Runs in processes of their own, and what becomes of them when their parent dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from metatoolkit.experiments import jobs as module
from metatoolkit.experiments.jobs import Job, run_jobs
from metatoolkit.records.capture import TerminationSignals

PARENT = """
from metatoolkit.experiments.jobs import Job, run_jobs
if __name__ == "__main__":
    run_jobs([Job("tests.experiments.test_jobs", "slow", seed) for seed in range(3)], 1)
"""


class Slow:
    """In the place of an experiment: a run that takes signals over, and notes its process."""

    def run(self, config_updates, **_given):
        if "kills" in config_updates:
            return self.killed(**config_updates)
        signals = TerminationSignals()
        signals.install()
        place = Path(os.environ["PLACE"]) / str(config_updates["seed"])
        (place.with_suffix(".new")).write_text(str(os.getpid()))
        place.with_suffix(".new").rename(place)
        try:
            time.sleep(100)
        finally:
            signals.restore()
        return None

    def killed(self, place, kills, seed, **_others):
        """Kill the own process at the first calls, and note each."""
        calls = Path(place, f"{seed}")
        before = calls.read_text() if calls.exists() else ""
        calls.write_text(f"{before}{os.getpid()} ")
        if len(before.split()) < kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return SimpleNamespace(result={"seed": seed}, observers=[])


experiment = Slow()


def until(done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_and_begin_nothing_else(number, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PLACE": str(tmp_path), "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, script], env=environment, cwd=root)
    try:
        first = tmp_path / "0"
        until(first.exists)
        worker = psutil.Process(int(first.read_text()))
    finally:
        parent.send_signal(number)
        parent.wait()
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    assert not (tmp_path / "1").exists()


def test_a_job_whose_process_is_killed_begins_anew_and_the_others_go_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    kills = {1: 1, 2: 9, 3: 0}
    jobs = [
        Job(__name__, f"seed={seed}", seed, {"place": str(tmp_path), "kills": count})
        for seed, count in kills.items()
    ]
    again, never, other = run_jobs(jobs, 2)
    assert (again.result, other.result) == ({"seed": 1}, {"seed": 3})
    assert again.error == other.error == ""
    assert never.result is None and "killed 2 times" in never.error
    assert "Run fewer than 2 at once" in never.error
    begun = {seed: len((tmp_path / str(seed)).read_text().split()) for seed in kills}
    assert begun == {1: 2, 2: 2, 3: 1}
    assert "the process of seed=1 was killed; it begins anew" in capsys.readouterr().err
