"""Runs of experiments, several at once in processes of their own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from metatoolkit.errors import ConfigurationError, optional_import
from metatoolkit.records.capture import Terminated
from metatoolkit.records.terminal import answer, say

ATTEMPTS = 3
"""How often a job is begun whose process is killed."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One run: a configuration of an experiment with one seed.

    Attributes:
        experiment: Module that holds the Sacred experiment as ``experiment``.
        label: Word for the progress bar.
        seed: Seed.
        updates: Configuration entries.
        named: Named configurations.
        info: First entries of the run's ``info``.
    """

    experiment: str
    label: str
    seed: int
    updates: Mapping[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: The job.
        result: What the experiment returned; ``None`` where it failed.
        error: Kind and message of the error that ended it; empty where it was completed.
        run: Number of the run in the database; ``None`` where it has none there.
        steps: Inner steps that it took before an error, where it noted them in its ``info`` as
            ``steps_done``; ``None`` elsewhere.
    """

    job: Job
    result: Any = None
    error: str = ""
    run: int | None = None
    steps: int | None = None


Ended = Generator[tuple[int, Outcome], None, None]
"""The place of a job among others, and what became of it, as one after the other ends."""


def configuration_of(job: Job) -> dict[str, Any]:
    """Return the whole configuration of a job, without running it.

    Args:
        job: The job.

    Raises:
        UnknownNameError: There is no such configuration entry or named configuration.
    """
    updates = {**job.updates, "seed": job.seed}
    return dict(_experiment(job.experiment).resolve(updates, job.named))


def run_job(job: Job) -> Outcome:
    """Run one job in this process, on one thread so that its numbers hang on nothing else.

    Args:
        job: The job.

    Returns:
        The result, or the error of a run that failed; its record holds the traceback.
    """
    import torch

    from metatoolkit.records import run_id

    torch.set_num_threads(1)
    experiment = _experiment(job.experiment)
    former = getattr(experiment, "current_run", None)
    try:
        run = experiment.run(
            named_configs=job.named,
            config_updates={**job.updates, "seed": job.seed, "progress": False},
            info=dict(job.info),
            options={"--loglevel": "CRITICAL"},
        )
    except Exception as error:
        told, run = f"{type(error).__name__}: {error}", getattr(experiment, "current_run", None)
        # One that was refused has left none behind.
        if run is None or run is former:
            return Outcome(job, error=told)
        return Outcome(job, error=told, run=run_id(run), steps=run.info.get("steps_done"))
    return Outcome(job, run.result, run=run_id(run))


def run_jobs(jobs: Sequence[Job], processes: int) -> list[Outcome]:
    """Run jobs, several at once, under a progress bar; each is recorded.

    A run that fails leaves the others alone. So does one whose process is killed, which is begun
    anew in another one, ``ATTEMPTS`` times in all.

    Args:
        jobs: The jobs.
        processes: Number of runs at once.

    Returns:
        What became of each job, in the order of the jobs.

    Raises:
        ConfigurationError: ``processes`` is less than 1.
    """
    if processes < 1:
        raise ConfigurationError(f"processes is {processes}; at least 1 is needed.")
    return follow(jobs, _in_processes(jobs, processes))


def follow(jobs: Sequence[Job], outcomes: Ended) -> list[Outcome]:
    """Show a progress bar while jobs run.

    Args:
        jobs: The jobs.
        outcomes: The place of each among them and what became of it, in the order in which they
            end; closed however this ends.

    Returns:
        What became of each job, in the order of the jobs.
    """
    from tqdm.auto import tqdm

    found: dict[int, Outcome] = {}
    failed = 0
    with (
        contextlib.closing(outcomes),
        tqdm(total=len(jobs), desc="runs", dynamic_ncols=True) as bar,
    ):
        for place, outcome in outcomes:
            found[place] = outcome
            failed += bool(outcome.error)
            told = f", failed: {failed}" if failed else ""
            bar.set_postfix_str(f"last: {outcome.job.label}{told}")
            bar.update()
    return [found[place] for place in range(len(jobs))]


def exit_code(command: Callable[[], int]) -> int:
    """Carry out a command that runs jobs, and answer what ends it in one line.

    Args:
        command: The command; returns its exit code.

    Returns:
        That code, 2 for an error of this toolkit, 130 after Ctrl-C.
    """

    def carry_out() -> int:
        with optional_import("this command"):
            return command()

    return answer(carry_out, interrupted="interrupted; the runs so far are recorded")


def _experiment(module: str) -> Any:
    found = importlib.import_module(module).experiment
    # A package may keep its experiment in a module of the same name.
    return getattr(found, "experiment", found)


class _Worker:
    """A process that runs one job after another; another takes its place where it is killed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def begin(self, job: Job) -> Future[Outcome]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, initializer=_follow_parent)
        # The process inherits the mask, so that Ctrl-C cannot hit it before it is set up.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(_run_in_worker, job)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def end(self, wait: bool) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)
            self._pool = None


def _in_processes(jobs: Sequence[Job], processes: int) -> Ended:
    """Iterate over jobs as they end, in processes of this machine."""
    waiting = list(range(len(jobs)))[::-1]
    begun = [0] * len(jobs)
    free = [_Worker() for _ in range(min(processes, len(jobs)))]
    running: dict[Future[Outcome], tuple[int, _Worker]] = {}
    try:
        while waiting or running:
            while waiting and free:
                place, worker = waiting.pop(), free.pop()
                begun[place] += 1
                running[worker.begin(jobs[place])] = place, worker
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            for future in done:
                place, worker = running.pop(future)
                free.append(worker)
                try:
                    yield place, future.result()
                except BrokenProcessPool:
                    worker.end(wait=True)
                    if begun[place] < ATTEMPTS:
                        say(f"the process of {jobs[place].label} was killed; it begins anew")
                        waiting.append(place)
                    else:
                        yield place, Outcome(jobs[place], error=_killed(processes))
    except BaseException:
        for worker in [*free, *(worker for _, worker in running.values())]:
            worker.end(wait=False)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    for worker in free:
        worker.end(wait=True)


def _killed(processes: int) -> str:
    return (
        f"WorkerError: its process was killed {ATTEMPTS} times, by the system if memory ran out. "
        f"Run fewer than {processes} at once."
    )


def _run_in_worker(job: Job) -> Outcome:
    """Run a job in a process of its own, which a signal ends as soon as the run is recorded."""
    try:
        return run_job(job)
    except Terminated as stop:
        # The pool would hand out the next job, and wait for more that nobody sends.
        os._exit(128 + stop.number)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and be interrupted when it dies however that happens (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
