"""What Sacred needs to run recorded experiments: its import, options, and values to repeat."""

from __future__ import annotations

import copyreg
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import sys
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any

from metatoolkit.errors import ConfigurationError
from metatoolkit.records.capture import git_state
from metatoolkit.records.clean import (
    clean,
    decode,
    decode_date,
    decode_key,
    encode_date,
    encoded_keys,
)
from metatoolkit.records.push_thread import BEAT_SECONDS
from metatoolkit.records.recorder import CAPTURED_BY_US

REFUSED = {
    "--id": "the database numbers the runs. Name this one with --comment, or tag it afterwards",
    "--queue": "nothing would ever start the run. Leave the option out to run it now",
    "--priority": "it is for queued runs, which there are none of",
}
CAPTURES = ("no", "sys", "fd")


def check_options(experiment: Any, options: dict[str, Any]) -> None:
    """Refuse what would have no effect, and prepare what would not work with records.

    Raises:
        ConfigurationError: An option cannot be honored, or its value is not one of the accepted.
    """
    for name, why in REFUSED.items():
        if options.get(name):
            raise ConfigurationError(f"the option {name} is not supported: {why}.")
    capture = options.get("--capture")
    if capture is None:
        options["--capture"] = CAPTURED_BY_US
    elif capture not in CAPTURES:
        raise ConfigurationError(f"--capture is one of {', '.join(CAPTURES)}, not {capture!r}.")
    beat = options.get("--beat-interval")
    if beat and not 0 < _number(beat) <= BEAT_SECONDS:
        raise ConfigurationError(
            f"--beat-interval is a number of seconds from 0 to {BEAT_SECONDS:g}, after which "
            f"everything is written at the latest, not {beat!r}."
        )
    level = options.get("--loglevel")
    if isinstance(level, str) and not level.lstrip("-").isdigit():
        if level.upper() not in logging.getLevelNamesMapping():
            known = ", ".join(logging.getLevelNamesMapping())
            raise ConfigurationError(f"--loglevel is a number or one of {known}, not {level!r}.")
        options["--loglevel"] = level.upper()
    if options.get("--enforce_clean"):
        _check_clean(Path(experiment.base_dir))
        # Sacred would look at what it knows of the repository, which is nothing.
        options["--enforce_clean"] = False


def misuse(program: str, words: Sequence[str], entries: Iterable[str], flags: Sequence[str]) -> str:
    """Say what is wrong with a command line that Sacred does not understand, and what to write.

    Args:
        program: What was typed to start the program.
        words: What followed.
        entries: Names of configuration entries.
        flags: The options that there are.

    Returns:
        One or two sentences.
    """
    known = set(entries)
    for place, word in enumerate(words):
        name, given, value = word.partition("=")
        bare = name.lstrip("-")
        unknown = word.startswith("--") and name not in flags
        misplaced = bool(given) and word[0] != "-" and "with" not in words[:place]
        if unknown or misplaced:
            if unknown:
                told = f"there is no option {name}"
                following = words[place + 1] if place + 1 < len(words) else ""
                value = value if given else "" if following.startswith("-") else following
            else:
                told = f"{word} stands before the word `with`"
            entry = bare if bare in known else bare.replace("-", "_")
            if entry in known:
                return f"{told}. Write: {program} with {entry}={value or 'VALUE'}"
            near = get_close_matches(name, flags, 1, 0.7) if unknown else []
            near = near or get_close_matches(entry, known, 1, 0.7)
            meant = f" Did you mean {near[0]}?" if near else ""
            return f"{told}.{meant} Settings follow the word `with`: {program} with seed=3"
    return f"this is not understood: {' '.join(words)}"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return -1.0


def _check_clean(folder: Path) -> None:
    state = git_state(folder)
    if state is None:
        raise ConfigurationError(
            f"--enforce_clean: {folder} is in no git repository with a commit, so that nothing can "
            "be said of it. Leave the option out."
        )
    if state.get("dirty"):
        raise ConfigurationError(
            f"--enforce_clean: {folder} has changes that are not committed. Commit them first."
        )


RERUN_VARIABLE = "METATOOLKIT_RERUN"
_MISSING = object()
_FILE_KEY = re.compile(
    r"(?:.*_)?(?:checkpoint|path|file|filename|folder|dir|directory|root)s?", re.IGNORECASE
)
_OUTPUT_KEY = re.compile(r"(?:.*_)?(?:out|output|save|log|export)(?:_to|s)?", re.IGNORECASE)


