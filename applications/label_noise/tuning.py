"""Choose settings on clean tuning data: ``python -m applications.label_noise.tuning``.

Every method gets the same number of trials and seeds. A trial is a point of a Halton sequence over
the settings that the method has: learning rate and momentum, for the meta-learning methods the
weight network's learning rate too, and for EvoGrad σ. Seeds are apart from those of the reported
runs; the score is the accuracy on the tuning split, which no method trains on, and nothing is
chosen in another way. The winners go into ``settings.py``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from applications.label_noise.settings import METHODS
from metatoolkit.studies import Job, run_jobs

# The learning rate is that of the step that momentum accumulates to, lr / (1 − momentum).
RANGES = {"lr": (0.02, 0.5), "meta_lr": (3e-4, 3e-2), "sigma": (1e-3, 0.1)}
NAMES = {
    "second_order": ("momentum", "lr", "meta_lr"),
    "evograd": ("momentum", "lr", "meta_lr", "sigma"),
}
FIRST_SEED = 201
EXPERIMENT = "applications.label_noise.experiment"


def trials(method: str, count: int) -> list[dict[str, Any]]:
    """Return the settings to try for a method.

    Args:
        method: Name of the method.
        count: Number of trials.

    Returns:
        One mapping of settings for each trial: no momentum or Nesterov's with 0.9, and the others
        log-uniform over :data:`RANGES`.
    """
    from scipy.stats import qmc

    names = NAMES.get(method, ("momentum", "lr"))
    points = qmc.Halton(len(names), scramble=False).random(count + 1)[1:]
    return [_settings(dict(zip(names, map(float, point), strict=True))) for point in points]


def _settings(point: dict[str, float]) -> dict[str, Any]:
    def scaled(name: str, factor: float = 1.0) -> float:
        low, high = RANGES[name]
        return float(f"{factor * low * (high / low) ** point[name]:.2g}")

    momentum = 0.9 if point["momentum"] >= 0.5 else 0.0
    settings: dict[str, Any] = {
        "momentum": momentum,
        "nesterov": momentum > 0,
        "lr": scaled("lr", 1 - momentum),
    }
    if "meta_lr" in point:
        settings["meta_lr"] = scaled("meta_lr")
    if "sigma" in point:
        settings["evograd"] = {"sigma": scaled("sigma")}
    return settings


def main(argv: list[str] | None = None) -> int:
    """Try all settings and print the best ones.

    Args:
        argv: Arguments; by default those of the command line.

    Returns:
        Exit code.
    """
    import pandas

    parser = argparse.ArgumentParser(prog="tuning", description=__doc__)
    parser.add_argument("--trials", type=int, default=16, help="trials a method (default: 16)")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each trial (default: 4)")
    parser.add_argument("--steps", type=int, help="training steps of each run")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (default: 2)")
    arguments = parser.parse_args(argv)
    common = {} if arguments.steps is None else {"steps": arguments.steps}
    jobs, labels = [], []
    for method in METHODS:
        for settings in trials(method, arguments.trials):
            for index in range(arguments.seeds):
                updates = {"method": method, **settings, **common}
                jobs.append(Job(EXPERIMENT, method, FIRST_SEED + index, updates))
                labels.append(", ".join(f"{name} {value}" for name, value in settings.items()))
    results = run_jobs(jobs, arguments.processes)
    frame = pandas.DataFrame(
        [
            {
                "method": run["label"],
                "settings": label,
                "accuracy": run["result"]["tuning_accuracy"],
            }
            for run, label in zip(results, labels, strict=True)
        ]
    )
    for method, group in frame.groupby("method", sort=False):
        scores = group.groupby("settings")["accuracy"].agg(["mean", "std"])
        ranked = scores.sort_values("mean", ascending=False)
        print(f"\n{method}\n{ranked.to_string(float_format='%.4g')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
