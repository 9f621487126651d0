"""Sacred's command-line options: those that hold for recorded runs, and those that do not."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError
from metatoolkit.records.provenance import git_state
from metatoolkit.records.pusher import BEAT_SECONDS
from metatoolkit.records.recorder import CAPTURED_BY_US

REFUSED = {
    "--id": "the database numbers the runs. Name this one with --comment, or tag it afterwards",
    "--queue": "nothing would ever start the run. Leave the option out to run it now",
    "--priority": "it is for queued runs, which there are none of",
}
CAPTURES = ("no", "sys", "fd")


def check_options(experiment: Any, options: dict[str, Any]) -> None:
    """Refuse what would have no effect, and prepare what would not work with records.

    Args:
        experiment: The Sacred experiment.
        options: Its options, by flag; changed.

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
