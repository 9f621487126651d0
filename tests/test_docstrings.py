"""What overrides a method says so, and does not say again what that says."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator

import applications
import baselines
import metatoolkit

OWN = (metatoolkit, applications, baselines)
SECTIONS = re.compile(r"^(Args|Returns|Yields|Raises|Attributes|Example):$", re.MULTILINE)


def classes() -> Iterator[type]:
    for package in OWN:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                for value in list(vars(importlib.import_module(found.name)).values()):
                    if inspect.isclass(value) and value.__module__ == found.name:
                        yield value


def function_of(attribute: object) -> Callable | None:
    attribute = getattr(attribute, "__func__", attribute)
    attribute = attribute.fget if isinstance(attribute, property) else attribute
    return attribute if inspect.isfunction(attribute) else None


def overriding(cls: type) -> Iterator[tuple[str, Callable, list[Callable]]]:
    """What a class overrides of our classes, or of its own package, with what is overridden."""
    own_packages = {cls.__module__.partition(".")[0], *(package.__name__ for package in OWN)}
    for name, attribute in vars(cls).items():
        own = function_of(attribute)
        bases = [
            function_of(vars(base).get(name))
            for base in cls.__mro__[1:]
            if base.__module__.partition(".")[0] in own_packages
        ]
        if own is not None and any(bases) and name not in ("__init__", "__post_init__"):
            yield f"{cls.__qualname__}.{name}", own, [base for base in bases if base is not None]


def said(function: Callable) -> list[tuple[str, str]]:
    """The parts of a docstring: the summary, what it explains, and each entry of a section."""
    first, *rest = SECTIONS.split(inspect.getdoc(function) if function.__doc__ else "")
    parts = [("", paragraph) for paragraph in first.split("\n\n")]
    for section, text in zip(rest[::2], rest[1::2], strict=True):
        parts += [(section, entry) for entry in re.split(r"^    (?=\S)", text, flags=re.MULTILINE)]
    return [(section, words) for section, text in parts if (words := " ".join(text.split()))]


def repeated(own: Callable, bases: list[Callable]) -> list[str]:
    """What a docstring says that those of the overridden methods say, word for word or nearly."""
    return [
        text
        for section, text in said(own)
        if any(
            section == former and difflib.SequenceMatcher(None, text, words).ratio() > 0.9
            for base in bases
            for former, words in said(base)
        )
    ]


def test_what_overrides_is_marked():
    unmarked = [
        name
        for cls in classes()
        for name, own, _ in overriding(cls)
        if not name.rpartition(".")[2].startswith("__") and not hasattr(own, "__override__")
    ]
    assert not unmarked, f"mark with typing_extensions.override: {unmarked}"


def test_what_overrides_repeats_no_docstring():
    found = {
        name: repeated(own, bases) for cls in classes() for name, own, bases in overriding(cls)
    }
    assert len(found) > 100
    assert not {name: texts for name, texts in found.items() if texts}


def test_what_is_repeated():
    class Base:
        def one(self, a, b):
            """Return one thing.

            It explains.

            Args:
                a: The first argument, which goes on in
                    another line.
                b: The second.

            Returns:
                A number.
            """

        @property
        def two(self):
            """The other thing."""

        def three(self):
            """Return three."""

    class Derived(Base):
        def one(self, a, b):
            """Return one thing faster.

            Args:
                a: The first argument, that goes on in another line.
                b: Something else.

            Returns:
                A number.
            """

        @property
        def two(self):
            """The other thing."""

        def three(self):
            """Return thrice."""

        def four(self):
            """Return three."""

    class Further(Derived):
        def three(self):
            """Return three."""

    found = {name.rpartition(".")[2]: repeated(*rest) for name, *rest in overriding(Derived)}
    assert found == {
        "one": ["a: The first argument, that goes on in another line.", "A number."],
        "two": ["The other thing."],
        "three": [],
    }
    assert [repeated(own, bases) for _, own, bases in overriding(Further)] == [["Return three."]]
