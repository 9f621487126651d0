"""Data hyper-cleaning (Franceschi et al. 2017, arXiv 1703.01785, section 5.1).

Half of the training labels are replaced by random ones. Each training example i has a
meta-parameter λ_i, and its loss the weight σ(λ_i); a small clean validation set tells which weights
serve. Methods differ in how the derivative of the validation loss in all weights is obtained:
``unrolled`` (through T steps from the initial values, with a tree of stored states), ``reversible``
(the same with momentum whose steps are taken back, Maclaurin et al. 2015), ``implicit`` (at the
optimum, by conjugate gradient), ``penalty`` (two first-order trainings). Any other estimator is
chosen by name. Then the network is trained once more from its initial values under the learned
weights, by the same steps of gradient descent for all methods; the controls are trained on all
examples alike (``plain``), on those whose labels are right (``clean_only``, which nobody can know)
and on the validation set (``valid_only``).

What differs from the paper, on purpose: weights are logistic functions (Shaban et al. 2019) and not
clipped, which needs no projection, nor a bound on their sum; the last training keeps the weights
and does not see the validation set. An example is called corrupted whose weight is below
``threshold``, by default the weight that all start from.

Expected on the default, digits of which 45 % have a wrong label: see docs/data_reweighting.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from applications.data_reweighting import figures
from applications.data_reweighting.settings import (
    CONTROLS,
    ESTIMATORS,
    NAMED,
    RHYTHMS,
    DataReweightingSettings,
)
from metatoolkit import records
from metatoolkit.experiments.components import (
    build_classifier,
    build_estimator,
    build_inner,
    signal_window,
)
from metatoolkit.experiments.configuration import check_at_most
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded
from metatoolkit.metaparameters import ExampleWeights
from metatoolkit.stateless.passes import Loss


def fill(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with what was left open filled in for the method.

    Args:
        config: The configuration, checked.
    """
    own = RHYTHMS.get(config["method"], {"restart": False})
    return {**config, **{n: value for n, value in own.items() if config[n] is None}}


experiment = records.experiment("data_reweighting")
settings_of = configure(experiment, DataReweightingSettings, NAMED, fill)


