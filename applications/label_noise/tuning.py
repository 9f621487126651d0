"""Choose settings on clean tuning data: ``python -m applications.label_noise.tuning``.

Every method gets the same number of trials and seeds. A trial is a point of a Halton sequence over
the settings that the method has: learning rate and momentum, for the meta-learning methods the
weight network's learning rate too, and for EvoGrad σ. The best three of each method then get more
seeds, since a setting that fails now and then is not seen to in four; the best mean over all seeds
wins. Seeds are apart from those of the reported runs; the score is the accuracy on the tuning
split, which no method trains on, and nothing is chosen in another way. The winners go into
``settings.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from applications.label_noise.settings import METHODS
from metatoolkit.jobs import Job, run_jobs

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


def score(entries: Sequence[tuple[str, dict[str, Any]]], seeds: range, processes: int) -> Any:
    """Run settings of methods with several seeds.

    Args:
        entries: Methods and settings.
        seeds: Seeds of each.
        processes: Number of runs at once.

    Returns:
        A pandas DataFrame: ``entry``, the position in ``entries``, and ``accuracy`` on tuning data,
        which is 0 where the run failed.
    """
    import pandas

    jobs = [
        Job(EXPERIMENT, method, seed, {"method": method, **settings})
        for method, settings in entries
        for seed in seeds
    ]
    outcomes = run_jobs(jobs, processes)
    positions = [position for position in range(len(entries)) for _ in seeds]
    accuracies = [0.0 if one.error else one.result["tuning_accuracy"] for one in outcomes]
    return pandas.DataFrame({"entry": positions, "accuracy": accuracies})


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
    parser.add_argument("--finalists", type=int, default=3, help="best trials (default: 3)")
    parser.add_argument("--more-seeds", type=int, default=8, help="seeds of these (default: 8)")
    parser.add_argument("--steps", type=int, help="training steps of each run")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (default: 2)")
    arguments = parser.parse_args(argv)
    common = {} if arguments.steps is None else {"steps": arguments.steps}
    entries = [
        (method, {**settings, **common})
        for method in METHODS
        for settings in trials(method, arguments.trials)
    ]
    first = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    scores = score(entries, first, arguments.processes)
    means = scores.groupby("entry")["accuracy"].mean().sort_values(ascending=False, kind="stable")
    final = [
        entry
        for method in METHODS
        for entry in [e for e in means.index if entries[e][0] == method][: arguments.finalists]
    ]
    more = range(first.stop, first.stop + arguments.more_seeds)
    added = score([entries[entry] for entry in final], more, arguments.processes)
    added["entry"] = added["entry"].map(dict(enumerate(final)))
    everything = pandas.concat([scores, added])
    table = everything.groupby("entry")["accuracy"].agg(["mean", "std", "count"]).reset_index()
    table["method"] = table["entry"].map(lambda entry: entries[entry][0])
    table["settings"] = table["entry"].map(lambda entry: str(entries[entry][1]))
    table = table.sort_values(["count", "mean"], ascending=False, kind="stable")
    for method in METHODS:
        columns = table.loc[table["method"] == method, ["settings", "count", "mean", "std"]]
        print(f"\n{method}\n{columns.to_string(index=False, float_format='%.4g')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
