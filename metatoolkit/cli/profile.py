"""Where a meta step of an application spends time and memory: `metatoolkit profile`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metatoolkit.cli.arguments import command
from metatoolkit.cli.display import print_table
from metatoolkit.errors import ConfigurationError, StorageError

EXAMPLES = """\
examples:
  metatoolkit profile label_noise with method=evograd
  metatoolkit profile rotation --trace rotation.json with estimator.name=Unrolled estimator.steps=5

The trace opens in https://ui.perfetto.dev. Nothing is recorded, and no checkpoint is written.
"""


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: Where it goes.
    """
    parser = command(
        commands, "profile", "tell where a meta step of an application spends time", profile
    )
    parser.epilog = EXAMPLES
    parser.add_argument("application", help="its name, or its file or folder")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed; default 5")
    parser.add_argument("--seed", type=int, default=1, help="seed of the application; default 1")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a trace there; default APPLICATION.json"
    )
    parser.add_argument(
        "--with", nargs="+", default=[], metavar="ENTRY=VALUE", dest="words",
        help="entries and named configurations; `with` will do",
    )  # fmt: skip


def profile(options: argparse.Namespace) -> int:
    """Put an application together, train it for a few steps, and print where they spend time.

    Args:
        options: The command line.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: The application has no meta step, or a value is not accepted.
        UnknownNameError: There is no such application, or it has no such entry.
        StorageError: The trace cannot be written.
    """
    from metatoolkit.experiments.applications import assembling
    from metatoolkit.experiments.jobs import Job, configuration_of
    from metatoolkit.experiments.profile import profile_application
    from metatoolkit.experiments.words import read_entries

    module = assembling(options.application)
    updates, named = read_entries(options.words)
    job = Job(module, options.application, updates.pop("seed", options.seed), updates, named)
    trace = options.trace or Path(f"{Path(options.application).stem}.json")
    if not trace.absolute().parent.is_dir():
        raise StorageError(f"cannot write {trace}: there is no folder {trace.parent}.")
    if options.steps < 1:
        raise ConfigurationError(f"--steps is {options.steps}; at least 1 is needed.")
    found = profile_application(job, configuration_of(job), options.steps, trace)
    rows = [
        [phase, f"{calls:g}", f"{milliseconds:.2f}", f"{share:.0%}", f"{mebibytes:.2f}"]
        for phase, calls, milliseconds, share, mebibytes in found.rows()
    ]
    print_table(["phase", "entered", "ms", "share", "MiB at most"], rows, essential=5)
    print(
        f"of one outer step, the mean of {found.steps}; memory is what tensors hold beyond before"
    )
    print(f"trace: {trace.resolve()} (open it in https://ui.perfetto.dev)")
    return 0
