"""Few-shot regression (MAML, Finn et al. 2017, arXiv 1703.03400, section 5.1).

A perceptron of two hidden layers takes a few gradient steps on some points of a sinusoid, and is
asked others of the same one. What it starts from is learned across sinusoids. ``algorithm`` is any
of ``metatoolkit.algorithms``, or ``scratch``, which learns each from random initial values;
``library=learn2learn`` takes learn2learn's meta-gradients instead.

Expected on the default: see docs/few_shot.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from applications.regression_tasks.settings import NAMED, RegressionSettings
from baselines.learn2learn_algorithms import Learn2LearnAlgorithm
from metatoolkit import records
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly
from metatoolkit.experiments.task_learning import (
    HELD_OUT_SEED,
    assemble_across_tasks,
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


def squared_error(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
    """Return the mean squared error, a scalar.

    Args:
        model: Maps inputs of shape (examples, 1) to outputs of the same shape.
        meta: Not used.
        batch: Inputs and targets.
    """
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


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
    """
    config = settings_of(config)

    def tasks_of(split: str) -> mt.tasks.FunctionTasks:
        sizes = {name: config[name] for name in ("shots", "queries", "tasks")}
        seed = _SEEDS.get(split, config["seed"])
        return mt.tasks.FunctionTasks(config["family"], **sizes, seed=seed)

    torch.manual_seed(config["seed"])
    model = mt.networks.MLP(inputs=1, hidden=(config["width"],) * 2, classes=1)
    train = tasks_of("train")
    assembly = assemble_across_tasks(config, model, squared_error, train, Learn2LearnAlgorithm)
    return Assembly(assembly.trainer, train, task=tasks_of)


@experiment.main
def main(_run: Any, _config: dict[str, Any]) -> dict[str, float]:
    """Train one algorithm with one seed, test it on other functions, and record both.

    Returns:
        Mean squared error on test tasks, its 95 % interval over tasks, and the last metrics of the
        training.
    """
    assembly = assemble(dict(_config))
    return run_across_tasks(_run, assembly, assembly.task, squared_error, "error")
