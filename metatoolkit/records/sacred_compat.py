"""How Sacred is imported so that newer Pythons, setuptools and GPU drivers do not break it."""

from __future__ import annotations

import copyreg
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any


def import_sacred() -> Any:
    """Import Sacred, standing in for the ``pkg_resources`` that newer setuptools no longer carry.

    Returns:
        The module ``sacred``, with its own fragile collection of GPU information turned off.
    """
    if "sacred" in sys.modules:
        import sacred

        return _prepared(sacred)
    stand_in = "pkg_resources" not in sys.modules
    if stand_in:
        sys.modules["pkg_resources"] = _pkg_resources()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", SyntaxWarning)
            import sacred
            import sacred.observers
    finally:
        if stand_in:
            del sys.modules["pkg_resources"]
    return _prepared(sacred)


def _prepared(sacred: Any) -> Any:
    from sacred.config.custom_containers import ReadOnlyDict, ReadOnlyList

    sacred.SETTINGS.HOST_INFO.INCLUDE_GPU_INFO = False
    # A worker process that is handed a part of the configuration would import Sacred by itself,
    # with its warning, or without success.
    copyreg.pickle(ReadOnlyDict, _plain_dict)
    copyreg.pickle(ReadOnlyList, _plain_list)
    return sacred


def _plain_dict(value: Any) -> tuple[Any, ...]:
    return dict, ({**value},)


def _plain_list(value: Any) -> tuple[Any, ...]:
    return list, ([*value],)


class _WorkingSet:
    """The installed packages, as far as Sacred asks for them."""

    @property
    def by_key(self) -> dict[str, types.SimpleNamespace]:
        return {entry.project_name.lower(): entry for entry in self}

    def __iter__(self) -> Any:
        for distribution in importlib.metadata.distributions():
            name = distribution.metadata["Name"]
            if name:
                yield types.SimpleNamespace(
                    project_name=name,
                    version=distribution.version,
                    _get_metadata=lambda file, of=distribution: (of.read_text(file) or "").split(),
                )


def _resource_filename(package: str, name: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package {package!r}", name=package)
    return str(Path(spec.origin).parent / name)


def _pkg_resources() -> types.ModuleType:
    module = types.ModuleType("pkg_resources")
    module.working_set = _WorkingSet()  # type: ignore[attr-defined]
    module.resource_filename = _resource_filename  # type: ignore[attr-defined]
    return module
