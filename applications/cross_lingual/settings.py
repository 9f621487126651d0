"""Configurations of the cross-lingual application."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from metatoolkit.experiments.configuration import (
    Count,
    CountOrZero,
    Field,
    NotNegative,
    Seed,
    Settings,
    Share,
    ShareBelowOne,
    Text,
    entry,
)
from metatoolkit.experiments.settings import TunedEvoGradSettings, TunedSettings

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


class Generated(Settings):
    """Generated languages."""

    seed: Seed = entry(0, "Seed of the languages.")
    cognates: Share = entry(0.2, "Share of words that they have in common.")
    shared_names: Share = entry(0.4, "Share of names that they have in common.")
    word_order: Share = entry(0.3, "How much their word order differs.")
    train: Count = entry(2000, "Training sentences of each.")
    dev: Count = entry(300, "Tuning sentences of each, to choose settings by.")
    test: Count = entry(600, "Test sentences of each.")


class Data(Settings):
    """Source and target language."""

    name: Literal[
        "auto", "masakhaner", "generated", "generated_reviews", "wikiann", "amazon_reviews", "conll"
    ] = entry(
        "auto", "Data set; auto is MasakhaNER where METATOOLKIT_DATA holds it, else generated."
    )
    root: Text | None = entry(
        None, "Data folder, that of CoNLL folders, or a copy of the hub's data set."
    )
    source: Text | None = entry(None, "Source language; None for the data set's usual one.")
    target: Text | None = entry(None, "Target language; None for the data set's usual one.")
    source_examples: Count = entry(2000, "Training examples of the source.")
    target_examples: Count = entry(100, "Training examples of the target.")
    sample_seed: Seed | None = entry(
        42, "Seed of the samples of both, by default the paper's; None for that of the run."
    )
    labels: Literal["equal", "union"] = entry("equal", "How labels of both go together.")
    max_length: Count = entry(48, "Tokens of an example at most.")
    vocabulary: Count = entry(3000, "Tokens of a tokenizer that is trained here.")
    generated: Generated = entry(Generated(), "Generated languages.")


class Encoder(Settings):
    """Encoder, of the hub or small and random."""

    pretrained: Text | None = entry(None, "Name on the hub; None for a small random encoder.")
    size: Count = entry(48, "Width of the small one.")
    layers: Count = entry(2, "Its layers.")
    heads: Count = entry(4, "Its attention heads.")
    feed_forward: Count = entry(96, "Width of its feed-forward layers.")
    embeddings: Count | None = entry(None, "Rows of its embedding; None for the tokenizer's.")
    dropout: ShareBelowOne = entry(0.1, "Its dropout.")
    attention_dropout: ShareBelowOne = entry(0.0, "Dropout of its attention.")


class Transform(Settings):
    """Representation transformation network."""

    layers: Annotated[list[int], Field(min_length=1)] = entry([-1], "Layers that it follows.")
    bottleneck: Count | None = entry(None, "Its width; None for its own default.")


class TransferEvoGradSettings(TunedEvoGradSettings):
    """Options of EvoGrad; the paper has two candidates; more that share the encoder cost little."""

    candidates: Annotated[int, Field(ge=2)] = entry(8, "Candidates for the parameters.")
    perturb: Annotated[list[Text], Field(min_length=1)] | None = entry(
        ["classifier.*"], "Patterns of the parameters that candidates differ in; None for all."
    )
    guided: bool = entry(
        False, "Whether it is GuidedEvoGrad; σ is then the norm of what its candidates differ by."
    )
    prefix: bool = entry(True, "Whether candidates for the head share the encoder's hidden states.")


class CrossLingualSettings(TunedSettings):
    """Configuration of the application."""

    method: Literal["meta", "target_only", "joint", "frozen", "second_order", "evograd"] = entry(
        "evograd", "How the transformation is learned, if there is any."
    )
    data: Data = entry(Data(), "Source and target language.")
    encoder: Encoder = entry(Encoder(), "Encoder.")
    head_dropout: ShareBelowOne = entry(0.1, "Dropout of the head.")
    transform: Transform = entry(Transform(), "Representation transformation network.")
    steps: Count = entry(300, "Steps of training.")
    batch_size: Count = entry(12, "Source examples of a step.")
    target_batch_size: Count = entry(
        24, "Target examples of a step; meta-learning trains on one half, validates on the other."
    )
    warmup: Share = entry(0.1, "Share of the steps in which the learning rates rise.")
    weight_decay: NotNegative = entry(0.0, "Weight decay of the classifier.")
    meta_weight_decay: NotNegative = entry(0.0, "Weight decay of the transformation.")
    evograd: TransferEvoGradSettings = entry(TransferEvoGradSettings(), "Options of EvoGrad.")
    evaluate_every: CountOrZero = entry(100, "Steps between evaluations; 0 for the last alone.")
    checkpoint_every: CountOrZero = entry(100, "Steps between checkpoints; 0 for the last alone.")


DEFAULT = CrossLingualSettings.defaults()

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
    # GuidedEvoGrad: two candidates for all parameters along the gradient of the validation loss,
    # instead of random ones for the head; nothing is then common to both.
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
