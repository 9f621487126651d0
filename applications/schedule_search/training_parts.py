"""What a training is made of: schedules, the inner learner, the network, losses and batches."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

import metatoolkit as mt
from applications.schedule_search.settings import BLACK_BOX, SCHEDULES
from metatoolkit.inner import InnerLearner, learners
from metatoolkit.stateless.passes import Loss


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
            keeps = config["meta_optimizer"] == "adam" and config["method"] not in BLACK_BOX
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
