"""Components that a configuration chooses: by its method, or by their registered names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metatoolkit.components import Registry
from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments.configuration import Rule, Rules, check_configuration
from metatoolkit.hypergradients import Estimator, EvoGrad, Unrolled, estimators
from metatoolkit.inner import InnerLearner, learners
from metatoolkit.inner.hyperparameters import Hyperparameter


def component(registry: Registry[Any]) -> Rule:
    """Return the rule of a name that a registry knows, or ``None``.

    Args:
        registry: The registry.
    """
    return Rule(
        f"None or the name of a registered {registry.kind}",
        lambda value: value is None or (isinstance(value, str) and value in registry),
        registry,
    )


META_METHODS = ("second_order", "evograd", "meta")
"""Methods that learn meta-parameters."""

COMPONENT_SETTINGS: dict[str, Any] = {"estimator": {"name": None}, "inner": {"name": None}}
"""Entries that choose components by name, each with the options of the component beside it."""

COMPONENT_RULES: Rules = {
    "estimator": {"name": component(estimators)},
    "inner": {"name": component(learners)},
}
"""Rules of these entries; the components check their options."""


def settle(config: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """Check a configuration, and say in its method whether the estimator is chosen by name.

    The estimator that ``estimator.name`` names takes the place of the method's own, and the method
    is then ``"meta"``.

    Args:
        config: Configuration with ``method`` and the entries of :data:`COMPONENT_SETTINGS`.
        rules: As in :func:`check_configuration`.

    Returns:
        The configuration with its method.

    Raises:
        ConfigurationError: As in :func:`check_configuration`; or the method takes no estimator,
            or is ``"meta"`` without one; or options are given to a component that is not named.
        UnknownNameError: A name is unknown.
    """
    check_configuration(config, rules)
    for part in COMPONENT_SETTINGS:
        given = {name: value for name, value in config[part].items() if name != "name"}
        if config[part]["name"] is None and given:
            raise ConfigurationError(
                f"{part}.{next(iter(given))} is given, but {part}.name is not; give both."
            )
    # Made once to see that its options are right, before anything is loaded.
    build_inner(config, 1.0)
    method, chosen = config["method"], config["estimator"]["name"]
    if chosen is None:
        if method == "meta":
            raise ConfigurationError(
                f"method is 'meta', but estimator.name is None; name one: {', '.join(estimators)}."
            )
        return dict(config)
    if method not in META_METHODS:
        raise ConfigurationError(
            f"method is {method!r}, which takes no estimator, but estimator.name is {chosen!r}; "
            "leave one of them out."
        )
    settled = {**config, "method": "meta"}
    build_estimator(settled)
    return settled


def tuned_as(method: str) -> str:
    """Return the method whose tuned settings one takes that was not tuned itself.

    Args:
        method: Name of the method.
    """
    return "second_order" if method in ("meta", "learn2learn") else method


def build_estimator(config: Mapping[str, Any], **options: Any) -> Estimator | None:
    """Return the estimator of a configuration, or ``None`` where its method has none.

    Args:
        config: Configuration with ``method``, ``seed`` and the entries of
            :data:`COMPONENT_SETTINGS`; for ``"evograd"`` with the options of
            :class:`metatoolkit.hypergradients.EvoGrad` in ``evograd``, where ``rescale`` says
            whether to rescale to the inner learning rate ``lr``. ``"second_order"`` is the exact
            one-step hypergradient, and ``"meta"`` the estimator that ``estimator`` names; a random
            one gets the seed of the run unless it is given another.
        **options: Options of EvoGrad in the place of those of the configuration.

    Raises:
        UnknownNameError: There is no such estimator, or it has no such option.
        ConfigurationError: An option is missing or out of range.
    """
    if config["method"] == "meta":
        chosen = dict(config["estimator"])
        if "seed" in estimators.options(chosen["name"]):
            chosen = {"seed": config["seed"], **chosen}
        return estimators.build(**chosen)
    if config["method"] == "evograd":
        own = {**config["evograd"], **options}
        own["rescale"] = config["lr"] if own["rescale"] else None
        return EvoGrad(**own, seed=config["seed"])
    return Unrolled(steps=1) if config["method"] == "second_order" else None


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
