"""Jobs on an existing Dask cluster, whose workers import this toolkit and the application."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Sequence
from typing import Any

from metatoolkit import records
from metatoolkit.errors import ConfigurationError, WorkerError, brief, optional_import
from metatoolkit.experiments.applications import load_application, place_of
from metatoolkit.experiments.jobs import Ended, Job, Outcome, follow, run_job
from metatoolkit.experiments.recorded_jobs import completed_runs, digest
from metatoolkit.records.terminal import say

SECONDS = 5.0
"""How long a scheduler may take to answer."""

_DEATH = "WorkerError: each worker that ran it died, by the system if memory ran out."

# A run sets the generators and streams of its process, which has one of each.
_one_at_a_time = threading.Lock()


def run_jobs_on_cluster(
    jobs: Sequence[Job], application: str, scheduler: str, at_once: int | None = None
) -> list[Outcome]:
    """Run jobs on the workers of a Dask cluster, under a progress bar; each is recorded there.

    A worker runs one job at a time, however many threads it has. The jobs of a worker that dies go
    to others, as often as the cluster's ``distributed.scheduler.allowed-failures`` says (3 by
    default). Those that are still left then run alone at the end, so that one that takes its
    worker along fails, and no other. Workers record to the database that their own environment
    names.

    Args:
        jobs: Jobs of one application, of :func:`metatoolkit.experiments.recorded_jobs.placed`.
        application: Its name, or the path of its file or folder, where workers find it, too.
        scheduler: Address of the scheduler, such as ``tcp://10.0.0.1:8786``.
        at_once: Runs at once; ``None`` for as many as there are workers.

    Returns:
        What became of each job, in the order of the jobs.

    Raises:
        ConfigurationError: ``at_once`` is less than 1, or no scheduler answers there.
        WorkerError: The scheduler is gone; what had ended is recorded.
        MissingDependencyError: ``distributed`` is not installed.
    """
    with optional_import("a Dask cluster"):
        import distributed

    if at_once is not None and at_once < 1:
        raise ConfigurationError(f"at_once is {at_once}; at least 1 is needed.")
    try:
        client = distributed.Client(scheduler, timeout=SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no Dask scheduler answers at {scheduler!r} within {SECONDS:g} s ({brief(error)}). "
            "Start one with `dask scheduler`, and give the address that it prints."
        ) from error
    with client, client.as_current():
        if not client.nthreads():
            say(f"{scheduler} has no workers yet; add one with `dask worker {scheduler}`")
        return follow(jobs, _on_workers(client, jobs, place_of(application), at_once))


def _on_workers(client: Any, jobs: Sequence[Job], application: str, at_once: int | None) -> Ended:
    """Iterate over jobs as they end."""
    import distributed

    waiting = list(range(len(jobs)))[::-1]
    suspected: list[int] = []
    alone: set[int] = set()
    places: dict[Any, int] = {}

    def begin() -> Any:
        place = waiting.pop()
        future = client.submit(_run_on_worker, application, jobs[place], pure=False)
        places[future] = place
        return future

    first = len(jobs) if at_once is None else min(at_once, len(jobs))
    ended = distributed.as_completed([begin() for _ in range(first)])
    try:
        for future in ended:
            place = places.pop(future)
            outcome = _outcome(jobs[place], future)
            if outcome is None and place not in alone:
                suspected.append(place)
            else:
                yield place, outcome or Outcome(jobs[place], error=_DEATH)
            if not places and not waiting and suspected:
                alone.add(suspected[0])
                waiting.append(suspected.pop(0))
            if waiting:
                ended.add(begin())
    finally:
        client.cancel(list(places))


def _outcome(job: Job, future: Any) -> Outcome | None:
    """Return what became of a job, or ``None`` where its workers died."""
    import distributed

    try:
        found: Outcome = future.result()
    except distributed.KilledWorker:
        return None
    except concurrent.futures.CancelledError as error:
        raise WorkerError(
            "the Dask scheduler is gone; the runs that had ended are recorded. Start it again, and "
            "repeat the command."
        ) from error
    except Exception as error:
        # What a worker cannot import, say.
        return Outcome(job, error=f"{type(error).__name__}: {brief(error)}")
    return found


def _run_on_worker(application: str, job: Job) -> Outcome:
    """Run a job in a worker's thread, unless its run is there.

    A result lies with its worker until it is fetched. Where the worker dies before, the cluster
    asks for it again, and the record has it.
    """
    with _one_at_a_time:
        experiment = load_application(application).path
        with records.connect() as database:
            there = completed_runs(database, experiment, job.info["study"]["name"])
        if digest(job) in there:
            return Outcome(job, there[digest(job)].result, run=there[digest(job)].id)
        return run_job(job)
