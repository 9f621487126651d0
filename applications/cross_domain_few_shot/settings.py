"""Configurations of the application on few-shot classification across domains."""

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
from metatoolkit.networks import BACKBONES
from metatoolkit.networks.metric_heads import METRIC_HEADS

METHODS = ("no_transform", "fixed_transform", "second_order", "evograd")

DEFAULT: dict[str, Any] = {
    "method": "evograd",
    # Learned on all domains but the unseen one, whose test classes are reported.
    "domains": ["digits", "glyphs", "letters", "photos", "textures"],
    "unseen": "letters",
    # "small": gray images that need no download; "photos": folders of photographs.
    "source": "small",
    "data_root": None,
    "image_size": 20,
    "augment": False,
    # An option that is None keeps what the network has by default.
    "backbone": {"name": "conv4", "width": 16, "pools": None, "stem": None},
    "head": {"name": "prototypical", "running_statistics": None, "context": None},
    "ways": 5,
    "shots": 5,
    "queries": 5,
    # Episodes for which a pair of pseudo-seen and pseudo-unseen domain stays.
    "period": 1,
    # Placement None follows every BatchNorm of the encoder.
    "transform": {"where": None, "scale": 0.3, "shift": 0.5},
    "optimizer": "adam",
    "lr": 1e-3,
    # Fractions of the training after which the learning rate falls to a tenth.
    "milestones": [0.75],
    "meta_lr": 1e-2,
    "meta_weight_decay": 0.0,
    "order": "inner_first",
    "evograd": {
        "candidates": 2,
        # At ten times as much, one copy gets all the weight, and the gradient through it vanishes.
        "sigma": 1e-3,
        "temperature": 0.05,
        "noise": "sign",
        "rescale": True,
        "perturb": None,
        "streamed": None,
        # Two copies along the outer gradient; σ is then the norm of their perturbation.
        "guided": False,
    },
    # Weight of a classification loss beside that of the episodes, and its decay over the training.
    "auxiliary": {"domain": None, "weight": 1.0, "batch_size": 16, "decay": 0.9, "decays": 20},
    # Training of the encoder as a classifier before: steps, or a file of its parameters.
    "warm_up": {"domain": None, "steps": 0, "batch_size": 16, "lr": 1e-3, "checkpoint": None},
    "steps": 400,
    "test_queries": 15,
    "test_episodes": 1000,
    "tuning_episodes": 200,
    **COMPONENT_SETTINGS,
    **RUN_SETTINGS,
    "evaluate_every": 100,
}

RULES: Rules = {
    "method": one_of("meta", *METHODS),
    "domains": list_of(TEXT, 3),
    "unseen": TEXT,
    "source": one_of("photos", "small"),
    "data_root": TEXT | NONE,
    "image_size": integer(8),
    "augment": FLAG,
    "backbone": {
        "name": one_of(*BACKBONES),
        "width": COUNT | NONE,
        "pools": integer(0, 4) | NONE,
        "stem": one_of("large", "small") | NONE,
    },
    "head": {
        "name": one_of(*METRIC_HEADS),
        "running_statistics": FLAG | NONE,
        "context": FLAG | NONE,
    },
    "ways": integer(2),
    "shots": COUNT,
    "queries": COUNT,
    "period": COUNT,
    "transform": {"where": list_of(TEXT, 1) | NONE, "scale": number(), "shift": number()},
    "optimizer": one_of("adam", "sgd"),
    "lr": POSITIVE,
    "milestones": MILESTONES,
    "meta_lr": POSITIVE,
    "meta_weight_decay": NOT_NEGATIVE,
    "order": one_of("inner_first", "meta_first"),
    "evograd": {**EVOGRAD_RULES, "guided": FLAG},
    "auxiliary": {
        "domain": TEXT | NONE,
        "weight": NOT_NEGATIVE,
        "batch_size": COUNT,
        "decay": NOT_NEGATIVE,
        "decays": integer(0),
    },
    "warm_up": {
        "domain": TEXT | NONE,
        "steps": integer(0),
        "batch_size": COUNT,
        "lr": POSITIVE,
        "checkpoint": TEXT | NONE,
    },
    "test_queries": COUNT,
    # An interval takes two.
    "test_episodes": integer(2),
    "tuning_episodes": integer(2),
    **COMPONENT_RULES,
    **RUN_RULES,
}

_PAPER: dict[str, Any] = {
    "source": "photos",
    "domains": ["miniimagenet", "cub", "cars", "places", "plantae"],
    "unseen": "cub",
    "image_size": 224,
    "augment": True,
    "backbone": {"name": "resnet10", "width": 64, "pools": None, "stem": "large"},
    "head": {"name": "relation"},
    "queries": 16,
    "period": 100,
    "transform": {"where": ["*.bn2", "*.shortcut_bn"]},
    "lr": 1e-3,
    "milestones": [],
    "meta_lr": 1e-3,
    "meta_weight_decay": 1e-8,
    "evograd": {"rescale": False},
    "auxiliary": {"domain": "miniimagenet"},
    # 400 epochs of 38,400 images in batches of 16.
    "warm_up": {"domain": "miniimagenet", "steps": 400 * 2400},
    "steps": 400 * 100,
    "log_every": 100,
    "evaluate_every": 4000,
    "checkpoint_every": 1000,
}

NAMED: dict[str, dict[str, Any]] = {
    # The paper's protocol on photographs; `with resnet10 one_shot unseen=cars` and so on.
    **{
        f"resnet{depth}": {**_PAPER, "backbone": {**_PAPER["backbone"], "name": f"resnet{depth}"}}
        for depth in (10, 18, 34)
    },
    "one_shot": {"shots": 1},
    # Drawn characters of Omniglot in place of invented ones.
    "omniglot": {"domains": ["digits", "letters", "omniglot", "photos", "textures"]},
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "domains": ["digits", "letters", "textures"],
        "image_size": 12,
        "backbone": {"width": 4, "pools": 1},
        "shots": 1,
        "queries": 2,
        "test_queries": 2,
        "test_episodes": 5,
        "tuning_episodes": 3,
        "steps": 6,
        "log_every": 2,
        "evaluate_every": 3,
        "checkpoint_every": 2,
    },
}
