"""N-way K-shot classification (MAML, Finn et al. 2017, arXiv 1703.03400, section 5.2).

A network of four convolutions takes a few gradient steps on the support set of a task and is asked
its query set; what it starts from, and for some algorithms by which rates it goes, is learned
across tasks. ``algorithm`` is any of ``metatoolkit.algorithms``, or ``scratch``, which learns each
task from random initial values; ``library=learn2learn`` takes learn2learn's meta-gradients instead.
``algorithm=protonet`` is the metric control: class means in the same network without its last layer
(Snell et al. 2017, arXiv 1703.05175), so that ``lr`` and ``inner_steps`` mean nothing.

``dataset=federated_digits`` has users as tasks, each with ``ways`` of scikit-learn's ten digits and
a slant of its own: a perceptron of two hidden layers, with a logit for each of the ten, begins at
what was learned from all users, and takes a few steps on what one has.

What differs from the public code, on purpose: BatchNorm uses the statistics of the batch that it is
given, as published, and its running statistics are those of no task; classes of the splits follow
from their sorted names; every draw is seeded, and test tasks are the same for all runs.

Expected on the default, generated glyphs: see docs/few_shot.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from applications.few_shot.settings import FEDERATED, NAMED, FewShotTaskSettings
from baselines.learn2learn_algorithms import Learn2LearnAlgorithm
from metatoolkit import records
from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly
from metatoolkit.experiments.task_learning import (
    HELD_OUT_SEED,
    assemble_across_tasks,
    join_torchrun,
    run_across_tasks,
)

experiment = records.experiment("few_shot")
settings_of = configure(experiment, FewShotTaskSettings, NAMED)


def correct(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the share of images that are classified right, a scalar.

    Args:
        model: Maps images to logits of shape (batch, classes).
        meta: Not used.
        batch: Images and labels.
    """
    images, labels = batch
    return (model(images).argmax(dim=1) == labels).float().mean()


def load_domain(config: dict[str, Any]) -> tuple[mt.tasks.Domain, Any]:
    """Return the domain that a configuration names, and the transform of its images.

    Args:
        config: A configuration of this experiment.
    """
    name, size, root = config["dataset"], config["image_size"], config["data_root"]
    if name.startswith("learn2learn:"):
        domain = mt.tasks.learn2learn_domain(name.partition(":")[2], root)
    elif Path(name).is_dir():
        domain = mt.tasks.image_folder_domain(Path(name).name, name)
    else:
        domain = mt.tasks.default_domains([name], size, root)[name]
        return domain, mt.tasks.ImageTransform((0.5,), (0.5,))
    return domain, mt.tasks.PhotoTransform(size)


def build_tasks(
    config: dict[str, Any], domain: mt.tasks.Domain, transform: Any, split: str
) -> mt.tasks.FewShotTasks:
    """Return the tasks of a split.

    Args:
        config: A configuration of this experiment.
        domain: Domain of the images.
        transform: Their transform.
        split: ``"train"``, whose tasks the seed draws, ``"valid"`` or ``"test"``.
    """
    trains = split == "train"
    moved = None
    if trains and config["augment"]:
        moved = mt.tasks.ImageTransform(padding=config["augment"])
    return mt.tasks.FewShotTasks(
        domain,
        split,
        **{name: config[name] for name in ("ways", "shots", "queries", "tasks")},
        seed=config["seed"] if trains else HELD_OUT_SEED,
        transform=transform,
        support_transform=moved,
        # Workers make tasks on the CPU.
        device=None if trains and config["workers"] else config["device"],
    )


def build_users(config: dict[str, Any], split: str) -> mt.tasks.FederatedDigits:
    """Return the users of a split.

    Args:
        config: A configuration of this experiment.
        split: As for :func:`build_tasks`.

    Raises:
        ConfigurationError: Their images are to be augmented.
    """
    if config["augment"]:
        raise ConfigurationError(
            f"augment is {config['augment']}, but the images of {FEDERATED} are not augmented; "
            "give augment=0."
        )
    return mt.tasks.FederatedDigits(
        split,
        classes=config["ways"],
        **{name: config[name] for name in ("shots", "queries", "tasks")},
        seed=config["seed"] if split == "train" else HELD_OUT_SEED,
    )


def build_model(config: dict[str, Any], images: Tensor) -> nn.Module:
    """Return the network, freshly initialized from the global random state.

    Args:
        config: A configuration of this experiment.
        images: Some images of a task.
    """
    width = config["width"]
    if config["dataset"] == FEDERATED:
        # Too small for four convolutions that halve the sides; all users share the labels.
        return nn.Sequential(nn.Flatten(), mt.networks.MLP(images[0].numel(), (width, width), 10))
    backbone = mt.networks.build_backbone("conv4", images.shape[1], width=width)
    features = backbone(images[:1].cpu()).numel()
    return nn.Sequential(backbone, nn.Flatten(), nn.Linear(features, config["ways"]))


def assemble(config: dict[str, Any]) -> Assembly:
    """Put domain, network and algorithm together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer and its batches of tasks, not yet trained; its task is a function that returns
        the tasks of a split.

    Raises:
        ConfigurationError: An entry is out of range.
        UnknownNameError: A name is unknown, for instance that of the data set.
        DataError: There are fewer classes than ways, or fewer images than shots and queries.
    """
    config = settings_of(config)
    join_torchrun()
    if config["dataset"] == FEDERATED:
        tasks_of: Callable[[str], mt.tasks.TaskSource] = functools.partial(build_users, config)
    else:
        tasks_of = functools.partial(build_tasks, config, *load_domain(config))

    # What cannot be tested is told before the training.
    train, *_ = (tasks_of(split) for split in ("train", "valid", "test"))
    (images, _), _ = train.task(0)
    torch.manual_seed(config["seed"])
    model = build_model(config, images)
    assembly = assemble_across_tasks(
        config, model, mt.losses.cross_entropy, train, Learn2LearnAlgorithm
    )
    return dataclasses.replace(assembly, task=tasks_of)


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Train one algorithm with one seed, test it on held-out classes, and record both.

    Returns:
        Accuracy on test tasks, its 95 % interval over tasks, and the last metrics of the training.
    """
    assembly = assemble(dict(_config))
    return run_across_tasks(_run, assembly, assembly.task, correct, "accuracy")
