"""Components by name, those of this package and those that others add."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from metatoolkit.components.options import check_options, refuse_unknown
from metatoolkit.errors import ConfigurationError, UnknownNameError

T = TypeVar("T")
B = TypeVar("B", bound=Callable[..., Any])


class Registry(Generic[T], Mapping[str, Callable[..., T]]):
    """What can be built by name: classes, or functions that return a component.

    A component joins by the decorator :meth:`register`, where its module is one of the package
    that the registry searches, or is imported by the user; or by an entry point of another
    distribution, which is loaded when its name is asked for::

        [options.entry_points]
        metatoolkit.estimators =
            Mine = my_package.mine:Mine

    Args:
        kind: What the components are, in errors, for instance ``"estimator"``.
        package: Package whose modules are imported before a name is looked up.
        group: Group of entry points that is searched, too.
        parts: Registries of what components are made of: an option that is a mapping with
            ``"name"`` is built by the first of them that knows the name.
        nested: Whether a component may be made of others of its kind.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        group: str,
        parts: Sequence[Registry[Any]] = (),
        nested: bool = False,
    ) -> None:
        self.kind = kind
        self._package = package
        self._group = group
        self._parts: tuple[Registry[Any], ...] = (*parts, self) if nested else tuple(parts)
        self._components: dict[str, Callable[..., T]] = {}
        self._complete = False

    def register(self, name: str | None = None) -> Callable[[B], B]:
        """Return a decorator that gives a class or a function its name in the registry.

        Args:
            name: The name; by default that of the class or function.

        Raises:
            ConfigurationError: The name is taken by another component.
        """

        def add(component: B) -> B:
            key = name or component.__name__
            present = self._components.get(key)
            # A module that is loaded anew defines the same component again.
            if present is not None and _home(present) != _home(component):
                raise ConfigurationError(
                    f"the {self.kind} {key!r} is {'.'.join(_home(present))} already; register "
                    f"{'.'.join(_home(component))} under another name."
                )
            self._components[key] = component
            return component

        return add

    def __getitem__(self, name: str) -> Callable[..., T]:
        """Return a component's class, or the function that makes it.

        Args:
            name: Its name.

        Raises:
            UnknownNameError: Nothing of this name is registered.
        """
        self._search()
        if name not in self._components:
            entry = self._entries().get(name)
            if entry is None:
                raise UnknownNameError(self.kind, name, self)
            self._components[name] = entry.load()
        return self._components[name]

    def __contains__(self, name: object) -> bool:
        """Return whether a name is registered."""
        self._search()
        return name in self._components or name in self._entries()

    def __iter__(self) -> Iterator[str]:
        """Iterate over all names, in alphabetic order."""
        self._search()
        return iter(sorted({*self._components, *self._entries()}))

    def __len__(self) -> int:
        """Return the number of names."""
        return sum(1 for _ in self)

    def options(self, name: str) -> Mapping[str, inspect.Parameter]:
        """Return the options of a component, from its signature.

        Args:
            name: The component's name.

        Raises:
            UnknownNameError: Nothing of this name is registered.
        """
        return inspect.signature(self[name]).parameters

    def build(self, name: str, **options: Any) -> T:
        """Build a component.

        Args:
            name: The component's name.
            **options: Arguments of its class. One that is a mapping with ``"name"`` is a component
                itself, for instance the solver of ``build("Implicit", solver={"name": "GMRES",
                "iterations": 10})``.

        Returns:
            The component.

        Raises:
            UnknownNameError: Nothing of this name is registered, or it has no such option.
            ConfigurationError: An option is missing, of another type than the signature says, or
                out of range.
        """
        component = self[name]
        what = f"{self.kind} {name!r}"
        built = {key: self._part(value, what) for key, value in options.items()}
        check_options(component, what, built)
        return component(**built)

    def build_for(self, name: str, given: Mapping[str, Any], **options: Any) -> T:
        """Build a component some of whose arguments data determine, as those of a network.

        Args:
            name: The component's name.
            given: What data determine, by the name of the argument; a component takes what its
                signature names.
            **options: Its other arguments.

        Returns:
            The component.

        Raises:
            UnknownNameError: As :meth:`build`; or an option is one that data determine.
            ConfigurationError: As :meth:`build`.
        """
        arguments = self.options(name)
        own = [one for one in arguments if one not in given]
        refuse_unknown(f"{self.kind} {name!r}", options, own)
        return self.build(name, **{n: v for n, v in given.items() if n in arguments}, **options)

    def _part(self, value: Any, what: str) -> Any:
        if not (isinstance(value, Mapping) and "name" in value):
            return value
        for registry in self._parts:
            if value["name"] in registry:
                return registry.build(**value)
        known = [name for registry in self._parts for name in registry]
        raise UnknownNameError(f"part of {what}:", value["name"], known)

    def _search(self) -> None:
        if self._complete:
            return
        self._complete = True
        path = importlib.import_module(self._package).__path__
        for module in pkgutil.walk_packages(path, f"{self._package}."):
            importlib.import_module(module.name)

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self._group)}


def _home(component: Any) -> tuple[str, str]:
    # A partial function is where the whole one is.
    component = getattr(component, "func", component)
    return component.__module__, component.__qualname__
