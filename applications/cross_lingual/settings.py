"""Configurations of the cross-lingual application."""

from __future__ import annotations

from typing import Any

from metatoolkit.experiments.components import COMPONENT_RULES, COMPONENT_SETTINGS
from metatoolkit.experiments.configuration import (
    COUNT,
    EVOGRAD_RULES,
    FLAG,
    NONE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    TEXT,
    Rules,
    integer,
    list_of,
    number,
    one_of,
)
from metatoolkit.experiments.run import RUN_RULES, RUN_SETTINGS

METHODS = ("target_only", "joint", "frozen", "second_order", "evograd")

# Chosen by tuning.py, see docs/cross_lingual.md; other real text takes those of MasakhaNER.
TUNED: dict[str, dict[str, dict[str, float]]] = {
    "masakhaner": {
        "target_only": {"lr": 6.7e-4},
        "joint": {"lr": 6.7e-4},
        "frozen": {"lr": 2.8e-3},
        "second_order": {"lr": 8.9e-4, "meta_lr": 3.1e-3},
        "evograd": {"lr": 8.9e-4, "meta_lr": 3.1e-3, "sigma": 0.0063},
        "guided": {"lr": 8.9e-4, "meta_lr": 3.1e-3, "sigma": 0.063},
    },
    "generated": {
        "target_only": {"lr": 8.9e-4},
        "joint": {"lr": 2.8e-3},
        "frozen": {"lr": 2.8e-3},
        "second_order": {"lr": 2.1e-3, "meta_lr": 4.6e-3},
        "evograd": {"lr": 2.1e-3, "meta_lr": 4.6e-3, "sigma": 0.0012},
        "guided": {"lr": 2.1e-3, "meta_lr": 4.6e-3, "sigma": 0.012},
    },
}

# Source and target that a data set is read with where the configuration leaves them open.
LANGUAGES = {
    "masakhaner": ("pcm", "swa"),
    "generated": ("generated-0", "generated-1"),
    "generated_reviews": ("generated-0", "generated-1"),
    "wikiann": ("en", "qu"),
    "amazon_reviews": ("en", "ja"),
    "conll": (None, None),
}

DEFAULT: dict[str, Any] = {
    "method": "evograd",
    "data": {
        # MasakhaNER where METATOOLKIT_DATA holds it, else generated languages.
        "name": "auto",
        # The data folder, that of CoNLL folders, or a copy of the hub's data set.
        "root": None,
        "source": None,
        "target": None,
        "source_examples": 2000,
        "target_examples": 100,
        # Seed of the samples of both languages, the paper's; None for that of the run.
        "sample_seed": 42,
        "labels": "equal",
        "max_length": 48,
        "vocabulary": 3000,
        "generated": {
            "seed": 0,
            "cognates": 0.2,
            "shared_names": 0.4,
            "word_order": 0.3,
            "train": 2000,
            "dev": 300,
            "test": 600,
        },
    },
    "encoder": {
        # A name on the hub, or None for a small encoder with random weights.
        "pretrained": None,
        "size": 48,
        "layers": 2,
        "heads": 4,
        "feed_forward": 96,
        # Rows of the embedding; None for as many as the tokenizer has tokens.
        "embeddings": None,
        "dropout": 0.1,
        "attention_dropout": 0.0,
    },
    "head_dropout": 0.1,
    "transform": {"layers": [-1], "bottleneck": None},
    "steps": 300,
    # Of the target sentences of a step meta-learning trains on one half and validates on the other.
    "batch_size": 12,
    "target_batch_size": 24,
    "warmup": 0.1,
    "weight_decay": 0.0,
    "tuned": True,
    "lr": None,
    "meta_lr": None,
    "meta_weight_decay": 0.0,
    "evograd": {
        # The paper has 2; where copies share the hidden states, more cost little.
        "candidates": 8,
        "sigma": None,
        "temperature": 0.05,
        "noise": "sign",
        "rescale": True,
        "perturb": ["classifier.*"],
        "streamed": None,
        "guided": False,
        # Whether the copies of the head share the encoder's hidden states.
        "prefix": True,
    },
    **COMPONENT_SETTINGS,
    **RUN_SETTINGS,
    "evaluate_every": 100,
    "checkpoint_every": 100,
}

_SHARE = number(0, 1)
_DROPOUT = number(0, below=1)

