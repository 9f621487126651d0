"""Compare all methods on noisily labeled digits: ``python -m applications.label_noise.quickstart``.

Runs each method with several seeds, each run recorded, and draws table and figure from the records.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, MetatoolkitError

_PR_SET_PDEATHSIG = 1

ROWS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain training": ((), {"method": "plain"}),
    "uniform weights": ((), {"method": "uniform_weights"}),
    "frozen weights": ((), {"method": "frozen_weights"}),
    "second order": ((), {"method": "second_order"}),
    "EvoGrad, rescaled": ((), {"method": "evograd"}),
    "EvoGrad, paper's scale": (("paper_scale",), {}),
}


def run_one(row: str, named: tuple[str, ...], updates: dict[str, Any], seed: int) -> dict[str, Any]:
    """Run one configuration with one seed in this process.

    Args:
        row: Row of the table.
        named: Named configurations.
        updates: Further configuration.
        seed: Seed of data, network and noise.

    Returns:
        Row, seed, identity of the run, result and the run's settings and costs.
    """
    import torch

    torch.set_num_threads(1)
    from applications.label_noise.experiment import experiment
    from metatoolkit import records

    run = experiment.run(
        named_configs=named,
        config_updates={**updates, "seed": seed, "progress": False},
        options={"--loglevel": "ERROR"},
    )
    return {
        "row": row,
        "seed": seed,
        "run": records.run_id(run),
        "settings": run.info["settings"],
        "milliseconds_per_step": run.info["milliseconds_per_step"],
        **run.result,
    }


def follow_parent() -> None:
    """Leave Ctrl-C to the parent, and be interrupted when it dies however that happens (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_jobs(
    jobs: Sequence[tuple[str, tuple[str, ...], dict[str, Any], int]], processes: int
) -> list[dict[str, Any]]:
    """Run configurations, several at once, under a progress bar.

    Args:
        jobs: Arguments of :func:`run_one`.
        processes: Number of runs at once.

    Returns:
        What :func:`run_one` returned, in the order of the jobs.
    """
    from tqdm.auto import tqdm

    context = multiprocessing.get_context("spawn")
    with (
        concurrent.futures.ProcessPoolExecutor(
            processes, mp_context=context, initializer=follow_parent
        ) as pool,
        tqdm(total=len(jobs), desc="runs", dynamic_ncols=True) as bar,
    ):
        # Workers inherit the mask, so that Ctrl-C cannot hit them before they are set up.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        futures = [pool.submit(run_one, *job) for job in jobs]
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            for future in concurrent.futures.as_completed(futures):
                bar.set_postfix_str(f"last: {future.result()['row']}")
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        return [future.result() for future in futures]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the test accuracy of each method and seed.

    Args:
        results: What :func:`run_jobs` returned.
        path: File to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import pandas
    from matplotlib import pyplot

    frame = pandas.DataFrame(results)
    groups = frame.groupby("row", sort=False)
    figure, (axis, weights) = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    places = range(len(groups))
    axis.barh(
        places,
        groups["test_accuracy"].mean() * 100,
        xerr=groups["test_accuracy"].std(ddof=1).fillna(0) * 100,
        color="tab:blue",
        alpha=0.5,
    )
    weights.barh([p - 0.2 for p in places], groups["weight_clean"].mean(), 0.4, label="clean")
    weights.barh(
        [p + 0.2 for p in places], groups["weight_corrupted"].mean(), 0.4, label="corrupted"
    )
    for place, (_, group) in zip(places, groups, strict=True):
        axis.plot(group["test_accuracy"] * 100, [place] * len(group), "k.", markersize=5)
    axis.set(xlabel="test accuracy [%]: mean, standard deviation, and each seed")
    weights.set(xlabel="mean weight of training examples")
    weights.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for each in (axis, weights):
        each.set_yticks(list(places), list(groups.groups))
        each.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def show(results: list[dict[str, Any]]) -> None:
    """Print the table: mean and standard deviation over seeds.

    Args:
        results: What :func:`run_jobs` returned.
    """
    import pandas
    from rich.console import Console
    from rich.table import Table

    frame = pandas.DataFrame(results)
    table = Table(title="Digits, 40 % flip noise: test accuracy after the last step")
    for column in ("method", "test accuracy [%]", "weight clean / corrupted", "λ moved", "ms/step"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row, group in frame.groupby("row", sort=False):
        accuracy = group["test_accuracy"] * 100
        spread = f" ± {accuracy.std(ddof=1):.2f}" if len(group) > 1 else ""
        table.add_row(
            str(row),
            f"{accuracy.mean():.2f}{spread}",
            f"{group['weight_clean'].mean():.2f} / {group['weight_corrupted'].mean():.2f}",
            f"{group['lambda_distance'].mean():.2f}",
            f"{group['milliseconds_per_step'].mean():.1f}",
        )
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison.

    Args:
        argv: Arguments; by default those of the command line.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    parser.add_argument("--steps", type=int, help="training steps of each run")
    parser.add_argument("--processes", type=int, help="runs at once (default: one per core)")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the figure")
    arguments = parser.parse_args(argv)
    try:
        if arguments.seeds < 1 or (arguments.steps is not None and arguments.steps < 1):
            raise ConfigurationError("--seeds and --steps must be at least 1.")
        cores = len(os.sched_getaffinity(0))
        processes = arguments.processes or min(cores, 4)
        updates = {} if arguments.steps is None else {"steps": arguments.steps}
        print(
            f"Training {len(ROWS)} methods with {arguments.seeds} seeds each on scikit-learn's "
            f"digits, {processes} at once.",
            flush=True,
        )
        jobs = [
            (row, named, {**own, **updates}, seed)
            for row, (named, own) in ROWS.items()
            for seed in range(1, arguments.seeds + 1)
        ]
        results = run_jobs(jobs, processes)
    except MetatoolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the runs so far are recorded", file=sys.stderr)
        return 130
    show(results)
    picture = (arguments.output / "quickstart.png").resolve()
    draw(results, picture)
    from metatoolkit.records import connect

    print(f"figure:    {picture}")
    print(f"database:  {connect().address}")
    print("list runs: .venv/bin/metatoolkit runs list --experiment label_noise")
    return 0


if __name__ == "__main__":
    sys.exit(main())
