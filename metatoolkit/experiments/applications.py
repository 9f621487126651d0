"""The package ``applications``: what it holds, and the two rules that an application follows.

The folder is called like its experiment, which runs are found by, and its ``__init__`` exports
that experiment, which commands start.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any

from metatoolkit.errors import ConfigurationError, UnknownNameError

PACKAGE = "applications"


def applications() -> list[str]:
    """List the applications that can be run.

    Returns:
        The names of the modules of the package ``applications``.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return []
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return sorted(module.name for module in found if not module.name.startswith("_"))


def load_application(name: str) -> Any:
    """Import an application, and see that it follows the rules.

    Args:
        name: The application's name.

    Returns:
        Its Sacred experiment.

    Raises:
        UnknownNameError: There is no such application.
        ConfigurationError: It exports no experiment, one of another name, or one that is not
            recorded.
    """
    known = applications()
    if name not in known:
        raise UnknownNameError("application", name, known)
    module = importlib.import_module(f"{PACKAGE}.{name}")
    experiment: Any = getattr(module, "experiment", None)
    # A package may keep its experiment in a module of the same name.
    experiment = getattr(experiment, "experiment", experiment)
    if not hasattr(experiment, "run_commandline"):
        raise ConfigurationError(
            f"{module.__file__} exports no experiment. Add: "
            f"from {PACKAGE}.{name}.experiment import experiment as experiment"
        )
    if experiment.path != name:
        raise ConfigurationError(
            f"the experiment of the application {name} is called {experiment.path!r}, so that its "
            f"runs would not be found. Write experiment = records.experiment({name!r})."
        )
    from metatoolkit.records.recorder import SpoolObserver

    if not any(isinstance(one, SpoolObserver) for one in experiment.observers):
        raise ConfigurationError(
            f"the runs of the application {name} would not be recorded. Make its experiment with "
            f"records.experiment({name!r})."
        )
    return experiment


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
