"""Checks of a run's configuration, and components from entries that applications have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from metatoolkit.errors import ConfigurationError, UnknownNameError


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
