"""Meta-Weight-Net under label noise (Shu et al. 2019; EvoGrad, Bohdal et al. 2021, section 4.3).

A weight network maps the loss of each training example to its weight; it is trained on a small
clean, class-balanced validation set. Methods: ``evograd``, ``second_order`` (the exact one-step
hypergradient), and without meta-learning ``plain``, ``uniform_weights`` (plain training on the
training and the validation set together) and ``frozen_weights`` (a weight network as it was drawn).

What differs from the public code, on purpose: the validation set shares no example with the
training set for any seed (there, all but a few validation images are also noisy training images for
most seeds); the noise differs by seed; EvoGrad's candidates share their random numbers; the
reported accuracy is that of the last step, never the best over evaluations on test data. EvoGrad's
hypergradient is scaled to the inner learning rate (``rescale``): at the paper's σ, τ and K it is
that of a step of 1e-5, so that plain SGD hardly moves the weight network. ``with paper_scale``
leaves its scale, and ``with cifar10`` or ``cifar100`` sets the paper's protocol.

Expected on the default, digits with 40 % flip noise: see docs/label_noise.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import metatoolkit as mt
from applications.label_noise import figures
from applications.label_noise.settings import NAMED, TUNED, UNTUNED, LabelNoiseSettings
from baselines.learn2learn_second_order import Learn2LearnSecondOrder
from metatoolkit import records
from metatoolkit.experiments.components import (
    build_classifier,
    build_estimator,
    build_inner,
    signal_window,
    tuned_as,
)
from metatoolkit.experiments.configuration import check_at_most
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded


def fill(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with what was left open filled in for the method.

    Args:
        config: The configuration, checked.
    """
    tuned = TUNED[tuned_as(config, TUNED)] if config["tuned"] else {}
    own = {**UNTUNED, **tuned}
    filled = {
        name: own[name] if value is None else value
        for name, value in config.items()
        if name in UNTUNED
    }
    evograd = dict(config["evograd"])
    if evograd["sigma"] is None:
        evograd["sigma"] = own["sigma"]
    return {**config, **filled, "evograd": evograd}


experiment = records.experiment("label_noise")
settings_of = configure(experiment, LabelNoiseSettings, NAMED, fill)


def assemble(config: dict[str, Any]) -> Assembly:
    """Put data, network, weight network, losses, inner learner and estimator together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer and its batches, not yet trained.
    """
    config = settings_of(config)
    dataset = mt.tasks.load_dataset(config["dataset"], root=config["data_root"])
    if config["resize"] is not None:
        dataset = mt.tasks.resize_dataset(dataset, config["resize"])
    task = mt.tasks.label_noise_task(
        dataset,
        **config["noise"],
        valid_per_class=config["meta_per_class"],
        tuning_per_class=config["tuning_per_class"],
        seed=config["seed"],
    )
    seed, device = config["seed"], config["device"]
    model = build_classifier(config["network"], task.dataset, seed)
    meta = mt.metaparameters.WeightNet(**config["weight_net"])
    weighted = config["method"] not in ("plain", "uniform_weights")
    problem = mt.BilevelProblem(
        model,
        meta,
        train_loss=mt.losses.weighted_cross_entropy if weighted else mt.losses.cross_entropy,
        valid_loss=mt.losses.cross_entropy,
    )
    boundaries = [round(fraction * config["steps"]) for fraction in config["milestones"]]
    lr = mt.inner.multistep(config["lr"], boundaries)
    own = {name: config[name] for name in ("momentum", "nesterov", "weight_decay")}
    inner = build_inner(config, lr) or mt.inner.SGD(lr=lr, **own)
    estimator: mt.hypergradients.Estimator | None = build_estimator(config)
    if config["method"] == "learn2learn":
        estimator = Learn2LearnSecondOrder()
    optimizer: torch.optim.Optimizer | None = None
    if estimator is not None:
        parameters, decay = meta.parameters(), config["meta_weight_decay"]
        if config["meta_optimizer"] == "adam":
            optimizer = torch.optim.Adam(parameters, lr=config["meta_lr"], weight_decay=decay)
        else:
            optimizer = torch.optim.SGD(
                parameters, lr=config["meta_lr"], momentum=0.9, nesterov=True, weight_decay=decay
            )
    window = signal_window(estimator)
    trainer = mt.MetaTrainer(
        problem, inner, estimator, optimizer, device=device, seed=seed, signal_window=window
    )
    transform = (
        task.dataset.transform(padding=4, flip=True)
        if config["augment"]
        else task.dataset.transform()
    )
    train = task.train
    if config["method"] == "uniform_weights":
        train = mt.tasks.Split(
            torch.cat([task.train.images, task.valid.images]),
            torch.cat([task.train.labels, task.valid.labels]),
        )
    check_at_most("batch_size", config["batch_size"], len(train.labels), "training examples")
    common = {"transform": transform, "device": device}
    batches = mt.tasks.Batches(*train, batch_size=config["batch_size"], seed=seed, **common)
    valid_size = min(config["meta_batch_size"], len(task.valid.labels))
    valid_batches = mt.tasks.Batches(*task.valid, batch_size=valid_size, seed=seed + 1, **common)
    return Assembly(trainer, batches, valid_batches, task)


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Train one method with one seed, and record curves, figure and costs.

    Returns:
        Test accuracy of the last step and the figures beside it; no mean weight of corrupted
        examples where there are none.
    """
    config = settings_of(dict(_config))
    _run.info["settings"] = {name: config[name] for name in UNTUNED if name in config}
    _run.info["settings"]["sigma"] = config["evograd"]["sigma"]
    assembly = assemble(dict(_config))
    task, trainer = assembly.task, assembly.trainer
    transform = task.dataset.transform()

    def evaluate(trained: mt.MetaTrainer) -> dict[str, float]:
        return {
            f"{name}_accuracy": mt.evaluation.accuracy(
                trained.problem.model, *split, transform=transform
            )
            for name, split in (("test", task.test), ("tuning", task.tuning))
            if len(split.labels) > 0
        }

    losses = torch.empty(0)

    def write_artifacts(folder: Path) -> list[Path]:
        nonlocal losses
        losses = figures.example_losses(trainer, task)
        return figures.write(trainer, losses, task.is_corrupted, folder, config["method"])

    last = fit_recorded(_run, assembly, evaluate=evaluate, write_artifacts=write_artifacts)
    weights = figures.learned_weights(trainer, losses)
    result = {name: last[name] for name in last if name.endswith(("accuracy", "distance"))}
    result["train_loss"] = last["train_loss"]
    for name, mask in (("clean", ~task.is_corrupted), ("corrupted", task.is_corrupted)):
        if mask.any():
            result[f"weight_{name}"] = float(weights[mask].mean())
    return result
