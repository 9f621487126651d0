"""What starts an application: `metatoolkit run`."""

from __future__ import annotations

import argparse
from typing import Any

from metatoolkit.experiments.applications import applications, load_application


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: Where it goes.
    """
    run = commands.add_parser(
        "run",
        help="run an application",
        description="Run an application; what follows its name is Sacred's command line.",
        epilog="examples: metatoolkit run label_noise with method=evograd seed=3, "
        "metatoolkit run path/to/my_app.py --help",
    )
    run.add_argument(
        "application",
        help=f"a file or folder, or one of: {', '.join(applications()) or 'none found'}",
    )
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="for instance: with seed=3")
    run.set_defaults(handler=run_application)


def run_application(options: argparse.Namespace) -> int:
    """Run the Sacred experiment of an application.

    Args:
        options: The command line.

    Returns:
        The exit code.

    Raises:
        UnknownNameError: There is no such application.
        ConfigurationError: It does not follow the rules for applications.
    """
    name = options.application
    load_application(name).run_commandline([f"metatoolkit run {name}", *options.arguments])
    return 0
