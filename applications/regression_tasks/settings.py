"""Configurations of the application on few-shot regression."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from metatoolkit.experiments.configuration import Among, Count, CountOrZero, Positive, entry
from metatoolkit.experiments.task_learning import TaskLearningSettings
from metatoolkit.tasks.function_tasks import FAMILIES, INPUTS

DIGITS = "digit_pixels"
"""The family of scikit-learn's digits, as functions of the place in the image."""


STANDARDIZED = tuple(INPUTS)
"""Families of A-MAML, whose errors are in units of the family's deviation."""


class RegressionSettings(TaskLearningSettings):
    """Configuration of the application."""

    family: Annotated[str, Among((*FAMILIES, DIGITS))] = entry(
        "sinusoid", "Family of functions, or digit_pixels for images of digits."
    )
    shots: Count = entry(5, "Points to adapt to.")
    queries: Count = entry(10, "Points that an adapted model is asked.")
    width: Count = entry(40, "Width of the two hidden layers.")
    activation: Literal["relu", "gelu", "softplus", "tanh"] = entry("relu", "Their activation.")
    steps: Count = entry(1000, "Meta steps.")
    tasks: Count = entry(25, "Tasks of a meta step.")
    lr: Positive = entry(0.01, "Inner learning rate; the first value where rates are learned.")
    meta_lr: Positive = entry(3e-3, "Learning rate of the optimizer across tasks.")
    evaluate_every: CountOrZero = entry(100, "Steps between evaluations; 0 for the last alone.")


DEFAULT = RegressionSettings.defaults()

# The functions, network and horizon of A-MAML (Li et al. 2023). Half a squared error and a rate of
# 0.01, as published, are these steps.
_MANY_STEPS: dict[str, Any] = {
    "shots": 100,
    "queries": 100,
    "width": 32,
    "activation": "tanh",
    "inner_steps": 200,
    "lr": 0.005,
    "tasks": 5,
    "steps": 200,
    "algorithm": "a-maml",
    "valid_tasks": 50,
    "test_tasks": 100,
    "evaluate_every": 50,
}

NAMED: dict[str, dict[str, Any]] = {
    # Five steps of 0.01 hardly move a network whose targets lie between 0 and 1.
    "digits": {"family": DIGITS, "shots": 20, "queries": 44, "lr": 0.3},
    "alpine": {**_MANY_STEPS, "family": "alpine"},
    "cosine_mixture": {**_MANY_STEPS, "family": "cosine_mixture"},
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "width": 8,
        "steps": 4,
        "tasks": 3,
        "inner_steps": 2,
        "valid_tasks": 3,
        "test_tasks": 5,
        "log_every": 2,
        "evaluate_every": 2,
        "checkpoint_every": 2,
    },
}
