"""Black-box search of the values of schedules, by whole trainings, at a budget of inner steps."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from applications.schedule_search.settings import SCHEDULES
from baselines.black_box import Fidelity, search
from metatoolkit.experiments.jobs import Job, Outcome
from metatoolkit.experiments.search_space import Range, Space

Starts = Mapping[str, Mapping[str, Any]]
"""Values of schedules, one for each share: ``{"learning_rate": {"start": [0.1, 0.05]}, ...}``."""

_DECADES = 3
_PARTS = 10
# Of Hyperband and DEHB: the fewest steps of a training are a ninth of the horizon.
_FEWEST = 9


def space_of(config: Mapping[str, Any], meta: nn.Module) -> Space:
    """Return the space of all values: momenta between their bounds, and three decades of others.

    Args:
        config: A configuration of this experiment, filled in.
        meta: All schedules.
    """
    coordinates: dict[str, Range] = {}
    shares = {group: config[group]["shares"] for group, own in SCHEDULES.items() if _has(meta, own)}
    for group, count in shares.items():
        low, high = config[group]["bounds"]
        log = group != "momentum"
        least = max(low, high / 10**_DECADES) if log else low
        for share in range(count):
            coordinates[f"{group} {share}"] = Range(least, high, log=log, digits=None)

    def settings(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            group: {"start": [values[f"{group} {share}"] for share in range(count)]}
            for group, count in shares.items()
        }

    fixed = {"method": "fixed", **{group: {"shares": n} for group, n in shares.items()}}
    return Space(coordinates, settings, fixed)


def run(
    record: Any,
    config: Mapping[str, Any],
    meta: nn.Module,
    loss: Callable[[Starts, int, int], float],
    test: Callable[[], dict[str, float]],
) -> dict[str, float]:
    """Search the values by trainings, and record what the best by then lead to.

    Args:
        record: The Sacred run.
        config: A configuration of this experiment, filled in; ``steps`` is the budget.
        meta: All schedules; they have the best values afterwards.
        loss: Takes values, the steps of a training and its number, and returns the outer loss
            after it.
        test: Trains a network by the present schedules, and returns how it does.

    Returns:
        The last value of each metric, at the last of ten points of the budget.
    """
    before = [parameter.detach().clone() for parameter in meta.parameters()]
    begin, numbers = time.perf_counter(), itertools.count(1)

    def evaluated(job: Job) -> Outcome:
        value = loss(job.updates, job.updates["horizon"], next(numbers))
        return Outcome(job, {"valid_loss": value})

    found = search(
        "schedule_search",
        space_of(config, meta),
        method=config["method"],
        score="valid_loss",
        budget=config["steps"],
        fidelity=Fidelity(
            config["horizon"],
            low=max(1, config["horizon"] // _FEWEST),
            entries=("horizon", "steps"),
            # A shorter training has the same shares.
            multiple=math.lcm(*(config[group]["shares"] for group in SCHEDULES)),
        ),
        seed=config["seed"],
        minimize=True,
        run=evaluated,
        progress=config["progress"],
    )
    record.info["seconds"] = time.perf_counter() - begin
    last = dict[str, float]()
    for part in range(1, _PARTS + 1):
        spent = config["steps"] * part // _PARTS
        best = found.at(spent)
        if best is not None:
            place(meta, best.settings)
        last = {**test(), "inner_steps": float(spent)}
        for name, value in last.items():
            record.log_scalar(name, value, part)
    moved = [(p - b).norm() for p, b in zip(meta.parameters(), before, strict=True)]
    return last | {"lambda_distance": float(torch.stack(moved).norm().detach())}


def place(meta: nn.Module, starts: Starts) -> None:
    """Put values in the place of those of schedules.

    Args:
        meta: All schedules, on the linear scale and without bounds of their own.
        starts: The values.
    """
    with torch.no_grad():
        for group, own in SCHEDULES.items():
            if _has(meta, own):
                values = torch.tensor(starts[group]["start"])
                meta.get_parameter(f"{own}.raw").copy_(values)


def _has(meta: nn.Module, own: str) -> bool:
    return own in dict(meta.named_children())
