"""Checks of a run's configuration, and components from entries that applications have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from metatoolkit.components import Registry
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.hypergradients import Estimator, EvoGrad, Unrolled, estimators
from metatoolkit.inner import InnerLearner, learners
from metatoolkit.inner.hyperparameters import Hyperparameter


@dataclass(frozen=True)
class Rule:
    """What values an entry of a configuration may have; ``a | b`` accepts what either does.

    Attributes:
        words: What is accepted, as an error says it.
        accepts: Whether a value is accepted.
        names: Names that are accepted, where an error shall tell the nearest one.
    """

    words: str
    accepts: Callable[[Any], bool]
    names: Collection[str] = ()

    def __or__(self, other: Rule) -> Rule:
        """Return the rule that accepts what this one or the other one does."""
        return Rule(
            f"{self.words} or {other.words}",
            lambda value: self.accepts(value) or other.accepts(value),
            (*self.names, *other.names),
        )

    def check(self, entry: str, value: Any) -> None:
        """Raise unless a value is accepted.

        Args:
            entry: Name of the entry, for the error.
            value: Its value.

        Raises:
            UnknownNameError: It is another name than those accepted.
            ConfigurationError: It is anything else that is not accepted.
        """
        if self.accepts(value):
            return
        if self.names and isinstance(value, str):
            raise UnknownNameError(entry, value, self.names)
        raise ConfigurationError(f"{entry} is {value!r}; {self.words} is needed.")


Rules = Mapping[str, "Rule | Rules"]

NONE = Rule("None", lambda value: value is None)
FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str) and value != "")


def integer(least: int | None = None, most: int | None = None) -> Rule:
    """Return the rule of an integer.

    Args:
        least: Smallest value that is accepted; ``None`` for no bound.
        most: Largest one; ``None`` for no bound.
    """
    lower = "" if least is None else f" from {least}"
    upper = (" on" if lower else "") if most is None else f" to {most}"
    return Rule(
        f"an integer{lower}{upper}",
        lambda value: (
            isinstance(value, int)
            and not isinstance(value, bool)
            and (least is None or value >= least)
            and (most is None or value <= most)
        ),
    )


def number(
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Rule:
    """Return the rule of a finite number.

    Args:
        least: Smallest value that is accepted.
        most: Largest one.
        above: What the value must be above of.
        below: What the value must be below of.
    """
    bounds = {"of at least": least, "of at most": most, "above": above, "below": below}
    told = [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None]
    return Rule(
        " ".join(["a finite number", " and ".join(told)]).strip(),
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        ),
    )


def one_of(*names: str) -> Rule:
    """Return the rule of a name.

    Args:
        names: The names that are accepted.
    """
    known = tuple(names)
    words = f"one of {', '.join(map(repr, known))}"
    return Rule(words, lambda value: isinstance(value, str) and value in known, known)


def list_of(rule: Rule, least: int = 0, most: int | None = None) -> Rule:
    """Return the rule of a list.

    Args:
        rule: Rule of each of its elements.
        least: Smallest length.
        most: Largest length; ``None`` for no bound.
    """
    length = f" of at least {least}" if least else ""
    if most is not None:
        length = f" of {most}" if least == most else f" of {least} to {most}"
    return Rule(
        f"a list{length}, each {rule.words},",
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) >= least
            and (most is None or len(value) <= most)
            and all(rule.accepts(element) for element in value)
        ),
    )


def _can_be_used(device: Any) -> bool:
    try:
        kind = torch.device(device).type
        if kind == "cuda" and not torch.cuda.is_available():
            return False
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):
        return False
    return kind != "meta"


DEVICE = Rule(
    "'cpu', or 'cuda' where PyTorch finds a GPU,",
    lambda value: isinstance(value, str) and _can_be_used(value),
)
SEED = integer(0, 2**32 - 1)
COUNT = integer(1)
POSITIVE = number(above=0)
NOT_NEGATIVE = number(0)
MILESTONES = Rule(
    "a list of increasing numbers from 0 to 1",
    lambda value: list_of(number(0, 1)).accepts(value) and list(value) == sorted(value),
)


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

EVOGRAD_RULES: dict[str, Rule] = {
    "candidates": integer(2),
    "sigma": POSITIVE,
    "temperature": POSITIVE,
    "noise": one_of("sign", "gaussian"),
    "rescale": FLAG,
    "perturb": list_of(TEXT, 1) | NONE,
    "streamed": FLAG | NONE,
}
"""Rules of the options of :class:`metatoolkit.hypergradients.EvoGrad` in a configuration."""


def check_configuration(config: Mapping[str, Any], rules: Rules, prefix: str = "") -> None:
    """Raise unless every entry of a configuration has a value that its rule accepts.

    Args:
        config: The configuration; it may have more entries than there are rules.
        rules: Rules by entry; those of nested entries nested alike.
        prefix: What stands before the names of the entries, for the error.

    Raises:
        ConfigurationError: An entry is missing, or its value is not accepted; the message names
            it, what was given and what is accepted.
        UnknownNameError: A name is unknown.
    """
    for name, rule in rules.items():
        entry = f"{prefix}{name}"
        if name not in config:
            raise ConfigurationError(f"{entry} is missing in the configuration; give it.")
        value = config[name]
        if isinstance(rule, Rule):
            rule.check(entry, value)
        elif isinstance(value, Mapping):
            check_configuration(value, rule, f"{entry}.")
        else:
            raise ConfigurationError(
                f"{entry} is {value!r}; a mapping with the entries {', '.join(rule)} is needed."
            )


def check_at_most(entry: str, value: int, most: int, what: str) -> None:
    """Raise if an entry asks for more than there is.

    Args:
        entry: Name of the entry.
        value: Its value.
        most: What there is.
        what: Of what, in the plural.

    Raises:
        ConfigurationError: It does.
    """
    if value > most:
        raise ConfigurationError(f"{entry} is {value}, but there are {most} {what}; lower it.")


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
    if config["inner"]["name"] is not None:
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


def build_inner(
    config: Mapping[str, Any], lr: Hyperparameter, default: Callable[[], InnerLearner] | None = None
) -> InnerLearner:
    """Return the inner learner that ``inner.name`` names, or the application's own.

    Args:
        config: Configuration with the entries of :data:`COMPONENT_SETTINGS`.
        lr: Learning rate or its schedule, for a learner that is given none.
        default: Makes the application's own, where none is named.

    Raises:
        UnknownNameError: There is no such inner learner, or it has no such option.
        ConfigurationError: An option is missing or out of range.
    """
    chosen = dict(config["inner"])
    if chosen["name"] is None and default is not None:
        return default()
    if "lr" in learners.options(chosen["name"]):
        chosen = {"lr": lr, **chosen}
    return learners.build(**chosen)
