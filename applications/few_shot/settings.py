"""Configurations of the application on few-shot classification."""

from __future__ import annotations

from typing import Annotated, Any

from metatoolkit.experiments.configuration import Count, CountOrZero, Field, Positive, Text, entry
from metatoolkit.experiments.task_learning import TaskLearningSettings


class FewShotTaskSettings(TaskLearningSettings):
    """Configuration of the application."""

    dataset: Text = entry(
        "glyphs",
        "Domain such as omniglot or glyphs, `learn2learn:NAME`, federated_digits, or a folder of "
        "images.",
    )
    data_root: Text | None = entry(None, "Folder of the data; None for METATOOLKIT_DATA.")
    image_size: Annotated[int, Field(ge=16)] = entry(16, "Side that images are resized to.")
    ways: Annotated[int, Field(ge=2)] = entry(5, "Classes of a task.")
    shots: Count = entry(1, "Images of each class to adapt to.")
    queries: Count = entry(5, "Images of each class that an adapted model is asked.")
    augment: CountOrZero = entry(0, "Pixels by which support images are shifted at most.")
    width: Count = entry(16, "Channels of the four convolutions.")
    steps: Count = entry(200, "Meta steps.")
    tasks: Count = entry(8, "Tasks of a meta step.")
    lr: Positive = entry(0.1, "Inner learning rate; the first value where rates are learned.")
    meta_lr: Positive = entry(3e-3, "Learning rate of the optimizer across tasks.")
    rates_lr: Positive = entry(1e-3, "The same for inner learning rates that are learned.")
    evaluate_every: CountOrZero = entry(50, "Steps between evaluations; 0 for the last alone.")


DEFAULT = FewShotTaskSettings.defaults()

FEDERATED = "federated_digits"
"""The data set whose tasks are users, with labels that all share."""

NAMED: dict[str, dict[str, Any]] = {
    # Users who have three of the ten digits each, ten of them in each of 50 rounds. The whole step
    # of Reptile is federated averaging.
    "federated": {
        "dataset": FEDERATED,
        "ways": 3,
        "shots": 5,
        "queries": 10,
        "width": 32,
        "steps": 50,
        "tasks": 10,
        "algorithm": "aruba",
        "meta_optimizer": "sgd",
        "meta_lr": 1.0,
        "evaluate_every": 10,
        "valid_tasks": 50,
        "test_tasks": 400,
        "batching": "vmap",
    },
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "dataset": "digits",
        "ways": 3,
        "queries": 2,
        "width": 4,
        "steps": 4,
        "tasks": 2,
        "inner_steps": 2,
        "valid_tasks": 3,
        "test_tasks": 5,
        "log_every": 2,
        "evaluate_every": 2,
        "checkpoint_every": 2,
    },
}
