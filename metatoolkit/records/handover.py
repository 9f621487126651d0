"""The configuration of a recorded run, handed as plain data to the experiment that repeats it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from metatoolkit.errors import ConfigurationError
from metatoolkit.records.clean import clean, decode, decode_key, encoded_keys
from metatoolkit.records.last_words import decode_date, encode_date

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

    Args:
        experiment: The experiment that is about to run.
        options: What was given on its command line.

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

    Args:
        owner: The experiment, or an ingredient of it.
        values: What was recorded, keys as the database has them.
    """

    def __init__(self, owner: Any, values: Any) -> None:
        self.owner = owner
        self.values = values
        self.files: dict[str, str] = {}
        self.changed: dict[str, tuple[type, type]] = {}

    def __call__(self, fixed: Any = None, preset: Any = None, fallback: Any = None) -> Any:
        """Return the recorded entries, but for those that the command line gives; as Sacred asks.

        Args:
            fixed: What the command line gives.
            preset: The experiment's own configuration.
            fallback: Entries of other ingredients.

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
