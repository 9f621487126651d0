"""Dataset distillation (Wang et al. 2018, arXiv 1811.10959; Maclaurin et al. 2015, section 3.3).

The training images themselves are the meta-parameters: one or a few of each class, on which a
network is trained by T steps of gradient descent from random initial values, for a small loss on
real images afterwards. Each move of the images is for a network that is drawn anew. Methods:
``unrolled`` (through all steps), ``reversible`` (the same with momentum whose steps are taken
back), any other estimator by name; and in the place of learned images ``real``, as many of the data
set, drawn at random, and ``means``, those of the classes or, with several images of a class, of
parts of these. Fresh networks, which no image was learned for, are then trained on the images
alone, and tested.

What differs from the papers, on purpose: the inner learning rate is fixed, and the same at all
steps; the images of all steps are the same; the steps of the test are those of the learning.

Expected on the default, scikit-learn's digits: see docs/dataset_distillation.md.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from applications.dataset_distillation import figures
from applications.dataset_distillation.settings import (
    CONTROLS,
    ESTIMATORS,
    NAMED,
    DistillationSettings,
)
from metatoolkit import records
from metatoolkit.errors import DataError
from metatoolkit.experiments.components import (
    build_classifier,
    build_estimator,
    build_inner,
    signal_window,
)
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded
from metatoolkit.metaparameters import SyntheticExamples
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks import Split

experiment = records.experiment("dataset_distillation")
settings_of = configure(experiment, DistillationSettings, NAMED)


def on_synthetic(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the cross-entropy of the synthetic images.

    Args:
        model: Maps images to logits of shape (batch, classes).
        meta: The images and their labels.
        batch: Not used.
    """
    return mt.losses.cross_entropy(model, meta, meta())


def first_images(config: dict[str, Any], real: Split, classes: int) -> Split:
    """Return the images that learning starts from, or that are taken in their place.

    Args:
        config: A configuration of this experiment.
        real: The real training images.
        classes: Number of classes.

    Raises:
        DataError: A class has fewer images than are asked for.
    """
    count, seed = config["per_class"], fold_in(config["seed"], Stream.SYNTHETIC_EXAMPLES)
    labels = torch.arange(classes).repeat_interleave(count)
    if config["method"] == "real":
        _, places = mt.tasks.set_aside(real.labels, count, classes, seed)
        return Split(real.images[places], real.labels[places])
    if config["method"] == "means":
        parts = []
        for label in range(classes):
            own = real.images[real.labels == label]
            if len(own) < count:
                raise DataError(
                    f"class {label} has {len(own)} images, but per_class is {count}; lower it."
                )
            parts += [part.mean(dim=0) for part in own.tensor_split(count)]
        return Split(torch.stack(parts), labels)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), *real.images.shape[1:])
    return Split(0.1 * torch.randn(shape, generator=generator), labels)


