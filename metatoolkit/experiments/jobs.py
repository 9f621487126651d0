"""Runs of experiments, several at once in processes of their own."""

from __future__ import annotations

import concurrent.futures
import ctypes
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from metatoolkit.errors import ConfigurationError, WorkerError, optional_import
from metatoolkit.records.capture import Terminated
from metatoolkit.records.terminal import answer

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
    """

    job: Job
    result: Any = None
    error: str = ""


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

    torch.set_num_threads(1)
    try:
        run = _experiment(job.experiment).run(
            named_configs=job.named,
            config_updates={**job.updates, "seed": job.seed, "progress": False},
            info=dict(job.info),
            options={"--loglevel": "CRITICAL"},
        )
    except Exception as error:
        return Outcome(job, error=f"{type(error).__name__}: {error}")
    return Outcome(job, run.result)


def run_jobs(jobs: Sequence[Job], processes: int) -> list[Outcome]:
    """Run jobs, several at once, under a progress bar; each is recorded.

    A run that fails leaves the others alone.

    Args:
        jobs: The jobs.
        processes: Number of runs at once.

    Returns:
        What became of each job, in the order of the jobs.

    Raises:
        ConfigurationError: ``processes`` is less than 1.
        WorkerError: The process of a run was killed.
    """
    from tqdm.auto import tqdm

    if processes < 1:
        raise ConfigurationError(f"processes is {processes}; at least 1 is needed.")
    context = multiprocessing.get_context("spawn")
    failed = 0
    with (
        concurrent.futures.ProcessPoolExecutor(
            processes, mp_context=context, initializer=_follow_parent
        ) as pool,
        tqdm(total=len(jobs), desc="runs", dynamic_ncols=True) as bar,
    ):
        # Workers inherit the mask, so that Ctrl-C cannot hit them before they are set up.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        futures = [pool.submit(_run_in_worker, job) for job in jobs]
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for future in concurrent.futures.as_completed(futures):
                outcome = future.result()
                failed += bool(outcome.error)
                told = f", failed: {failed}" if failed else ""
                bar.set_postfix_str(f"last: {outcome.job.label}{told}")
                bar.update()
        except BrokenProcessPool as error:
            raise WorkerError(
                "the process of a run was killed, by the system if memory ran out; the runs that "
                f"had ended are recorded. Run fewer than {processes} at once."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        return [future.result() for future in futures]


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
    return importlib.import_module(module).experiment


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
