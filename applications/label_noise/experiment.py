"""Meta-Weight-Net under label noise (Shu et al. 2019; EvoGrad, Bohdal et al. 2021, section 4.3).

A weight network maps the loss of each training example to its weight; it is trained on a small
clean, class-balanced meta set. Methods: ``evograd``, ``second_order`` (the exact one-step
hypergradient), and without meta-learning ``plain``, ``uniform_weights`` (plain training on the
training and the meta set together) and ``frozen_weights`` (a weight network as it was drawn).

What differs from the public code, on purpose: the meta set shares no example with the training set
for any seed (there, all but a few meta images are also noisy training images for most seeds); the
noise differs by seed; the copies of EvoGrad share their random numbers; the reported accuracy is
that of the last step, never the best over evaluations on test data. EvoGrad's hypergradient is
scaled to the inner learning rate (``rescale``): at the paper's σ, τ and K it is that of a step of
1e-5, so that plain SGD hardly moves the weight network. ``with paper_scale`` leaves its scale, and
``with cifar10`` or ``cifar100`` sets the paper's protocol.

Expected on the default, digits with 40 % flip noise: see docs/label_noise.md.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import metatoolkit as mt
from applications.label_noise import figures
from applications.label_noise.settings import DEFAULT, METHODS, NAMED, TUNED
from baselines import frozen_weights, plain, uniform_weights
from baselines.learn2learn_second_order import Learn2LearnSecondOrder
from metatoolkit import records
from metatoolkit.errors import UnknownNameError
from metatoolkit.measure import peak_memory
from metatoolkit.records.home import data_home

experiment = records.experiment("label_noise")


experiment.add_config(DEFAULT)
for _name, _updates in NAMED.items():
    experiment.add_named_config(_name, _updates)


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with what was left open filled in for the method.

    Args:
        config: The run's configuration.

    Raises:
        UnknownNameError: There is no such method, or no such optimizer.
    """
    method = config["method"]
    if method not in (*METHODS, "learn2learn"):
        raise UnknownNameError("method", method, (*METHODS, "learn2learn"))
    if config["meta_optimizer"] not in ("adam", "sgd"):
        raise UnknownNameError("meta_optimizer", config["meta_optimizer"], ("adam", "sgd"))
    chosen = dict(config)
    tuned = TUNED["second_order" if method == "learn2learn" else method]
    for name, fallback in (("lr", 0.1), ("meta_lr", 1e-3)):
        if chosen[name] is None:
            chosen[name] = tuned.get(name, fallback) if config["tuned"] else fallback
    return chosen


def build_estimator(config: dict[str, Any]) -> mt.hypergradients.Estimator | None:
    """Return the estimator that the method names, or ``None`` for a baseline.

    Args:
        config: Settings as :func:`settings_of` returns them.
    """
    method = config["method"]
    if method == "evograd":
        options = dict(config["evograd"])
        options["rescale"] = config["lr"] if options["rescale"] else None
        return mt.hypergradients.EvoGrad(**options, seed=config["seed"])
    if method == "second_order":
        return mt.hypergradients.Unrolled(steps=1)
    if method == "learn2learn":
        return Learn2LearnSecondOrder()
    return None


def build_trainer(
    config: dict[str, Any], task: mt.tasks.NoisyClassification
) -> tuple[mt.MetaTrainer, mt.tasks.Batches, mt.tasks.Batches]:
    """Assemble the trainer and its batches.

    Args:
        config: Settings as :func:`settings_of` returns them.
        task: The noisy data.

    Returns:
        The trainer, its training batches and its meta batches.
    """
    seed, device = config["seed"], config["device"]
    options = {
        name: value
        for name, value in config["network"].items()
        if name != "name" and value is not None
    }
    torch.manual_seed(seed)
    model = mt.networks.build_network(
        config["network"]["name"], task.classes, task.input_shape, **options
    )
    meta = mt.metaparameters.WeightNet(**config["weight_net"])
    losses = {"plain": plain, "uniform_weights": uniform_weights, "frozen_weights": frozen_weights}
    problem = mt.BilevelProblem(
        model,
        meta,
        train_loss=losses.get(config["method"], mt.losses.weighted_cross_entropy),
        valid_loss=mt.losses.cross_entropy,
    )
    boundaries = [round(fraction * config["steps"]) for fraction in config["milestones"]]
    inner = mt.inner.SGD(
        lr=mt.inner.multistep(config["lr"], boundaries),
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
    )
    estimator = build_estimator(config)
    optimizer: torch.optim.Optimizer | None = None
    if estimator is not None:
        parameters, decay = meta.parameters(), config["meta_weight_decay"]
        if config["meta_optimizer"] == "adam":
            optimizer = torch.optim.Adam(parameters, lr=config["meta_lr"], weight_decay=decay)
        else:
            optimizer = torch.optim.SGD(
                parameters, lr=config["meta_lr"], momentum=0.9, nesterov=True, weight_decay=decay
            )
    trainer = mt.MetaTrainer(problem, inner, estimator, optimizer, device=device, seed=seed)
    transform = (
        task.dataset.transform(padding=4, flip=True)
        if config["augment"]
        else task.dataset.transform()
    )
    train = task.train
    if config["method"] == "uniform_weights":
        train = mt.tasks.Split(
            torch.cat([task.train.images, task.meta.images]),
            torch.cat([task.train.labels, task.meta.labels]),
        )
    common = {"transform": transform, "device": device}
    batches = mt.tasks.Batches(*train, batch_size=config["batch_size"], seed=seed, **common)
    meta_size = min(config["meta_batch_size"], len(task.meta.labels))
    meta_batches = mt.tasks.Batches(*task.meta, batch_size=meta_size, seed=seed + 1, **common)
    return trainer, batches, meta_batches