RULES: Rules = {
    "method": one_of("meta", *METHODS),
    "data": {
        "name": one_of("auto", *LANGUAGES),
        "root": TEXT | NONE,
        "source": TEXT | NONE,
        "target": TEXT | NONE,
        "source_examples": COUNT,
        "target_examples": COUNT,
        "sample_seed": SEED | NONE,
        "labels": one_of("equal", "union"),
        "max_length": COUNT,
        "vocabulary": COUNT,
        "generated": {
            "seed": SEED,
            "cognates": _SHARE,
            "shared_names": _SHARE,
            "word_order": _SHARE,
            "train": COUNT,
            "dev": COUNT,
            "test": COUNT,
        },
    },
    "encoder": {
        "pretrained": TEXT | NONE,
        "size": COUNT,
        "layers": COUNT,
        "heads": COUNT,
        "feed_forward": COUNT,
        "embeddings": COUNT | NONE,
        "dropout": _DROPOUT,
        "attention_dropout": _DROPOUT,
    },
    "head_dropout": _DROPOUT,
    "transform": {"layers": list_of(integer(), 1), "bottleneck": COUNT | NONE},
    "batch_size": COUNT,
    "target_batch_size": COUNT,
    "warmup": _SHARE,
    "weight_decay": NOT_NEGATIVE,
    "tuned": FLAG,
    "lr": POSITIVE | NONE,
    "meta_lr": POSITIVE | NONE,
    "meta_weight_decay": NOT_NEGATIVE,
    "evograd": {**EVOGRAD_RULES, "sigma": POSITIVE | NONE, "guided": FLAG, "prefix": FLAG},
    **COMPONENT_RULES,
    **RUN_RULES,
}

UNTUNED = {"lr": 1e-3, "meta_lr": 1e-3, "sigma": 1e-3}

_PAPER: dict[str, Any] = {
    "target_batch_size": 12,
    "tuned": False,
    "lr": 3e-5,
    "meta_lr": 1e-6,
    "weight_decay": 5e-4,
    "meta_weight_decay": 5e-4,
    "evograd": {"candidates": 2, "sigma": 1e-3, "rescale": False},
    "transform": {"bottleneck": 384},
    "evaluate_every": 417,
    "checkpoint_every": 417,
}

NAMED: dict[str, dict[str, Any]] = {
    # The paper's protocol: XLM-R base on WikiAnn, 5,000 English and 100 target sentences.
    "xlmr": {
        **_PAPER,
        "data": {
            "name": "wikiann",
            "source_examples": 5000,
            "max_length": 200,
        },
        "encoder": {"pretrained": "xlm-roberta-base"},
        # 20 epochs of 417 batches.
        "steps": 20 * 417,
    },
    # Two copies of all parameters along the gradient of the validation loss, instead of copies of
    # the head at random; nothing is then common to the copies.
    "guided": {
        "method": "evograd",
        "evograd": {
            "candidates": 2,
            "guided": True,
            "perturb": None,
            "prefix": False,
        },
    },
    # An encoder of the size of XLM-R base with random weights, to measure memory and time.
    "xlmr_sized": {
        **_PAPER,
        "encoder": {
            "size": 768,
            "layers": 12,
            "heads": 12,
            "feed_forward": 3072,
            "embeddings": 250002,
            "attention_dropout": 0.1,
        },
        "steps": 10,
        "evaluate_every": 0,
        "checkpoint_every": 0,
    },
    # Sentiment of generated reviews instead of named entities.
    "sentiment": {"data": {"name": "generated_reviews", "source_examples": 1000}},
    # Sentiment of product reviews with XLM-R base.
    "amazon": {
        **_PAPER,
        "data": {"name": "amazon_reviews", "source_examples": 1000, "max_length": 200},
        "encoder": {"pretrained": "xlm-roberta-base"},
        "steps": 20 * 83,
    },
    # Seconds instead of minutes, for tests; its numbers mean nothing.
    "smoke": {
        "data": {
            "name": "generated",
            "source_examples": 40,
            "target_examples": 20,
            "vocabulary": 400,
            "max_length": 64,
            "generated": {"train": 60, "dev": 12, "test": 12},
        },
        "encoder": {"size": 16, "layers": 2, "heads": 2, "feed_forward": 16},
        "steps": 12,
        "batch_size": 4,
        "target_batch_size": 4,
        "evaluate_every": 6,
        "checkpoint_every": 4,
        "log_every": 4,
    },
}
