"""Applications across tasks under torchrun: processes share the tasks, and one records."""

import subprocess
import sys
from pathlib import Path

import pytest

from applications.rotation.experiment import experiment
from metatoolkit import records
from metatoolkit.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["with", "smoke", "tasks=3", "progress=False", "seed=9127", "batching=vmap"]


def start(application, *options, processes=2):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={processes}", "-m", f"applications.{application}"),
    ]
    return subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_two_processes_have_the_run_of_one():
    for processes in (2, 1):
        done = start("few_shot", *OPTIONS, processes=processes)
        assert done.returncode == 0, done.stderr
    with records.connect() as database:
        recorded = database.find("config.seed == 9127", experiment="few_shot")
        together, single = recorded.sort("start_time").runs()
        for run in (together, single):
            assert run.status == "COMPLETED"
            assert set(run.artifacts) == {"curves.png", "checkpoint.pt"}
        assert together.result == pytest.approx(single.result, rel=1e-5)
        for name, series in single.metrics.items():
            found = together.metrics[name]
            assert found.tolist() == pytest.approx(series.tolist(), rel=1e-4), name


def test_a_process_of_several_is_refused_where_there_are_no_tasks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="torchrun started 2 processes, but rotation has"):
        experiment.run(named_configs=["smoke"], config_updates={"progress": False})


@pytest.mark.slow
def test_an_application_without_tasks_is_refused():
    done = start("rotation", "with", "smoke", "progress=False")
    assert done.returncode != 0
    assert "torchrun started 2 processes, but rotation has no tasks" in done.stderr