def checkpoint_path(config: dict[str, Any]) -> Path:
    """Return the file in which a run of this configuration is stored until it is done.

    Args:
        config: The run's configuration.
    """
    if config["checkpoint"] is not None:
        return Path(config["checkpoint"])
    passing = {"checkpoint", "resume", "progress", "checkpoint_every", "device"}
    lasting = {name: value for name, value in config.items() if name not in passing}
    digest = hashlib.sha256(json.dumps(lasting, sort_keys=True, default=str).encode()).hexdigest()
    return data_home() / "checkpoints" / f"label_noise-{digest[:16]}.pt"


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Train one method with one seed, and record curves, figure and costs.

    Returns:
        Test accuracy of the last step and the figures beside it.
    """
    config = settings_of(dict(_config))
    _run.info["settings"] = {"lr": config["lr"], "meta_lr": config["meta_lr"]}
    dataset = mt.tasks.load_dataset(config["dataset"], root=config["data_root"])
    task = mt.tasks.label_noise_task(
        dataset,
        **config["noise"],
        meta_per_class=config["meta_per_class"],
        tuning_per_class=config["tuning_per_class"],
        seed=config["seed"],
    )
    trainer, batches, meta_batches = build_trainer(config, task)
    problem, start = trainer.problem, {}
    for name, parameter in trainer.problem.meta_parameters().items():
        start[name] = parameter.detach().clone()

    def evaluate(trained: mt.MetaTrainer) -> dict[str, float]:
        moved = [(p.detach() - start[n]).norm() for n, p in problem.meta_parameters().items()]
        transform = dataset.transform()
        values = {
            f"{name}_accuracy": mt.evaluation.accuracy(
                trained.problem.model, *split, transform=transform
            )
            for name, split in (("test", task.test), ("tuning", task.tuning))
            if len(split.labels) > 0
        }
        return values | {"lambda_distance": float(torch.stack(moved).norm())}

    if trainer.estimator is not None:
        _run.info["peak_memory_bytes"] = measure_meta_step(trainer, task, config)
    path = checkpoint_path(dict(_config))
    previous = path.with_suffix(".run")
    if config["resume"] and previous.exists():
        records.mark_resumed(_run, previous.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = records.run_uuid(_run)
    if identity is not None:
        previous.write_text(identity)
    started = time.perf_counter()
    last = trainer.fit(
        batches,
        meta_batches,
        steps=config["steps"],
        log=_run.log_scalar,
        log_every=config["log_every"],
        evaluate=evaluate,
        evaluate_every=config["evaluate_every"],
        checkpoint=path,
        checkpoint_every=config["checkpoint_every"],
        resume=config["resume"],
        progress=config["progress"],
        description=f"label_noise {config['method']} seed {config['seed']}",
    )
    _run.info["seconds"] = time.perf_counter() - started
    _run.info["milliseconds_per_step"] = 1e3 * trainer.seconds / config["steps"]
    with tempfile.TemporaryDirectory() as folder:
        for file in figures.write(trainer, task, Path(folder), config["method"]):
            _run.add_artifact(str(file), name=file.name)
        _run.add_artifact(str(path), name="checkpoint.pt")
    weights = figures.learned_weights(trainer, task)
    path.unlink(missing_ok=True)
    previous.unlink(missing_ok=True)
    result = {name: last[name] for name in last if name.endswith(("accuracy", "distance"))}
    return result | {
        "train_loss": last["train_loss"],
        "weight_clean": float(weights[~task.is_corrupted].mean()),
        "weight_corrupted": float(weights[task.is_corrupted].mean()),
    }


def measure_meta_step(
    trainer: mt.MetaTrainer, task: mt.tasks.NoisyClassification, config: dict[str, Any]
) -> int:
    """Return the peak memory of one hypergradient, in bytes, without a trace in the training.

    Args:
        trainer: The trainer.
        task: The noisy data.
        config: Settings as :func:`settings_of` returns them.
    """
    estimator = trainer.estimator
    assert estimator is not None
    transform = task.dataset.transform()
    batch, meta_batch = (
        next(
            mt.tasks.Batches(
                *split,
                batch_size=min(size, len(split.labels)),
                transform=transform,
                device=config["device"],
            )
        )
        for split, size in (
            (task.train, config["batch_size"]),
            (task.meta, config["meta_batch_size"]),
        )
    )
    return peak_memory(
        lambda: estimator(trainer.problem, trainer.inner, trainer.state, [batch], meta_batch)
    )