def take_over(experiment: Any, options: dict[str, Any]) -> None:
    """Give the experiment the configuration that ``runs rerun`` has left for it, once.

    Sacred's own ways would execute what lies in it: its reader of JSON, and its reader of values on
    the command line, decode them with jsonpickle.

    Raises:
        ConfigurationError: The configuration is damaged, or the command one that makes no record.
    """
    handed = os.environ.pop(RERUN_VARIABLE, "")
    if not handed:
        return
    try:
        recorded = json.loads(Path(handed).read_text("utf-8"), object_hook=decode_date)
    except ValueError as error:
        raise ConfigurationError(f"the recorded configuration is damaged: {error}") from error
    # That it is gone tells that it has arrived.
    os.unlink(handed)
    name = options.get("COMMAND")
    command = dict(experiment.gather_commands()).get(name)
    if getattr(command, "unobserved", False):
        # Such as Sacred's `save_config`, which writes where the configuration says.
        raise ConfigurationError(f"the command {name!r} makes no record, and is not repeated.")
    parts = [one for one, _ in experiment.traverse_ingredients() if one is not experiment]
    for ingredient in sorted(parts, key=lambda one: -len(one.path)):
        *outer, last = ingredient.path.split(".")
        owner = recorded
        for part in outer:
            owner = owner.get(part) if isinstance(owner, dict) else None
        own = owner.pop(last, {}) if isinstance(owner, dict) else {}
        ingredient.configurations.append(_Recorded(ingredient, own))
    experiment.configurations.append(_Recorded(experiment, recorded))


class _Recorded:
    """The last of an ingredient's configuration scopes; it takes itself away again.

    The values are those recorded for the owner, keys as the database has them.
    """

    def __init__(self, owner: Any, values: Any) -> None:
        self.owner = owner
        self.values = values
        self.files: dict[str, str] = {}
        self.changed: dict[str, tuple[type, type]] = {}

    def __call__(self, fixed: Any = None, preset: Any = None, fallback: Any = None) -> Any:
        """Return the recorded entries, but for those that the command line gives; as Sacred asks.

        Raises:
            ConfigurationError: An entry names a file that the experiment does not name by itself,
                or has a name that Sacred does not take.
        """
        from sacred.config import ConfigDict
        from sacred.utils import ConfigAddedError, iter_prefixes, join_paths

        self.owner.configurations.remove(self)
        fixed, preset = fixed or {}, preset or {}
        values = self._matched(self.values, preset, fixed, "")
        if self.files:
            given = " ".join(f"{name}={value!r}" for name, value in sorted(self.files.items()))
            raise ConfigurationError(
                "the recorded configuration names files, and nothing is read or written because a "
                f"record names it. Confirm each, or give another one: --with {given}"
            )
        functions = self.owner.captured_functions
        arguments = [join_paths(f.prefix, n) for f in functions for n in f.signature.arguments]
        known = {"seed", *preset, *(part for one in arguments for part in iter_prefixes(one))}
        for name in values:
            if name not in known:
                raise ConfigAddedError(str(name), config=preset)
        try:
            summary = ConfigDict(values)(fixed, preset, fallback)
        except KeyError as error:
            raise ConfigurationError(f"the recorded configuration: {error.args[0]}") from error
        summary.typechanged.update(self.changed)
        return summary

    def _matched(self, value: Any, former: Any, given: Any, name: str) -> Any:
        """Return recorded data with the experiment's own keys, which need not be text."""
        if isinstance(value, dict) and isinstance(former, Mapping):
            keys = dict(encoded_keys(former))
            result = {}
            for stored, entry in value.items():
                key = keys.get(stored, decode_key(stored))
                told = (given or {}).get(key, _MISSING)
                nested = isinstance(told, Mapping) and isinstance(entry, dict)
                if told is _MISSING or nested:
                    inner = f"{name}.{key}" if name else str(key)
                    rest = told if nested else None if given is None else {}
                    result[key] = self._matched(entry, former.get(key, _MISSING), rest, inner)
            return result
        if former is not _MISSING and _text(clean(former)) == _text(value):
            return former
        if isinstance(value, list) and isinstance(former, list) and len(value) == len(former):
            pairs = zip(value, former, strict=True)
            return [self._matched(*both, None, f"{name}.{i}") for i, both in enumerate(pairs)]
        self._find_files(value, name)
        # Sacred looks at no types inside lists, where nothing is given.
        differs = type(former) is not type(value) and former is not None and value is not None
        if given is not None and former is not _MISSING and differs:
            self.changed[name] = (type(former), type(value))
        return decode(value)

    def _find_files(self, value: Any, name: str) -> None:
        if isinstance(value, dict | list):
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in entries:
                self._find_files(entry, f"{name}.{key}")
        elif isinstance(value, str) and _names_file(name, value):
            self.files[name] = value


def _names_file(name: str, value: str) -> bool:
    last = next((part for part in reversed(name.split(".")) if not part.isdigit()), "")
    path = PurePath(value.replace("\\", "/").replace("\0", ""))
    outside = path.is_absolute() or value.startswith("~") or ".." in path.parts
    named = bool(value) and _FILE_KEY.fullmatch(last) is not None
    named = named or (_OUTPUT_KEY.fullmatch(last) is not None and ("/" in value or "." in value))
    return named or outside or os.path.isfile(path) or os.path.islink(path)


def _text(value: Any) -> str:
    # As text, where NaN equals itself, and True is not 1.
    return json.dumps(value, sort_keys=True, default=encode_date)


def import_sacred() -> Any:
    """Import Sacred, standing in for the ``pkg_resources`` that newer setuptools no longer carry.

    Its own fragile collection of GPU information is turned off.
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
