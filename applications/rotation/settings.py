"""Configurations of the rotation application."""

from __future__ import annotations

from typing import Any

from metatoolkit.experiments.components import COMPONENT_RULES, COMPONENT_SETTINGS
from metatoolkit.experiments.configuration import (
    COUNT,
    EVOGRAD_RULES,
    FLAG,
    NONE,
    POSITIVE,
    TEXT,
    Rules,
    integer,
    number,
    one_of,
)
from metatoolkit.experiments.run import RUN_RULES, RUN_SETTINGS
from metatoolkit.networks import NETWORKS

METHODS = ("baseline", "second_order", "evograd")

DEFAULT: dict[str, Any] = {
    "method": "evograd",
    "dataset": "digits",
    "data_root": None,
    # The digits fill the middle 14 × 14 of 20 × 20 pixels, in the proportion of MNIST, so that a
    # rotation by 30° cuts nothing off. None keeps the images.
    "resize": {"side": 14, "padding": 3},
    "degrees": 30.0,
    "interpolation": "bilinear",
    "valid_examples": 240,
    "tuning_examples": 240,
    "shuffle_split": True,
    "network": {"name": "lenet"},
    "steps": 300,
    "batch_size": 64,
    "valid_batch_size": 64,
    "lr": 1e-3,
    "meta_lr": 1e-2,
    # Two copies, as published, need more steps than these: see docs/rotation.md.
    "evograd": {
        "candidates": 4,
        "sigma": 1e-3,
        "temperature": 0.05,
        "noise": "sign",
        "rescale": True,
        "perturb": None,
        "streamed": None,
    },
    # Steps between evaluations of accuracy; the angle is recorded at every `evaluate_every`.
    "accuracy_every": 100,
    **COMPONENT_SETTINGS,
    **RUN_SETTINGS,
    "evaluate_every": 10,
}

RULES: Rules = {
    "method": one_of("meta", *METHODS),
    "dataset": TEXT,
    "data_root": TEXT | NONE,
    "resize": {"side": COUNT | NONE, "padding": integer(0)},
    "degrees": number(),
    "interpolation": one_of("bilinear", "nearest"),
    "valid_examples": COUNT,
    "tuning_examples": integer(0),
    "shuffle_split": FLAG,
    "network": {"name": one_of(*NETWORKS)},
    "batch_size": COUNT,
    "valid_batch_size": COUNT,
    "lr": POSITIVE,
    "meta_lr": POSITIVE,
    "evograd": EVOGRAD_RULES,
    "accuracy_every": COUNT,
    **COMPONENT_RULES,
    **RUN_RULES,
}

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
