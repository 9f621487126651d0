"""Jobs on the workers of a Dask cluster, of which one is killed."""

import os
import sys
import textwrap

import pytest

from metatoolkit import records
from metatoolkit.errors import ConfigurationError, MissingDependencyError
from metatoolkit.experiments import cluster
from metatoolkit.experiments.cluster import run_jobs_on_cluster
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.sweep import Sweep, run_missing

distributed = pytest.importorskip("distributed", reason="distributed is not installed")
dask = pytest.importorskip("dask", reason="dask is not installed")

KILLED = """
    import os, signal
    from pathlib import Path

    from metatoolkit import records

    experiment = records.experiment("own_killed")
    experiment.add_config({"place": "", "seed": 1, "progress": True})

    @experiment.main
    def main(place, seed):
        calls = Path(place, str(seed))
        before = calls.read_text() if calls.exists() else ""
        calls.write_text(f"{before}{os.getpid()} ")
        if len(before.split()) < {2: 1, 3: 9}.get(seed, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"seed": seed}
"""


@pytest.fixture
def application(tmp_path, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "own_killed.py"
    path.write_text(textwrap.dedent(KILLED))
    yield str(path)
    sys.modules.pop("own_killed", None)


@pytest.mark.slow
def test_a_point_whose_worker_is_killed_is_tried_again_and_no_finished_run_is_lost(
    application, tmp_path
):
    sweep = Sweep(application, {"seed": [1, 2, 3, 4]}, {"place": str(tmp_path)})
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as workers,
    ):
        outcomes, _ = run_missing(
            sweep, lambda jobs: run_jobs_on_cluster(jobs, application, workers.scheduler_address, 2)
        )
    assert [one.result for one in outcomes] == [{"seed": 1}, {"seed": 2}, None, {"seed": 4}]
    assert [bool(one.error) for one in outcomes] == [False, False, True, False]
    assert outcomes[2].job.label == "seed=3" and "each worker that ran it died" in outcomes[2].error
    begun = {seed: (tmp_path / str(seed)).read_text().split() for seed in (1, 2, 3, 4)}
    assert len(begun[2]) == len(set(begun[2])) == 2 == len(begun[3])
    assert all(str(os.getpid()) not in processes for processes in begun.values())
    with records.connect() as database:
        completed = database.find("status == 'COMPLETED'", "own_killed")
        assert {one.config["seed"] for one in completed} == {1, 2, 4}
    # The same sweep again runs the one that failed, whose point kills no more.
    (tmp_path / "3").write_text(" ".join(map(str, range(9))))
    outcomes, ran = run_missing(sweep, lambda jobs: [run_job(job) for job in jobs])
    assert ran == 1 and [one.result["seed"] for one in outcomes] == [1, 2, 3, 4]


def test_a_result_that_was_lost_with_its_worker_is_read_from_the_record(application, tmp_path):
    (job,) = Sweep(application, {"seed": [4]}, {"place": str(tmp_path)}).jobs()
    first, again = (cluster._run_on_worker(application, job) for _ in range(2))
    assert first.result == again.result == {"seed": 4}
    assert len((tmp_path / "4").read_text().split()) == 1


def test_a_missing_package_names_its_extra(application, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r"metatoolkit\[dask\]"):
        run_jobs_on_cluster([], application, "tcp://127.0.0.1:1")


def test_numbers_below_one_are_refused(application):
    with pytest.raises(ConfigurationError, match="at_once is 0"):
        run_jobs_on_cluster([], application, "tcp://127.0.0.1:1", 0)
