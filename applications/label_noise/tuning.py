"""Choose learning rates on clean tuning data: ``python -m applications.label_noise.tuning``.

Every method gets the same number of trials and seeds. A trial is a point of a Halton sequence over
the learning rates that the method has; seeds are apart from those of the reported runs; the score
is the accuracy on the tuning split, which no method trains on. The winners go into ``settings.py``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from applications.label_noise.quickstart import run_jobs
from applications.label_noise.settings import METHODS

RANGES = {"lr": (0.02, 0.5), "meta_lr": (3e-4, 3e-2)}
META_METHODS = ("second_order", "evograd")
FIRST_SEED = 101


def trials(method: str, count: int) -> list[dict[str, Any]]:
    """Return the settings to try for a method.

    Args:
        method: Name of the method.
        count: Number of trials.

    Returns:
        One mapping of learning rates for each trial, log-uniform over :data:`RANGES`.
    """
    from scipy.stats import qmc

    names = ["lr", "meta_lr"] if method in META_METHODS else ["lr"]
    points = qmc.Halton(len(names), scramble=False).random(count + 1)[1:]
    return [
        {
            name: float(f"{low * (high / low) ** float(u):.2g}")
            for name, u, (low, high) in zip(
                names, point, (RANGES[name] for name in names), strict=True
            )
        }
        for point in points
    ]


def main(argv: list[str] | None = None) -> int:
    """Try all settings and print the best ones.

    Args:
        argv: Arguments; by default those of the command line.

    Returns:
        Exit code.
    """
    import pandas

    parser = argparse.ArgumentParser(prog="tuning", description=__doc__)
    parser.add_argument("--trials", type=int, default=8, help="trials of each method (default: 8)")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each trial (default: 4)")
    parser.add_argument("--steps", type=int, help="training steps of each run")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (default: 2)")
    arguments = parser.parse_args(argv)
    common = {} if arguments.steps is None else {"steps": arguments.steps}
    jobs = [
        (method, (), {"method": method, **settings, **common}, FIRST_SEED + index)
        for method in METHODS
        for settings in trials(method, arguments.trials)
        for index in range(arguments.seeds)
    ]
    results = run_jobs(jobs, arguments.processes)
    frame = pandas.DataFrame(
        [{"method": r["row"], **r["settings"], "accuracy": r["tuning_accuracy"]} for r in results]
    )
    for method in METHODS:
        names = ["lr", "meta_lr"] if method in META_METHODS else ["lr"]
        scores = frame[frame["method"] == method].groupby(names)["accuracy"].agg(["mean", "std"])
        ranked = scores.sort_values("mean", ascending=False)
        print(f"\n{method}\n{ranked.to_string(float_format='%.4g')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
