"""Configurations of the label noise application, and the settings that were tuned."""

from __future__ import annotations

from typing import Any

from metatoolkit.experiments.components import COMPONENT_RULES, COMPONENT_SETTINGS
from metatoolkit.experiments.configuration import (
    COUNT,
    EVOGRAD_RULES,
    FLAG,
    MILESTONES,
    NONE,
    NOT_NEGATIVE,
    POSITIVE,
    TEXT,
    Rules,
    integer,
    list_of,
    number,
    one_of,
)
from metatoolkit.experiments.run import RUN_RULES, RUN_SETTINGS
from metatoolkit.networks import NETWORKS

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
}

# What is taken where nothing was tuned.
UNTUNED: dict[str, Any] = {
    "lr": 0.1,
    "meta_lr": 1e-3,
    "momentum": 0.9,
    "nesterov": True,
    "sigma": 1e-3,
}

# A network's option that is None keeps the network's own default. What UNTUNED names and is None
# here is what was tuned for the method.
DEFAULT: dict[str, Any] = {
    "method": "evograd",
    "dataset": "digits",
    "data_root": None,
    "resize": None,
    "noise": {"kind": "flip", "probability": 0.4},
    "meta_per_class": 10,
    "tuning_per_class": 10,
    "network": {"name": "mlp", "hidden": None, "width": None, "depth": None, "dropout": None},
    "weight_net": {"hidden": 100, "layers": 1},
    "steps": 1500,
    "batch_size": 100,
    "meta_batch_size": 100,
    "augment": False,
    "tuned": True,
    "lr": None,
    "momentum": None,
    "nesterov": None,
    "weight_decay": 5e-4,
    "milestones": [0.67, 0.83],
    "meta_optimizer": "adam",
    "meta_lr": None,
    "meta_weight_decay": 0.0,
    "evograd": {
        "candidates": 2,
        "sigma": None,
        "temperature": 0.05,
        "noise": "sign",
        "rescale": True,
        "perturb": None,
        "streamed": None,
    },
    **COMPONENT_SETTINGS,
    **RUN_SETTINGS,
}

RULES: Rules = {
    "method": one_of("meta", *METHODS, "learn2learn"),
    "dataset": TEXT,
    "data_root": TEXT | NONE,
    "resize": COUNT | NONE,
    "noise": {"kind": one_of("uniform", "flip", "flip2"), "probability": number(0, 1)},
    "meta_per_class": COUNT,
    "tuning_per_class": integer(0),
    "network": {
        "name": one_of(*NETWORKS),
        "hidden": list_of(COUNT) | NONE,
        "width": COUNT | NONE,
        "depth": COUNT | NONE,
        "dropout": number(0, below=1) | NONE,
    },
    "weight_net": {"hidden": COUNT | list_of(COUNT, 1), "layers": COUNT},
    "batch_size": COUNT,
    "meta_batch_size": COUNT,
    "augment": FLAG,
    "tuned": FLAG,
    "lr": POSITIVE | NONE,
    "momentum": number(0, below=1) | NONE,
    "nesterov": FLAG | NONE,
    "weight_decay": NOT_NEGATIVE,
    "milestones": MILESTONES,
    "meta_optimizer": one_of("adam", "sgd"),
    "meta_lr": POSITIVE | NONE,
    "meta_weight_decay": NOT_NEGATIVE,
    "evograd": {**EVOGRAD_RULES, "sigma": POSITIVE | NONE},
    **COMPONENT_RULES,
    **RUN_RULES,
}

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
