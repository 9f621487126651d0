"""Runs in processes of their own, and what becomes of them when their parent dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from metatoolkit.records.capture import TerminationSignals

PARENT = """
from metatoolkit.experiments.jobs import Job, run_jobs
if __name__ == "__main__":
    run_jobs([Job("tests.experiments.test_jobs", "slow", seed) for seed in range(3)], 1)
"""


class Slow:
    """In the place of an experiment: a run that takes signals over, and notes its process."""

    def run(self, config_updates, **_given):
        signals = TerminationSignals()
        signals.install()
        place = Path(os.environ["PLACE"]) / str(config_updates["seed"])
        (place.with_suffix(".new")).write_text(str(os.getpid()))
        place.with_suffix(".new").rename(place)
        try:
            time.sleep(100)
        finally:
            signals.restore()


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
