"""What the outer loss says of the transforms' strength, after few inner steps and after many."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.run import Assembly
from metatoolkit.hypergradients import EvolutionStrategies, Unrolled
from metatoolkit.randomness import Stream, fold_in

_RATIO = math.exp(0.1)


def strength_slopes(
    trainer: mt.MetaTrainer,
    train_batches: Iterable[Any],
    valid_batches: Iterable[Any],
    horizon: int,
    count: int,
) -> dict[str, float]:
    """Differentiate the outer loss after some inner steps in the logarithm of λ's scale.

    With s a factor of all of λ, this is dL/d(log s) at s = 1: above 0 where weaker transforms would
    lower the outer loss. It is taken twice on the same batches and random numbers. The derivative
    is that of :class:`metatoolkit.hypergradients.Unrolled`, for which running statistics are
    constants. The central difference of the loss at λ·exp(±0.1) takes the steps anew, so that λ
    also changes the statistics, as it does for evolution strategies.

    Cost with F one forward pass: about 18 T + 8 F for each of ``count``. Training and λ stay as
    they are.

    Args:
        trainer: Where to look: its problem, inner learner and state.
        train_batches: ``count`` times ``horizon`` training batches.
        valid_batches: ``count`` validation batches.
        horizon: Number T of inner steps.
        count: Number of meta batches.

    Returns:
        ``slope_T`` and ``slope_with_statistics_T``, means over the meta batches; with two of these
        or more also ``slope_T_deviation`` and ``slope_with_statistics_T_deviation``, the standard
        deviations of one.
    """
    problem, inner, state = trainer.problem, trainer.inner, trainer.state
    meta = {name: tensor.detach() for name, tensor in problem.meta_parameters().items()}
    exact, replayed = Unrolled(horizon), EvolutionStrategies(horizon)
    train, valid = iter(train_batches), iter(valid_batches)
    derivatives, differences = [], []
    for number in range(count):
        steps = [trainer.place(batch) for batch in itertools.islice(train, horizon)]
        outer = trainer.place(next(valid))
        at = dataclasses.replace(state, key=fold_in(state.key, Stream.META_BATCH, number))
        gradient = exact(problem, inner, at, steps, outer).gradient
        derivatives.append(sum(float((meta[n] * gradient[n]).sum()) for n in meta))
        stronger, weaker = (
            float(
                replayed.objective(
                    problem, inner, at, steps, outer, {n: meta[n] * factor for n in meta}
                )
            )
            for factor in (_RATIO, 1 / _RATIO)
        )
        differences.append((stronger - weaker) / (2 * math.log(_RATIO)))
    found = {}
    names = (f"slope_{horizon}", f"slope_with_statistics_{horizon}")
    for name, values in zip(names, (derivatives, differences), strict=True):
        slopes = torch.tensor(values, dtype=torch.float64)
        found[name] = float(slopes.mean())
        if count > 1:
            found[f"{name}_deviation"] = float(slopes.std())
    return found


def check_horizons(config: Mapping[str, Any], assembly: Assembly) -> None:
    """Raise unless what ``horizons`` asks for will be measured.

    Args:
        config: A configuration of the application.
        assembly: What it stands for.

    Raises:
        ConfigurationError: No evaluation is due where the slopes are asked for, or the training
            loss takes more than episodes.
    """
    asked = config["horizons"]
    if not asked["steps"]:
        return
    if config["auxiliary"]["domain"] is not None or config["reset_every"] is not None:
        raise ConfigurationError(
            "horizons.steps asks for slopes of one training on episodes; leave auxiliary.domain "
            "and reset_every at None, or horizons.steps empty."
        )
    steps, at = config["steps"], asked["at"]
    rhythm = config["evaluate_every"] * steps // assembly.outer_steps(steps)
    if at != steps and (at > steps or rhythm == 0 or at % rhythm):
        due = f"every {rhythm} and after {steps}" if rhythm else f"only after {steps}"
        raise ConfigurationError(
            f"horizons.at is {at}, but evaluations are due {due} inner steps; give one of these, "
            "or another evaluate_every."
        )


def measure(
    trainer: mt.MetaTrainer,
    asked: Mapping[str, Any],
    episodes: Callable[[], tuple[Iterable[Any], Iterable[Any]]],
) -> dict[str, float]:
    """Return what is asked for at the trainer's state.

    Args:
        trainer: Where to look.
        asked: The group ``horizons`` of the configuration.
        episodes: Makes training and validation batches, the same at each call.

    Returns:
        Where the slopes are due, those of :func:`strength_slopes`; with ``valid_episodes`` also
        ``outer_loss``, the mean over so many.
    """
    found: dict[str, float] = {}
    if trainer.state.step == asked["at"]:
        for horizon in asked["steps"]:
            count = max(1, asked["inner_steps"] // horizon)
            found |= strength_slopes(trainer, *episodes(), horizon, count)
    if asked["valid_episodes"]:
        _, valid = episodes()
        losses = [
            _outer_loss(trainer, batch)
            for batch in itertools.islice(valid, asked["valid_episodes"])
        ]
        found["outer_loss"] = sum(losses) / len(losses)
    return found


def _outer_loss(trainer: mt.MetaTrainer, batch: Any) -> float:
    problem, state = trainer.problem, trainer.state
    meta, placed = problem.meta_parameters(), trainer.place(batch)
    with torch.no_grad():
        loss = problem.evaluate_valid(state.parameters, meta, state.buffers, placed, state.key)
    return float(loss)