def assemble(config: dict[str, Any]) -> Assembly:
    """Put real images, synthetic ones, network, losses, inner learner and estimator together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer of the images and its batches, not yet trained, and the data set as its task;
        for a control a trainer without an estimator.

    Raises:
        ConfigurationError: An entry is out of range.
        UnknownNameError: A name is unknown, for instance that of the method.
        DataError: A class has too few images.
    """
    config = settings_of(config)
    seed, device = config["seed"], config["device"]
    dataset = mt.tasks.load_dataset(config["dataset"], root=config["data_root"])
    rest, held = mt.tasks.set_aside(
        dataset.train_labels, config["tuning_per_class"], dataset.classes, seed
    )
    transform = dataset.transform()
    real, tuning, test = (
        Split(transform(split.images), split.labels)
        for split in (
            *(Split(*(part[p] for part in dataset.train)) for p in (rest, held)),
            dataset.test,
        )
    )
    meta = SyntheticExamples(*first_images(config, real, dataset.classes))
    problem = mt.BilevelProblem(
        build_classifier(config["network"], dataset, seed),
        meta,
        train_loss=on_synthetic,
        valid_loss=mt.losses.cross_entropy,
    )
    own = mt.inner.ReversibleMomentum if config["method"] == "reversible" else mt.inner.SGD
    inner = build_inner(config, config["lr"]) or own(lr=config["lr"])
    build = functools.partial(build_classifier, config["network"], dataset)
    task = {"build": build, "tuning": tuning, "test": test}
    if config["method"] in CONTROLS:
        trainer = mt.MetaTrainer(problem, inner, device=device, seed=seed)
        return Assembly(trainer, [None], task=task)
    chosen = config
    if config["method"] in ESTIMATORS:
        named = {**ESTIMATORS[config["method"]], "steps": config["horizon"]}
        chosen = {**config, "method": "meta", "estimator": named}
    estimator = build_estimator(chosen)
    assert estimator is not None
    trainer = mt.MetaTrainer(
        problem,
        inner,
        estimator,
        torch.optim.Adam(meta.parameters(), lr=config["meta_lr"]),
        device=device,
        seed=seed,
        keep_lookahead=config["method"] in ESTIMATORS,
        reset_every=config["horizon"],
        redraw=build if config["random_starts"] else None,
        signal_window=signal_window(estimator),
    )
    size = min(config["meta_batch_size"], len(real.labels))
    batches = mt.tasks.Batches(*real, batch_size=size, seed=seed, device=device)
    return Assembly(trainer, [None] * estimator.horizon, batches, task)


def accuracies(config: dict[str, Any], assembly: Assembly) -> dict[str, float]:
    """Return the mean accuracies of fresh networks that are trained on the present images.

    Args:
        config: A configuration of this experiment.
        assembly: What :func:`assemble` returned, trained or not.

    Returns:
        ``test_accuracy`` and, where there are tuning images, ``tuning_accuracy``.
    """
    trainer, task = assembly.trainer, assembly.task
    splits = {name: task[name] for name in ("test", "tuning") if len(task[name].labels)}
    found: dict[str, list[float]] = {name: [] for name in splits}
    for number in range(config["test_networks"]):
        key = fold_in(config["seed"], Stream.FRESH_NETWORKS, number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            model = task["build"]()
        problem = mt.BilevelProblem(
            model, trainer.problem.meta, on_synthetic, mt.losses.cross_entropy
        )
        fresh = mt.MetaTrainer(problem, trainer.inner, device=config["device"])
        steps = config["test_steps"] or config["horizon"]
        fresh.fit([None], steps=steps, progress=False)
        for name, split in splits.items():
            found[name].append(mt.evaluation.accuracy(model, *split))
    return {f"{name}_accuracy": sum(one) / len(one) for name, one in found.items()}


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Learn the images, train fresh networks on them, and record both.

    Returns:
        Mean test and tuning accuracy of the fresh networks.
    """
    config = settings_of(dict(_config))
    assembly = assemble(dict(_config))
    trainer = assembly.trainer
    meta = trainer.problem.meta
    assert isinstance(meta, SyntheticExamples)
    result: dict[str, float] = {}
    if trainer.estimator is not None:

        def evaluate(trained: mt.MetaTrainer) -> dict[str, float]:
            return {n: v for n, v in accuracies(config, assembly).items() if n != "test_accuracy"}

        def write_artifacts(folder: Path) -> list[Path]:
            return [figures.write(meta.inputs, config["per_class"], folder / "images.png")]

        last = fit_recorded(_run, assembly, evaluate=evaluate, write_artifacts=write_artifacts)
        result["lambda_distance"] = last["lambda_distance"]
    if meta.inputs.shape[1] == 1 and len(meta.inputs) <= 100:
        _run.info["images"] = meta.inputs.detach().squeeze(1).cpu().tolist()
    return {**result, **accuracies(config, assembly)}
