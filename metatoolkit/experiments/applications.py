"""Where applications are found, and the two rules that each follows.

An application is a module or a package of the package ``applications``, of the working directory
or of the checkout that this toolkit lies in; an entry point of the group
``metatoolkit.applications``; or whatever file or folder is named by its path. It is called like its
experiment, which runs are found by, and its module exports that experiment, which commands start.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, UnknownNameError

PACKAGE = "applications"
GROUP = "metatoolkit.applications"


def applications() -> list[str]:
    """List the applications that can be run by name.

    Returns:
        The names of the modules of the package ``applications``, and those of entry points.
    """
    named = {entry.name for entry in entry_points(group=GROUP)}
    return sorted({*_of_package(), *named})


def module_of(name: str) -> str:
    """Return the module of an application.

    Args:
        name: The application's name, or the path of its file or folder.

    Returns:
        The module's name, under which it can be imported.

    Raises:
        UnknownNameError: There is no such application.
        ConfigurationError: The path leads to no module, or to one whose name is another's.
    """
    if _is_path(name):
        return _module_at(Path(name))
    if name in _of_package():
        return f"{PACKAGE}.{name}"
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry.module
    known = applications()
    if not known:
        raise ConfigurationError(
            f"there is no application {name!r}, nor any other: none is installed, and neither the "
            f"working directory nor the folder of this toolkit holds {PACKAGE}/. Change to a "
            "checkout, or name the application's file or folder by its path."
        )
    raise UnknownNameError("application", name, known)


def load_application(name: str) -> Any:
    """Import an application, and see that it follows the rules.

    Args:
        name: The application's name, or the path of its file or folder.

    Returns:
        Its Sacred experiment.

    Raises:
        UnknownNameError: There is no such application.
        ConfigurationError: It exports no experiment, one of another name, or one that is not
            recorded.
    """
    place = module_of(name)
    module = importlib.import_module(place)
    called = place.rpartition(".")[2] if _is_path(name) else name
    experiment: Any = getattr(module, "experiment", None)
    # A package may keep its experiment in a module of the same name.
    experiment = getattr(experiment, "experiment", experiment)
    if not hasattr(experiment, "run_commandline"):
        package = hasattr(module, "__path__")
        line = f"from {place}.experiment import experiment as experiment"
        remedy = line if package else f"experiment = records.experiment({called!r})"
        raise ConfigurationError(f"{module.__file__} exports no experiment. Add: {remedy}")
    if experiment.path != called:
        raise ConfigurationError(
            f"the experiment of the application {called} is called {experiment.path!r}, so that "
            f"its runs would not be found. Write experiment = records.experiment({called!r})."
        )
    from metatoolkit.records.recorder import SpoolObserver

    if not any(isinstance(one, SpoolObserver) for one in experiment.observers):
        raise ConfigurationError(
            f"the runs of the application {called} would not be recorded. Make its experiment with "
            f"records.experiment({called!r})."
        )
    return experiment


def assembling(name: str) -> str:
    """Return the module of an application that has its ``assemble``.

    Args:
        name: The application's name, or the path of its file or folder.

    Raises:
        UnknownNameError: There is no such application.
        ConfigurationError: It does not follow the rules, or assembles nothing.
    """
    load_application(name)
    place = module_of(name)
    for module in (f"{place}.experiment", place):
        if hasattr(sys.modules.get(module), "assemble"):
            return module
    raise ConfigurationError(
        f"the application {name} has no function assemble(config), which returns an Assembly; "
        "name one that trains by a trainer."
    )


def place_of(name: str) -> str:
    """Return what names an application whatever the working directory, as for another process.

    Args:
        name: The application's name, or the path of its file or folder.
    """
    return os.path.abspath(name) if _is_path(name) else name


def check_entries(
    name: str,
    entries: Iterable[str],
    updates: Mapping[str, Any],
    named: Sequence[str] = (),
) -> None:
    """See that an application's configuration has some entries, where Sacred might only warn.

    Args:
        name: The application's name, or the path of its file or folder.
        entries: Dotted names of entries.
        updates: Configuration entries that they come to, nested.
        named: Named configurations that they come to.

    Raises:
        UnknownNameError: There is no such entry, named configuration or application.
        ConfigurationError: A value is not accepted.
    """
    from metatoolkit.records.fields import flatten

    experiment = load_application(name)
    known = flatten(experiment.resolve({"seed": 0, **updates}, named))
    for entry in entries:
        parts = entry.split(".")
        group = any(one.startswith(f"{entry}.") for one in known)
        # What is empty by default, such as options, takes whatever it is given.
        inside = any(".".join(parts[:place]) in known for place in range(1, len(parts)))
        if not (entry in known or group or inside or parts[0] in experiment.open_entries):
            raise UnknownNameError("configuration entry", entry, known)


def check_experiment(module: str) -> None:
    """See that a module belongs to an application that follows the rules, if to any.

    Args:
        module: A module that holds an experiment, such as ``applications.rotation.experiment``.

    Raises:
        UnknownNameError: There is no such application.
        ConfigurationError: The application does not follow the rules.
    """
    package, _, rest = module.partition(".")
    if package == PACKAGE and rest:
        load_application(rest.partition(".")[0])


def _of_package() -> list[str]:
    """Return the names of the modules of the package, whose root joins the path if it must."""
    spec = importlib.util.find_spec(PACKAGE)
    # A folder without `__init__` that happens to be called so is none.
    if spec is None or spec.origin is None:
        checkout = Path(__file__).resolve().parents[2]
        roots = [one for one in (Path.cwd(), checkout) if (one / PACKAGE / "__init__.py").is_file()]
        if not roots:
            return []
        sys.path.append(str(roots[0]))
        importlib.invalidate_caches()
        spec = importlib.util.find_spec(PACKAGE)
    # Nothing of the package is run only to list it.
    places = getattr(sys.modules.get(PACKAGE), "__path__", spec and spec.submodule_search_locations)
    found = pkgutil.iter_modules(list(places or ()))
    return [module.name for module in found if not module.name.startswith("_")]


def _is_path(name: str) -> bool:
    return name.endswith(".py") or os.sep in name or name in (os.curdir, os.pardir)


def _module_at(path: Path) -> str:
    """Return the name of the module in a file or folder, whose root is put first on the path."""
    path = path.resolve()
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        what = "holds no __init__.py" if path.is_dir() else "does not exist"
        raise ConfigurationError(
            f"the application {path} {what}; name a file, or a folder whose __init__.py exports "
            f"the experiment, or one of: {', '.join(applications())}."
        )
    if path.name == "__init__.py":
        raise ConfigurationError(f"the application {path} is a folder; name its folder.")
    root, parts = path.parent, [path.stem if path.is_file() else path.name]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    for part in parts:
        if not part.isidentifier():
            raise ConfigurationError(
                f"{part!r} in the application's path {path} is no name of a module; rename it, "
                f"for instance to {''.join(c if c.isalnum() else '_' for c in part)!r}."
            )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
    name = ".".join(parts)
    loaded = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if loaded is None else loaded.__spec__
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != source:
        taken = None if spec is None else spec.origin
        raise ConfigurationError(
            f"the application {path} is called like another module, {taken}; rename it."
        )
    return name
