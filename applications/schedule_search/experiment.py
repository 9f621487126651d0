"""Learning schedules over whole trainings (FDS, Micaelli & Storkey 2021, arXiv 2007.07869).

Learning rate, momentum and weight decay of a training of ``horizon`` steps are λ, each a few values
that contiguous steps share. An outer step trains a network with the present schedules, takes the
derivative of the validation loss in them, and moves each value by its sign. Methods:

- ``fds``: forward mode through all steps, at a memory that their number does not change.
- ``greedy``: forward mode through a window at a time, whose values move on the loss at its end.
- ``truncated``: the derivative of the last loss through the last window alone.
- ``replay``: reverse mode through all steps, with few states kept (REPLAY's tree).
- ``reversible``: reverse mode through steps that are taken back bit for bit. Its learner weights
  the gradient by 1 − momentum and has no weight decay, so that its rates are others.
- ``es``: evolution strategies, by whole trainings alone.
- ``random``, ``tpe`` and ``cma_es``: black-box search (Optuna) by whole trainings, of ``steps``
  inner steps in all; ``hyperband`` and ``dehb`` try more schedules by trainings of a ninth and a
  third of the horizon, each begun anew.
- ``fixed``: nothing is learned.

Each training has a network and batches of its own, on the same images. After each a further
network, drawn with a seed that no training has, is trained on these by the present schedules, and
tested: that is ``test_accuracy``. These last trainings are not counted.

``inner_steps`` is what the search has spent, in inner steps of 3 F, with F one forward pass over a
batch: what an estimator counts, its forward passes with 1 F, backward passes with 2 F and products
with second derivatives with 6 F, and each further inner step. Through T steps that is 2 N T for N
pairs of evolution strategies, 4 T for reverse mode, and (N + 2) T for forward mode with N shares of
one schedule, which begin one after the other.

What differs from the public code, on purpose: one split for all outer steps, values between
bounds, and a hypergradient that is NaN is told. ``with cifar10`` sets the paper's data, network and
horizon. Expected on the default, digits: see docs/schedules.md.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import metatoolkit as mt
from applications.schedule_search import black_box
from applications.schedule_search.black_box import Starts
from applications.schedule_search.settings import (
    BLACK_BOX,
    NAMED,
    SCHEDULES,
    ScheduleSearchSettings,
)
from applications.schedule_search.training_parts import (
    batches_of,
    build_network,
    build_schedules,
    loss_on,
)
from metatoolkit import records
from metatoolkit.experiments.components import build_estimator
from metatoolkit.experiments.configuration import check_at_most
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded
from metatoolkit.hypergradients import Estimator, estimators
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out
from metatoolkit.randomness import Stream, fold_in, seeded
from metatoolkit.state import InnerState

experiment = records.experiment("schedule_search")
settings_of = configure(experiment, ScheduleSearchSettings, NAMED)


def chosen_estimator(config: dict[str, Any]) -> Estimator | None:
    """Return the estimator of a configuration, or ``None`` where nothing is learned.

    Args:
        config: A configuration of this experiment, filled in.

    Raises:
        ConfigurationError: Its horizon does not divide that of the training.
    """
    horizon, window = config["horizon"], config["window"]
    entries: dict[str, dict[str, Any]] = {
        "fds": {"name": "ForwardMode", "steps": horizon},
        "greedy": {"name": "ForwardMode", "steps": window},
        "truncated": {"name": "ForwardMode", "steps": horizon, "truncation": window},
        "replay": {"name": "Unrolled", "steps": horizon, "checkpoint": "tree"},
        "reversible": {"name": "Reversible", "steps": horizon},
        "es": {"name": "EvolutionStrategies", "steps": horizon, **config["es"]},
    }
    chosen = entries.get(config["method"], config["estimator"])
    if config["method"] in ("fixed", *BLACK_BOX):
        return None
    own = {"steps": horizon} if "steps" in estimators.options(chosen["name"]) else {}
    estimator = build_estimator({**config, "method": "meta", "estimator": {**own, **chosen}})
    assert estimator is not None
    if horizon % estimator.horizon:
        raise mt.errors.ConfigurationError(
            f"estimator.name is {chosen['name']!r}, which takes {estimator.horizon} inner steps, "
            f"and horizon={horizon} is no multiple of these; change one of them."
        )
    return estimator


def meta_optimizer(config: dict[str, Any], meta: nn.ModuleDict) -> torch.optim.Optimizer:
    """Return what moves the schedules.

    Args:
        config: A configuration of this experiment, filled in.
        meta: The schedules.
    """
    if config["meta_optimizer"] == "adam":
        return torch.optim.Adam(meta.parameters(), lr=config["meta_lr"])
    return mt.SignDescent(
        [
            {
                "params": meta[own].parameters(),
                "lr": config[group]["step"],
                # As a tuple, since checkpoints take no list of Sacred's.
                "bounds": tuple(config[group]["bounds"]),
            }
            for group, own in SCHEDULES.items()
            if own in meta
        ]
    )


def assemble(config: dict[str, Any]) -> Assembly:
    """Put data, network, schedules, inner learner and estimator together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer and its batches, not yet trained, and the data.

    Raises:
        ConfigurationError: An entry is out of range.
        UnknownNameError: A name is unknown, for instance that of the method.
        DataError: The data are missing.
    """
    config = settings_of(config)
    estimator = chosen_estimator(config)
    dataset = mt.tasks.load_dataset(config["dataset"], root=config["data_root"])
    # No label is wrong.
    task = mt.tasks.label_noise_task(
        dataset, "uniform", 0.0, valid_per_class=config["valid_per_class"], seed=config["seed"]
    )
    check_at_most("batch_size", config["batch_size"], len(task.train.labels), "training images")
    size, device = config["valid_batch_size"], config["device"]
    check_at_most("valid_batch_size", size, len(task.valid.labels), "validation images")
    torch.manual_seed(config["seed"])
    model = build_network(config, task)
    meta, inner = build_schedules(config)
    crops = dataset.transform(padding=4, flip=True) if config["augment"] else dataset.transform()
    problem = mt.BilevelProblem(
        model,
        meta,
        train_loss=loss_on(task.train, crops, device),
        valid_loss=loss_on(task.valid, dataset.transform(), device),
    )
    trainer = mt.MetaTrainer(
        problem,
        inner,
        estimator,
        None if estimator is None else meta_optimizer(config, meta),
        device=device,
        seed=config["seed"],
        reset_every=config["horizon"],
        redraw=functools.partial(build_network, config, task),
        keep_lookahead=config["method"] not in ("fixed", "es", "meta", *BLACK_BOX),
        skip_nonfinite=True,
    )
    train = batches_of(task.train, config["batch_size"], config["seed"], device)
    valid = batches_of(task.valid, size, config["seed"] + 1, device)
    # Each hypergradient is a training, which nobody takes seven times to measure it.
    return Assembly(trainer, train, valid, task, measured=False)


def trained(config: dict[str, Any], assembly: Assembly, draws: Sequence[int] = ()) -> InnerState:
    """Return where the present schedules lead a fresh network.

    Args:
        config: A configuration of this experiment, filled in.
        assembly: What :func:`assemble` returned.
        draws: What network and batches are told from others by; none for those that are tested.
    """
    trainer, task, seed = assembly.trainer, assembly.task, config["seed"]
    problem, start = trainer.problem, trainer.start
    key, order = (fold_in(seed, s, *draws) for s in (Stream.FRESH_NETWORK, Stream.FRESH_BATCHES))
    assert start is not None
    with seeded(key):
        fresh = trainer.place(dict(build_network(config, task).named_parameters()))
    batches = batches_of(task.train, config["batch_size"], order, config["device"])
    return roll_out(
        problem,
        trainer.inner,
        start.replaced(parameters={name: p.detach() for name, p in fresh.items()}, key=key),
        problem.meta_parameters(),
        list(itertools.islice(batches, config["horizon"])),
    )


def train_anew(config: dict[str, Any], assembly: Assembly) -> dict[str, float]:
    """Train a fresh network by the present schedules, and test it.

    Args:
        config: A configuration of this experiment, filled in.
        assembly: What :func:`assemble` returned; its model holds the network afterwards.

    Returns:
        ``test_accuracy`` and ``valid_accuracy``.
    """
    problem, task = assembly.trainer.problem, assembly.task
    problem.load(trained(config, assembly))
    transform = task.dataset.transform()
    return {
        f"{name}_accuracy": mt.evaluation.accuracy(problem.model, *split, transform=transform)
        for name, split in (("test", task.test), ("valid", task.valid))
    }


def valid_loss(
    config: dict[str, Any], assemblies: dict[int, Assembly], starts: Starts, steps: int, number: int
) -> float:
    """Return the outer loss after a training by other schedules, on all validation images.

    Args:
        config: A configuration of this experiment, filled in.
        assemblies: What :func:`assemble` returned, by the number of inner steps, to which others
            are added; the schedules take the values over.
        starts: Values of the schedules.
        steps: Inner steps of the training, along which the schedules are as long.
        number: Number of the training, which has a network and batches of its own.
    """
    config = {**config, "horizon": steps, "steps": steps, "window": None}
    if steps not in assemblies:
        assemblies[steps] = assemble(config)
    assembly = assemblies[steps]
    problem = assembly.trainer.problem
    black_box.place(problem.meta, starts)
    final = trained(config, assembly, [number])
    places = torch.arange(len(assembly.task.valid.labels), device=config["device"])
    return float(outer_loss(problem, final, problem.meta_parameters(), (places,)))


def shared_values(meta: nn.Module) -> dict[str, list[float]]:
    """Return the values of each schedule, one for each share.

    Args:
        meta: All schedules.
    """
    return {
        name: schedule.values()[:: schedule.horizon // schedule.shares].tolist()
        for name, schedule in meta.named_children()
        if isinstance(schedule, mt.metaparameters.Schedule)
    }


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Learn schedules with one method and one seed, and record what they lead to.

    Returns:
        Accuracies of a fresh network trained by the last schedules, what the search has spent, and
        how far λ moved.
    """
    config = settings_of(dict(_config))
    assembly = assemble(config)
    meta = assembly.trainer.problem.meta
    _run.info["first_schedules"] = shared_values(meta)
    for name, value in {**train_anew(config, assembly), "inner_steps": 0.0}.items():
        _run.log_scalar(name, value, 0)

    def evaluate(trainer: mt.MetaTrainer) -> dict[str, float]:
        return {**train_anew(config, assembly), "inner_steps": trainer.passes / 3}

    if config["method"] in BLACK_BOX:
        loss = functools.partial(valid_loss, config, {config["horizon"]: assembly})
        last = black_box.run(_run, config, meta, loss, lambda: train_anew(config, assembly))
    else:
        last = fit_recorded(_run, assembly, evaluate=evaluate)
    _run.info["schedules"] = shared_values(meta)
    names = ("test_accuracy", "valid_accuracy", "inner_steps", "lambda_distance")
    return {name: last[name] for name in names}
