"""Components that a configuration chooses: by its method, or by their registered names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Estimator, EvoGrad, GuidedEvoGrad, Unrolled, estimators
from metatoolkit.inner import InnerLearner, learners
from metatoolkit.inner.hyperparameters import Hyperparameter
from metatoolkit.networks import build_network
from metatoolkit.tasks import Classification

META_METHODS = ("second_order", "evograd", "meta")
"""Methods that learn meta-parameters."""

COMPONENT_SETTINGS: dict[str, Any] = {"estimator": {"name": None}, "inner": {"name": None}}
"""Entries that choose components by name, each with the options of the component beside it."""


def tuned_as(config: Mapping[str, Any], tuned: Iterable[str]) -> str:
    """Return under which name the settings were tuned that a configuration takes.

    That is its method or, where an estimator is chosen by name, the estimator. An estimator that
    was not tuned takes what was tuned for the exact one-step hypergradient.

    Args:
        config: Configuration with ``method`` and ``estimator``.
        tuned: What was tuned.
    """
    method = config["method"]
    if method not in ("meta", "learn2learn"):
        return str(method)
    name = config["estimator"]["name"]
    return name if name in tuned else "second_order"


def build_estimator(config: Mapping[str, Any], **options: Any) -> Estimator | None:
    """Return the estimator of a configuration, or ``None`` where its method has none.

    Args:
        config: Configuration with ``method``, ``seed`` and the entries of
            :data:`COMPONENT_SETTINGS`; for ``"evograd"`` with the options of
            :class:`metatoolkit.hypergradients.EvoGrad` in ``evograd``, where ``rescale`` says
            whether to rescale to the inner learning rate ``lr``, and ``guided``, where there is
            such an entry, whether it is :class:`metatoolkit.hypergradients.GuidedEvoGrad`.
            ``"second_order"`` is the exact one-step hypergradient, and ``"meta"`` the estimator
            that ``estimator`` names; a random one gets the seed of the run, and one that can be
            rescaled the inner learning rate, unless they are given.
        **options: Options of EvoGrad in the place of those of the configuration.

    Raises:
        UnknownNameError: There is no such estimator, or it has no such option.
        ConfigurationError: An option is missing or out of range.
    """
    if config["method"] == "meta":
        chosen = dict(config["estimator"])
        usual = {"seed": config["seed"], "rescale": config.get("lr")}
        takes = estimators.options(chosen["name"])
        return estimators.build(**{n: v for n, v in usual.items() if n in takes} | chosen)
    if config["method"] == "evograd":
        own = {**config["evograd"], **options}
        own["rescale"] = config["lr"] if own["rescale"] else None
        if own.pop("guided", False):
            return _guided(own)
        return EvoGrad(**own, seed=config["seed"])
    return Unrolled(steps=1) if config["method"] == "second_order" else None


def _guided(options: dict[str, Any]) -> GuidedEvoGrad:
    """Return GuidedEvoGrad by entries for EvoGrad, of which those of random candidates are left."""
    for name, only in (("candidates", 2), ("noise", "sign")):
        if options[name] != only:
            raise ConfigurationError(
                f"evograd.{name} is {options[name]!r}, but with evograd.guided=True there are two "
                f"candidates along the gradient of the outer loss; set evograd.{name}={only}."
            )
    own = estimators.options("GuidedEvoGrad")
    return GuidedEvoGrad(**{name: value for name, value in options.items() if name in own})


def signal_window(estimator: Estimator | None) -> int | None:
    """Return how many moves of λ a recorded signal-to-noise ratio of hypergradients looks at.

    Args:
        estimator: The estimator; ``None`` where λ does not move.
    """
    return None if estimator is None else 100


def build_inner(config: Mapping[str, Any], lr: Hyperparameter) -> InnerLearner | None:
    """Return the inner learner that ``inner.name`` names, or ``None`` where it names none.

    Args:
        config: Configuration with the entries of :data:`COMPONENT_SETTINGS`.
        lr: Learning rate or its schedule, for a learner that is given none.

    Raises:
        UnknownNameError: There is no such inner learner, or it has no such option.
        ConfigurationError: An option is missing or out of range.
    """
    chosen = dict(config["inner"])
    if chosen["name"] is None:
        return None
    if "lr" in learners.options(chosen["name"]):
        chosen = {"lr": lr, **chosen}
    return learners.build(**chosen)


def build_classifier(
    chosen: Mapping[str, Any], dataset: Classification, seed: int | None = None
) -> nn.Module:
    """Return the network of a configuration for the images of a data set, freshly initialized.

    Args:
        chosen: Entries of :class:`metatoolkit.experiments.settings.ClassifierSettings`.
        dataset: The data set.
        seed: Seed of the initial values, which the global random state is set to; ``None`` draws
            them from that as it is.

    Raises:
        UnknownNameError: There is no such network, or it has no such option.
        ConfigurationError: An option is out of range.
        ShapeError: The network does not take images of this shape.
    """
    options = {name: value for name, value in chosen.items() if value is not None}
    if seed is not None:
        torch.manual_seed(seed)
    return build_network(options.pop("name"), dataset.classes, dataset.input_shape, **options)
