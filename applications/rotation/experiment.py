"""Learning a rotation (EvoGrad, Bohdal et al. 2021, arXiv 2106.10575, section 4.1).

Test and validation images are rotated by 30°, training images stand upright. One angle by which
training images are rotated is the meta-parameter; LeNet and the angle learn together. Methods:
``evograd``, ``second_order`` (the exact one-step hypergradient, which the paper's notebook lacks)
and ``baseline``, which trains on the upright images.

What differs from the public code, on purpose: images are rotated onto their own background, and not
onto 0 after normalization, which is gray; every validation and test image is rotated once, from its
original; every run has a seed; validation batches are drawn anew in each epoch. ``with mnist`` sets
the paper's data, split and protocol, down to the nearest-neighbor sampling of its test images.

Expected on the default, scikit-learn's digits: see docs/rotation.md.
"""

from __future__ import annotations

from typing import Any

import torch

import metatoolkit as mt
from applications.rotation.settings import NAMED, RotationSettings
from metatoolkit import records
from metatoolkit.experiments.components import build_estimator, build_inner, signal_window
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded

experiment = records.experiment("rotation")
settings_of = configure(experiment, RotationSettings, NAMED)


def build_task(config: dict[str, Any]) -> mt.tasks.RotatedClassification:
    """Load and split the images.

    Args:
        config: A configuration of this experiment.
    """
    dataset = mt.tasks.load_dataset(config["dataset"], root=config["data_root"])
    if config["resize"]["side"] is not None:
        dataset = mt.tasks.resize_dataset(dataset, **config["resize"])
    return mt.tasks.rotation_task(
        dataset,
        config["degrees"],
        valid=config["valid_examples"],
        tuning=config["tuning_examples"],
        seed=config["seed"] if config["shuffle_split"] else None,
        interpolation=config["interpolation"],
    )


def assemble(config: dict[str, Any]) -> Assembly:
    """Put images, network, rotation, losses, inner learner and estimator together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer and its batches, not yet trained, and the task.

    Raises:
        ConfigurationError: An entry is out of range.
        UnknownNameError: A name is unknown, for instance that of the method.
    """
    config = settings_of(config)
    estimator = build_estimator(config)
    task = build_task(config)
    seed, device = config["seed"], config["device"]
    network = dict(config["network"])
    torch.manual_seed(seed)
    model = mt.networks.build_network(
        network.pop("name"), task.dataset.classes, task.dataset.input_shape, **network
    )
    meta = mt.metaparameters.Rotation(fill=task.background)
    losses = mt.losses
    problem = mt.BilevelProblem(
        model,
        meta,
        train_loss=losses.cross_entropy if estimator is None else losses.transformed_cross_entropy,
        valid_loss=losses.cross_entropy,
    )
    optimizer = None
    if estimator is not None:
        optimizer = torch.optim.Adam(meta.parameters(), lr=config["meta_lr"])
    trainer = mt.MetaTrainer(
        problem,
        build_inner(config, config["lr"]) or mt.inner.Adam(lr=config["lr"]),
        estimator,
        optimizer,
        order="inner_first",
        device=device,
        seed=seed,
        signal_window=signal_window(estimator),
    )
    common = {"drop_last": False, "device": device}
    train = mt.tasks.Batches(*task.train, batch_size=config["batch_size"], seed=seed, **common)
    valid = mt.tasks.Batches(
        *task.valid, batch_size=config["valid_batch_size"], seed=seed + 1, **common
    )
    return Assembly(trainer, train, valid, task)


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Train one method with one seed, and record angle, accuracies and costs.

    Returns:
        The accuracies and the angle of the last step.
    """
    config = dict(_config)
    assembly = assemble(config)
    task = assembly.task
    steps = assembly.outer_steps(config["steps"])

    def evaluate(trained: mt.MetaTrainer) -> dict[str, float]:
        problem, done = trained.problem, trained.steps_done
        assert isinstance(problem.meta, mt.metaparameters.Rotation)
        values = {"angle_degrees": problem.meta.degrees}
        last = done == steps
        if last or done % config["accuracy_every"] == 0:
            splits = {"tuning": task.tuning}
            if last:
                splits |= {"test": task.test, "test_upright": task.test_upright}
            for name, split in splits.items():
                if len(split.labels) > 0:
                    values[f"{name}_accuracy"] = mt.evaluation.accuracy(problem.model, *split)
        return values

    last = fit_recorded(_run, assembly, evaluate=evaluate)
    return {
        name: last[name]
        for name in last
        if name.endswith("accuracy") or name in ("angle_degrees", "train_loss")
    }
