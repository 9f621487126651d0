"""Runs that are repeated: `metatoolkit runs rerun`."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from metatoolkit.cli.arguments import command
from metatoolkit.errors import ConfigurationError, RecordsError
from metatoolkit.experiments.applications import applications
from metatoolkit.records.capture import git_state
from metatoolkit.records.clean import encode_date
from metatoolkit.records.query import connect
from metatoolkit.records.run import Run, section
from metatoolkit.records.sacred_compat import RERUN_VARIABLE
from metatoolkit.records.terminal import HIDDEN, text

LOST = "too_large"


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: Where it goes.
    """
    parser = command(commands, "rerun", "run again with the same configuration", rerun)
    parser.add_argument("id", metavar="ID", help="the run")
    parser.add_argument("--script", help="what to start, where it is not an application")
    parser.add_argument(
        "--with", nargs="+", default=[], metavar="UPDATE", dest="updates",
        help="what to change, for instance seed=4",
    )  # fmt: skip


def rerun(options: argparse.Namespace) -> int:
    """Run again with the configuration of a recorded run.

    Only an application of this toolkit, or a script that the user names, is started. What the
    database says is not trusted: it is handed over as plain data, and files that it names are left
    alone.

    Args:
        options: The command line.

    Returns:
        The exit code of the run.

    Raises:
        ConfigurationError: The run's experiment is no application and no script is named.
        RecordsError: The record does not name a command, or its configuration is no plain data.
    """
    with connect() as database:
        run = database[options.id]
        details = run.details()
        config, missing = _recorded(run, section(details, "config"))
    experiment = section(details, "experiment")
    if options.script:
        program = [sys.executable, options.script]
    elif run.experiment in applications():
        program = [sys.executable, "-m", "metatoolkit.cli", "run", run.experiment]
        # Where a run stores itself until it is done, and what it deletes then.
        if config.pop("checkpoint", None) is not None:
            missing.append("checkpoint")
    else:
        recorded = os.path.join(str(experiment.get("base_dir")), str(experiment.get("mainfile")))
        raise ConfigurationError(
            f"the experiment {run.experiment!r} is not one of the applications. It was started "
            f"from {text(recorded)}: name the script that you trust with --script."
        )
    repeated = str(details.get("command") or "main")
    if not re.fullmatch(r"(?!with$)[A-Za-z_][\w.]*", repeated):
        raise RecordsError(f"run {run.id} has no usable command: {text(repeated)!r}")
    if missing:
        print(f"left to their defaults: {text(missing)}", file=sys.stderr)
    _tell_changes(experiment)
    with tempfile.TemporaryDirectory(prefix="metatoolkit-") as folder:
        path = Path(folder) / "config.json"
        try:
            path.write_text(json.dumps(config, default=encode_date), "utf-8")
        except TypeError as error:
            raise RecordsError(f"the configuration of run {run.id}: {error}") from error
        words = [*program, repeated, "--comment", f"rerun of {text(run.uuid or run.id)}"]
        words += ["with", *options.updates] if options.updates else []
        # As a child, so that the configuration's file is gone however the run ends.
        environment = {**os.environ, RERUN_VARIABLE: str(path)}
        code = subprocess.run(words, check=False, env=environment).returncode
        if code == 0 and path.exists():
            raise ConfigurationError(
                f"{options.script or run.experiment} has run no experiment that is recorded, so "
                "that the configuration has reached none."
            )
        return code


def _recorded(run: Run, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration as it was, and the names of what was not recorded of it."""
    config = _from_artifact(run, "config", config)
    whole = {key: _from_artifact(run, f"config.{key}", value) for key, value in config.items()}
    return _without_hidden(whole)


def _from_artifact(run: Run, name: str, value: Any) -> Any:
    """Read what was too large for the run's document."""
    artifact = run.artifacts.get(f"{name}.json")
    if artifact is None or value != {"artifact": artifact.name}:
        return value
    try:
        return json.loads(artifact.read())
    except ValueError as error:
        raise RecordsError(f"run {run.id}: {text(artifact.name)} is damaged: {error}") from error


def _without_hidden(config: dict[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    kept: dict[str, Any] = {}
    hidden = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if _is_hidden(value) or value == {LOST: f"config.{name}.json"}:
            hidden.append(name)
        elif isinstance(value, dict) and value:
            kept[key], more = _without_hidden(value, f"{name}.")
            hidden += more
        else:
            kept[key] = value
    return kept, hidden


def _is_hidden(value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_hidden(entry) for entry in value)
    return isinstance(value, str) and HIDDEN in value


def _tell_changes(experiment: dict[str, Any]) -> None:
    repositories = experiment.get("repositories")
    recorded = repositories[0] if isinstance(repositories, list) and repositories else None
    if not isinstance(recorded, dict):
        return
    now = git_state(Path.cwd())
    if now is not None and (now["commit"] != recorded.get("commit") or recorded.get("dirty")):
        dirty = " with uncommitted changes" if recorded.get("dirty") else ""
        print(
            f"the run was made at commit {text(recorded.get('commit'))[:12]}{dirty}; this is "
            f"{now['commit'][:12]}",
            file=sys.stderr,
        )
