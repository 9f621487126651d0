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
from typing import Any

import torch
from torch import nn

import metatoolkit as mt
from applications.schedule_search.settings import NAMED, SCHEDULES, ScheduleSearchSettings
from metatoolkit import records
from metatoolkit.experiments.components import build_estimator
from metatoolkit.experiments.configuration import check_at_most
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded
from metatoolkit.hypergradients import Estimator, estimators
from metatoolkit.hypergradients.trajectory import roll_out
from metatoolkit.inner import InnerLearner, learners
from metatoolkit.randomness import Stream, fold_in, seeded
from metatoolkit.stateless.passes import Loss

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
    if config["method"] == "fixed":
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


def value_at(name: str, meta: nn.Module, step: int) -> torch.Tensor:
    """Return the value of a schedule at an inner step, 0-d.

    Args:
        name: Name of the schedule.
        meta: All schedules.
        step: Number of inner steps taken before.
    """
    schedule = meta.get_submodule(name)
    assert isinstance(schedule, mt.metaparameters.Schedule)
    return schedule.at(step)


def build_schedules(config: dict[str, Any]) -> tuple[nn.ModuleDict, InnerLearner]:
    """Return the schedules, and the inner learner whose hyper-parameters they are.

    A learner gets those that it has and that ``inner`` gives no number for.

    Args:
        config: A configuration of this experiment, filled in.
    """
    usual = "ReversibleMomentum" if config["method"] == "reversible" else "SGD"
    chosen = dict(config["inner"])
    name = chosen.pop("name") or usual
    takes = [one for one in SCHEDULES.values() if one in learners.options(name)]
    meta = nn.ModuleDict()
    for group, own in SCHEDULES.items():
        if own in takes and own not in chosen:
            given = config[group]
            keeps = config["meta_optimizer"] == "adam"
            meta[own] = mt.metaparameters.Schedule(
                given["start"],
                config["horizon"],
                given["shares"],
                bounds=given["bounds"] if keeps else None,
            )
    scheduled = {own: functools.partial(value_at, own) for own in meta}
    inner = learners.build(name, **scheduled, **chosen)
    return meta, inner if config["clip"] is None else mt.inner.Clipped(
        inner, max_value=config["clip"]
    )


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


def build_network(config: dict[str, Any], task: mt.tasks.NoisyClassification) -> nn.Module:
    """Return a network, drawn from the global random state.

    Args:
        config: A configuration of this experiment.
        task: The data.
    """
    options = {name: value for name, value in config["network"].items() if value is not None}
    return mt.networks.build_network(options.pop("name"), task.classes, task.input_shape, **options)


def loss_on(split: mt.tasks.Split, transform: mt.tasks.ImageTransform, device: str) -> Loss:
    """Return the cross-entropy of a batch of places in a split.

    A training of 10,000 batches of images would fill the memory that forward mode leaves free;
    their places do not, and augmentation follows from the key of the step.

    Args:
        split: Images and labels.
        transform: Augments and normalizes a batch of images.
        device: Where they are held.
    """
    images, labels = split.images.to(device), split.labels.to(device)

    def loss(model: nn.Module, meta: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
        (places,) = batch
        return mt.losses.cross_entropy(model, meta, (transform(images[places]), labels[places]))

    return loss


def batches_of(split: mt.tasks.Split, size: int, seed: int, device: str) -> mt.tasks.Batches:
    """Return endless batches of places in a split.

    Args:
        split: Images and labels.
        size: Places in a batch.
        seed: Seed of the order.
        device: Where to hold them.
    """
    places = torch.arange(len(split.labels))
    return mt.tasks.Batches(places, batch_size=size, seed=seed, device=device)


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
        keep_lookahead=config["method"] not in ("fixed", "es", "meta"),
        skip_nonfinite=True,
    )
    train = batches_of(task.train, config["batch_size"], config["seed"], device)
    valid = batches_of(task.valid, size, config["seed"] + 1, device)
    # Each hypergradient is a training, which nobody takes seven times to measure it.
    return Assembly(trainer, train, valid, task, measured=False)


def train_anew(config: dict[str, Any], assembly: Assembly) -> dict[str, float]:
    """Train a fresh network by the present schedules, and test it.

    Args:
        config: A configuration of this experiment, filled in.
        assembly: What :func:`assemble` returned; its model holds the network afterwards.

    Returns:
        ``test_accuracy`` and ``valid_accuracy``.
    """
    trainer, task, seed = assembly.trainer, assembly.task, config["seed"]
    problem, start, key = trainer.problem, trainer.start, fold_in(seed, Stream.FRESH_NETWORK)
    assert start is not None
    with seeded(key):
        fresh = trainer.place(dict(build_network(config, task).named_parameters()))
    order = fold_in(seed, Stream.FRESH_BATCHES)
    batches = batches_of(task.train, config["batch_size"], order, config["device"])
    final = roll_out(
        problem,
        trainer.inner,
        start.replaced(parameters={name: p.detach() for name, p in fresh.items()}, key=key),
        problem.meta_parameters(),
        list(itertools.islice(batches, config["horizon"])),
    )
    problem.load(final)
    transform = task.dataset.transform()
    return {
        f"{name}_accuracy": mt.evaluation.accuracy(problem.model, *split, transform=transform)
        for name, split in (("test", task.test), ("valid", task.valid))
    }


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

    def evaluate(trained: mt.MetaTrainer) -> dict[str, float]:
        return {**train_anew(config, assembly), "inner_steps": trained.passes / 3}

    last = fit_recorded(_run, assembly, evaluate=evaluate)
    _run.info["schedules"] = shared_values(meta)
    names = ("test_accuracy", "valid_accuracy", "inner_steps", "lambda_distance")
    return {name: last[name] for name in names}
