"""Few-shot regression (MAML, Finn et al. 2017, arXiv 1703.03400, section 5.1).

A perceptron of two hidden layers takes a few gradient steps on some points of a sinusoid, and is
asked others of the same one. What it starts from is learned across sinusoids. ``algorithm`` is any
of ``metatoolkit.algorithms``, or ``scratch``, which learns each from random initial values;
``library=learn2learn`` takes learn2learn's meta-gradients instead.

``family=digit_pixels`` has real data: a task is one of scikit-learn's handwritten digits of 8 × 8
pixels, of which some are known and the others asked (Garnelo et al. 2018, arXiv 1807.01613, section
4.2); the digits that are tested are others than those that are learned from.

``with alpine`` and ``with cosine_mixture`` have the functions of two inputs, the network and the
200 inner steps of A-MAML (Li et al. 2023, arXiv 2110.08432), which goes through these by the
adjoint of a gradient flow. Errors are then root mean squared ones in units of the family's
deviation, and told on the query and on the support set.

Expected on the default: see docs/few_shot.md; on the latter: docs/meta_regression.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from applications.regression_tasks.settings import (
    DIGITS,
    NAMED,
    STANDARDIZED,
    RegressionSettings,
)
from baselines.learn2learn_algorithms import Learn2LearnAlgorithm
from metatoolkit import records
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly
from metatoolkit.experiments.task_learning import (
    HELD_OUT_SEED,
    assemble_across_tasks,
    join_torchrun,
    run_across_tasks,
)
from metatoolkit.randomness import Stream, fold_in

experiment = records.experiment("regression_tasks")
settings_of = configure(experiment, RegressionSettings, NAMED)

# Training tasks have the seed of the run.
_SEEDS = {
    "valid": fold_in(HELD_OUT_SEED, Stream.VALID_TASKS),
    "test": fold_in(HELD_OUT_SEED, Stream.TEST_TASKS),
}


def build_tasks(config: dict[str, Any], split: str) -> mt.tasks.TaskSource:
    """Return the tasks of a split.

    Args:
        config: A configuration of this experiment.
        split: ``"train"``, whose tasks the seed draws, ``"valid"`` or ``"test"``.
    """
    sizes = {name: config[name] for name in ("shots", "queries", "tasks")}
    seed = _SEEDS.get(split, config["seed"])
    if config["family"] != DIGITS:
        standardize = config["family"] in STANDARDIZED
        return mt.tasks.FunctionTasks(config["family"], **sizes, seed=seed, standardize=standardize)
    domain = mt.tasks.default_domains(["digits"], size=8)["digits"]
    return mt.tasks.PixelTasks(domain, split, **sizes, seed=seed)


def assemble(config: dict[str, Any]) -> Assembly:
    """Put functions, network and algorithm together.

    Args:
        config: A configuration of this experiment.

    Returns:
        The trainer and its batches of tasks, not yet trained; its task is a function that returns
        the tasks of a split.

    Raises:
        ConfigurationError: An entry is out of range.
        UnknownNameError: A name is unknown, for instance that of the family.
        DataError: An image has fewer pixels than shots and queries.
    """
    config = settings_of(config)
    join_torchrun()
    train = build_tasks(config, "train")
    (inputs, targets), _ = train.task(0)
    torch.manual_seed(config["seed"])
    hidden = (config["width"],) * 2
    model = mt.networks.MLP(inputs.shape[1], hidden, targets.shape[1], config["activation"])
    loss = mt.losses.squared_error
    assembly = assemble_across_tasks(config, model, loss, train, Learn2LearnAlgorithm)
    return dataclasses.replace(assembly, task=lambda split: build_tasks(config, split))


def root_squared_error(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the root of the mean squared error, a scalar.

    Args:
        model: Maps inputs to outputs of the shape of the targets.
        meta: Not used.
        batch: Inputs and targets.
    """
    return mt.losses.squared_error(model, meta, batch).sqrt()


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Train one algorithm with one seed, test it on other tasks, and record both.

    Returns:
        Mean squared error on test tasks, or the root where targets are standardized, its 95 %
        interval over tasks, and the last metrics of the training.
    """
    assembly = assemble(dict(_config))
    if _config["family"] in STANDARDIZED:
        scored = root_squared_error, "nrmse"
        return run_across_tasks(_run, assembly, assembly.task, *scored, of_support=True)
    return run_across_tasks(_run, assembly, assembly.task, mt.losses.squared_error, "error")
