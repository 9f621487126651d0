"""Checks with names: what must hold of a component, and what is told where it does not."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from metatoolkit.errors import (
    ConfigurationError,
    ConformanceError,
    ReplayError,
    UnknownNameError,
    UnsupportedError,
    brief,
)
from metatoolkit.testing.expectations import Inapplicable, Unmet, told

T = TypeVar("T")
Make = Callable[[], T]
"""Makes a component anew, so that no check sees what another left."""
F = TypeVar("F", bound=Callable[..., None])


@dataclasses.dataclass(frozen=True)
class Check(Generic[T]):
    """One thing that must hold, in one setting.

    Attributes:
        name: What must hold, in words joined by underscores, then the values of its arguments.
        function: Raises where it does not; called with what makes the component.
        arguments: Its other arguments, for instance the name of a problem.
    """

    name: str
    function: Callable[..., None]
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    def __call__(self, make: Make[T]) -> str:
        """Run the check.

        Args:
            make: Makes the component.

        Returns:
            Why the check does not apply, or an empty text where it holds.

        Raises:
            ConformanceError: It does not hold, or the component raises another error than the one
                by which it refuses a combination, :class:`~metatoolkit.errors.UnsupportedError`.
        """
        try:
            self.function(make, **self.arguments)
        except Unmet as unmet:
            raise ConformanceError(self.name, unmet.expected, unmet.got) from unmet.__cause__
        except Inapplicable as reason:
            return str(reason)
        except UnsupportedError as error:
            if not isinstance(error, ReplayError):
                return f"unsupported: {brief(error)}"
            raise ConformanceError(self.name, "no error", told(error)) from error
        except Exception as error:
            raise ConformanceError(self.name, "no error", told(error)) from error
        return ""


@dataclasses.dataclass(frozen=True)
class ConformanceReport:
    """The checks that a component passed, and those that do not apply to it.

    Attributes:
        passed: Names of the checks that hold.
        skipped: Why each other check does not apply.
    """

    passed: Sequence[str]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{name}: {reason}" for name, reason in self.skipped.items()]
        applied = f"{len(self.passed)} checks hold, {len(lines)} do not apply"
        return "\n  ".join([applied, *lines])


class Suite(Generic[T]):
    """All checks of one kind of component, in the order that they are defined in.

    Args:
        kind: The kind, as it appears in messages.
        base: Class that all of the kind derive from.
    """

    def __init__(self, kind: str, base: type[Any]) -> None:
        self.kind = kind
        self.base = base
        self.checks: list[Check[T]] = []

    def __add__(self, other: Suite[T]) -> Suite[T]:
        both: Suite[T] = Suite(self.kind, self.base)
        both.checks = self.checks + other.checks
        return both

    def check(self, **settings: Iterable[Any]) -> Callable[[F], F]:
        """Return a decorator that makes a function one check for each setting.

        Args:
            **settings: Values of each argument beside ``make``; each combination is a check.
        """

        def add(function: F) -> F:
            for values in itertools.product(*settings.values()):
                name = "-".join([function.__name__, *map(_text, values)])
                arguments = dict(zip(settings, values, strict=True))
                self.checks.append(Check(name, function, arguments))
            return function

        return add

    def given(self, **values: Any) -> Suite[T]:
        """Return the suite with further arguments, for the checks that take them.

        Args:
            **values: The arguments.
        """
        filled: Suite[T] = Suite(self.kind, self.base)
        for check in self.checks:
            taken = inspect.signature(check.function).parameters
            own = {name: value for name, value in values.items() if name in taken}
            arguments = {**check.arguments, **own}
            filled.checks.append(dataclasses.replace(check, arguments=arguments))
        return filled

    def run(self, component: T | Make[T], checks: Sequence[str] | None = None) -> ConformanceReport:
        """Run checks, and stop at the first that does not hold.

        Args:
            component: The component, of which each check gets a copy, or what makes one.
            checks: Patterns of the names to run, as in :func:`re.search`; by default all.

        Returns:
            Which checks hold, and why others do not apply.

        Raises:
            ConformanceError: A check does not hold, or none applies.
            ConfigurationError: The component is none of its kind.
            UnknownNameError: A pattern matches no check.
        """
        make = self.maker(component)
        passed: list[str] = []
        skipped: dict[str, str] = {}
        for check in self.chosen(checks):
            reason = check(make)
            if reason:
                skipped[check.name] = reason
            else:
                passed.append(check.name)
        if not passed:
            why = "; ".join(dict.fromkeys(skipped.values()))
            raise ConformanceError("applies", f"a problem that the {self.kind} takes", why)
        return ConformanceReport(passed, skipped)

    def maker(self, component: T | Make[T]) -> Make[T]:
        """Return what makes a component anew.

        Args:
            component: The component, of which copies are made, or what makes it.

        Raises:
            ConfigurationError: It is neither.
        """
        if isinstance(component, self.base):
            return lambda: copy.deepcopy(component)
        try:
            made = component() if callable(component) else component
        except TypeError as error:
            raise ConfigurationError(
                f"the {self.kind} is {component!r}, which needs arguments ({brief(error)}); give "
                f"an instance of {self.base.__name__}, or a function without arguments that makes "
                "one."
            ) from error
        if not callable(component) or not isinstance(made, self.base):
            raise ConfigurationError(
                f"the {self.kind} is {made!r}; accepted: an instance of {self.base.__name__}, or a "
                "function without arguments that makes one."
            )
        return component

    def chosen(self, checks: Sequence[str] | None) -> list[Check[T]]:
        """Return the checks whose names match a pattern.

        Args:
            checks: The patterns; ``None`` for all checks.

        Raises:
            ConfigurationError: The patterns are one text.
            UnknownNameError: A pattern matches no check.
        """
        if checks is None:
            return self.checks
        if isinstance(checks, str):
            raise ConfigurationError(f"checks is the text {checks!r}; give a list of patterns.")
        for pattern in checks:
            if not any(re.search(pattern, check.name) for check in self.checks):
                known = dict.fromkeys(check.function.__name__ for check in self.checks)
                raise UnknownNameError(f"{self.kind} check", pattern, known)
        return [c for c in self.checks if any(re.search(pattern, c.name) for pattern in checks)]


def _text(value: Any) -> str:
    return str(value).removeprefix("torch.")