def decayed(loss: Loss, strength: float) -> Loss:
    """Return a training loss with the penalty s/2 ‖θ‖² added.

    Args:
        loss: The loss ``(model, meta, batch) -> scalar tensor``.
        strength: s.
    """

    def penalized(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
        squares = torch.stack([p.square().sum() for p in model.parameters()])
        return loss(model, meta, batch) + strength / 2 * squares.sum()

    return penalized


def batches_of(config: dict[str, Any], *tensors: Tensor) -> mt.tasks.Batches:
    """Return the training batches.

    Args:
        config: A configuration of this experiment.
        tensors: Images, labels and, where these are weighted, places.

    Raises:
        ConfigurationError: A batch shall have more examples than there are.
    """
    size, count = config["batch_size"], len(tensors[0])
    if size is not None:
        check_at_most("batch_size", size, count, "training examples")
    options = {"seed": config["seed"], "device": config["device"]}
    return mt.tasks.Batches(*tensors, batch_size=size or count, **options)


def assemble(config: dict[str, Any]) -> Assembly:
    """Put data, network, weights, losses, inner learner and estimator together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer of the weights and its batches, not yet trained, and the task; for a control,
        the trainer of the network on what it is to be trained on.

    Raises:
        ConfigurationError: An entry is out of range.
        UnknownNameError: A name is unknown, for instance that of the method.
    """
    config = settings_of(config)
    dataset = mt.tasks.load_dataset(config["dataset"], root=config["data_root"])
    task = mt.tasks.label_noise_task(
        dataset,
        **config["noise"],
        valid_per_class=config["valid_per_class"],
        tuning_per_class=config["tuning_per_class"],
        seed=config["seed"],
    )
    split = {
        "clean_only": mt.tasks.Split(*(part[~task.is_corrupted] for part in task.train)),
        "valid_only": task.valid,
    }.get(config["method"], task.train)
    meta = ExampleWeights(len(split.labels))
    if config["method"] in CONTROLS:
        return Assembly(final_trainer(config, task, meta), batches_of(config, *split), task=task)
    chosen = config
    if config["method"] in ESTIMATORS:
        named = {**ESTIMATORS[config["method"]], "steps": config["horizon"]}
        chosen = {**config, "method": "meta", "estimator": named}
    estimator = build_estimator(chosen)
    assert estimator is not None
    own = mt.inner.ReversibleMomentum if config["method"] == "reversible" else mt.inner.SGD
    problem = mt.BilevelProblem(
        build_classifier(config["network"], dataset, config["seed"]),
        meta,
        train_loss=decayed(mt.losses.reweighted_cross_entropy, config["decay"]),
        valid_loss=mt.losses.cross_entropy,
    )
    trainer = mt.MetaTrainer(
        problem,
        build_inner(config, config["lr"]) or own(lr=config["lr"]),
        estimator,
        torch.optim.Adam(meta.parameters(), lr=config["meta_lr"]),
        device=config["device"],
        seed=config["seed"],
        keep_lookahead=config["method"] in ESTIMATORS,
        reset_every=estimator.horizon if config["restart"] else None,
        signal_window=signal_window(estimator),
    )
    places = torch.arange(len(split.labels))
    valid = mt.tasks.Batches(
        *task.valid, batch_size=len(task.valid.labels), device=config["device"]
    )
    return Assembly(trainer, batches_of(config, *split, places), valid, task)


def final_trainer(
    config: dict[str, Any], task: mt.tasks.NoisyClassification, meta: ExampleWeights
) -> mt.MetaTrainer:
    """Return what trains the network from its initial values by gradient descent.

    Args:
        config: A configuration of this experiment, settled.
        task: The noisy data.
        meta: Weights of the examples, which stay; not read by the controls.
    """
    losses = mt.losses
    weighted = config["method"] not in CONTROLS
    loss = losses.reweighted_cross_entropy if weighted else losses.cross_entropy
    problem = mt.BilevelProblem(
        build_classifier(config["network"], task.dataset, config["seed"]),
        meta,
        train_loss=decayed(loss, config["decay"]),
        valid_loss=losses.cross_entropy,
    )
    inner = mt.inner.SGD(lr=config["lr"])
    return mt.MetaTrainer(problem, inner, device=config["device"], seed=config["seed"])


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Learn the weights, train under them, and record both.

    Returns:
        Test and tuning accuracy of the network that was trained under the weights, and how well
        weights below the threshold tell wrong labels.
    """
    config = settings_of(dict(_config))
    assembly = assemble(dict(_config))
    task, trainer, batches = assembly.task, assembly.trainer, assembly.train_batches
    meta = trainer.problem.meta
    assert isinstance(meta, ExampleWeights)

    def detection(trained: mt.MetaTrainer) -> dict[str, float]:
        return figures.detection(meta.values().cpu(), task.is_corrupted, config["threshold"])

    def write_artifacts(folder: Path) -> list[Path]:
        return figures.write(meta.values().cpu(), task.is_corrupted, folder, config["method"])

    result: dict[str, float] = {}
    if trainer.estimator is not None:
        last = fit_recorded(_run, assembly, evaluate=detection, write_artifacts=write_artifacts)
        _run.info["weights"] = figures.histograms(meta.values().cpu(), task.is_corrupted)
        result = {**detection(trainer), "lambda_distance": last["lambda_distance"]}
        trainer = final_trainer(config, task, meta)
    trainer.fit(batches, steps=config["final_steps"], progress=False)
    for name, split in (("test", task.test), ("tuning", task.tuning)):
        if len(split.labels) > 0:
            result[f"{name}_accuracy"] = mt.evaluation.accuracy(trainer.problem.model, *split)
    return result
