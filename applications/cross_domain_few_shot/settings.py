"""Configurations of the application on few-shot classification across domains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from metatoolkit.experiments.configuration import (
    Among,
    Count,
    CountOrZero,
    Field,
    Milestones,
    NotNegative,
    Positive,
    Settings,
    ShareBelowOne,
    Text,
    entry,
)
from metatoolkit.experiments.settings import EvoGradSettings, TrainingSettings
from metatoolkit.networks import BACKBONES
from metatoolkit.networks.metric_heads import METRIC_HEADS

METHODS = ("no_transform", "fixed_transform", "second_order", "evograd")


class Backbone(Settings):
    """Encoder; an option that is None keeps its own default."""

    name: Annotated[str, Among(BACKBONES)] = entry("conv4", "Encoder.")
    width: Count | None = entry(16, "Width; None for the encoder's own.")
    pools: Annotated[int, Field(ge=0, le=4)] | None = entry(None, "Blocks that halve the side.")
    stem: Literal["large", "small"] | None = entry(None, "First layer of a ResNet.")


class Head(Settings):
    """Metric head; an option that is None keeps its own default."""

    name: Annotated[str, Among(METRIC_HEADS)] = entry("prototypical", "Metric head.")
    running_statistics: bool | None = entry(
        None, "Whether tests use running statistics; None for the head's own."
    )
    context: bool | None = entry(None, "Whether a matching head embeds in context.")


class Transform(Settings):
    """Feature-wise transforms."""

    where: Annotated[list[Text], Field(min_length=1)] | None = entry(
        None, "Patterns of the layers that they follow; None for every BatchNorm of the encoder."
    )
    scale: float = entry(0.3, "Where λ of the scale starts.")
    shift: float = entry(0.5, "Where λ of the shift starts.")
    per: Literal["channel", "layer", "network"] = entry("channel", "What has a λ of its own.")


class FewShotEvoGradSettings(EvoGradSettings):
    """Options of EvoGrad; at σ = 1e-2 one candidate gets all the weight, the gradient vanishes."""

    guided: bool = entry(
        False, "Whether it is GuidedEvoGrad; σ is then the norm of what its candidates differ by."
    )


class Horizons(Settings):
    """What the outer loss says of the strength, after few inner steps and after many."""

    steps: list[Count] = entry([], "Numbers T of inner steps ahead; empty to ask for none.")
    at: Count = entry(100, "Inner steps after which they are asked; an evaluation has to be due.")
    inner_steps: Count = entry(20, "Inner steps spent on each T, T of them on a meta batch.")
    valid_episodes: CountOrZero = entry(
        0, "Episodes over which an evaluation takes the outer loss; 0 for none."
    )


class Auxiliary(Settings):
    """A classification loss beside that of the episodes."""

    domain: Text | None = entry(None, "Domain that is classified; None for no such loss.")
    weight: NotNegative = entry(1.0, "Weight of the loss.")
    batch_size: Count = entry(16, "Images of a step.")
    decay: NotNegative = entry(0.9, "Factor of the weight at each decay.")
    decays: CountOrZero = entry(20, "Decays over the training.")


class WarmUp(Settings):
    """Training of the encoder as a classifier before."""

    domain: Text | None = entry(None, "Domain that is classified.")
    steps: CountOrZero = entry(0, "Steps; 0 for no warm-up.")
    batch_size: Count = entry(16, "Images of a step.")
    lr: Positive = entry(1e-3, "Learning rate.")
    checkpoint: Text | None = entry(None, "File of the encoder's parameters in its place.")


class FewShotSettings(TrainingSettings):
    """Configuration of the application."""

    method: Literal["meta", "no_transform", "fixed_transform", "second_order", "evograd"] = entry(
        "evograd", "How the transforms are learned, if there are any."
    )
    domains: Annotated[list[Text], Field(min_length=3)] = entry(
        ["digits", "glyphs", "letters", "photos", "textures"], "Domains, `unseen` among them."
    )
    unseen: Text = entry("letters", "Domain that is not learned on, and tested on.")
    source: Literal["photos", "small"] = entry(
        "small", "Gray images that need no download, or folders of photographs."
    )
    data_root: Text | None = entry(None, "Folder of the data; None for METATOOLKIT_DATA.")
    image_size: Annotated[int, Field(ge=8)] = entry(20, "Side of the images.")
    augment: bool = entry(False, "Whether training images are augmented.")
    backbone: Backbone = entry(Backbone(), "Encoder.")
    head: Head = entry(Head(), "Metric head.")
    ways: Annotated[int, Field(ge=2)] = entry(5, "Classes of an episode.")
    shots: Count = entry(5, "Support images of a class.")
    queries: Count = entry(5, "Query images of a class.")
    period: Count = entry(1, "Episodes for which a pair of pseudo-seen and -unseen domain stays.")
    transform: Transform = entry(Transform(), "Feature-wise transforms.")
    optimizer: Literal["adam", "sgd"] = entry("adam", "Optimizer of the network.")
    lr: Positive = entry(1e-3, "Learning rate of the network.")
    milestones: Milestones = entry(
        [0.75], "Fractions of the training after which the rate falls to a tenth."
    )
    meta_lr: Positive = entry(1e-2, "Learning rate of the transforms.")
    meta_weight_decay: NotNegative = entry(0.0, "Their weight decay.")
    meta_optimizer: Literal["adam", "sgd"] = entry("adam", "Optimizer of the transforms.")
    meta_momentum: ShareBelowOne = entry(0.9, "Its momentum; for Adam, β₁.")
    accumulate: Count = entry(1, "Hypergradients whose mean moves the transforms.")
    keep_lookahead: bool = entry(
        False, "Whether the steps of the estimator train the network in the place of others."
    )
    reset_every: Count | None = entry(
        None, "Inner steps after which the network starts over; None for one training."
    )
    horizons: Horizons = entry(Horizons(), "What the outer loss says of the strength.")
    order: Literal["inner_first", "meta_first"] = entry("inner_first", "What a step does first.")
    evograd: FewShotEvoGradSettings = entry(FewShotEvoGradSettings(), "Options of EvoGrad.")
    auxiliary: Auxiliary = entry(Auxiliary(), "A classification loss beside the episodes'.")
    warm_up: WarmUp = entry(WarmUp(), "Training of the encoder before.")
    steps: Count = entry(400, "Steps of training.")
    test_queries: Count = entry(15, "Query images of a class in evaluations and tests.")
    # An interval takes two.
    test_episodes: Annotated[int, Field(ge=2)] = entry(1000, "Episodes of the test.")
    tuning_episodes: Annotated[int, Field(ge=2)] = entry(200, "Episodes of an evaluation.")
    evaluate_every: CountOrZero = entry(100, "Steps between evaluations; 0 for the last alone.")


DEFAULT = FewShotSettings.defaults()

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
    # The size at which strength matters, with few enough λ for evolution strategies.
    **{
        f"per_{part}": {
            "image_size": 28,
            "transform": {"per": part},
            "steps": 200,
            "evaluate_every": 100,
        }
        for part in ("layer", "network")
    },
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
