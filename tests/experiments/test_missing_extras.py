"""What the harness needs beside the core: its own error says which extra brings it."""

import subprocess
import sys
import textwrap

from metatoolkit.errors import EXTRAS
from metatoolkit.experiments.applications import applications

MISSING = [*EXTRAS["records"].split(), *EXTRAS["plots"].split(), "pydantic_core"]


def run_without_extras(code):
    """Run code in a process where no module of the extras ``records`` and ``plots`` is found."""
    before = f"import sys, runpy\nfor name in {MISSING!r}:\n    sys.modules[name] = None\n"
    command = [sys.executable, "-c", before + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_modules_of_configurations_name_the_extra():
    modules = ["configuration", "entries", "accepted", "settings", "configured"]
    done = run_without_extras(
        f"""
        from metatoolkit.errors import MissingDependencyError
        for module in {modules!r}:
            try:
                runpy.run_module(f"metatoolkit.experiments.{{module}}", run_name="__main__")
            except MissingDependencyError as error:
                print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == len(modules)
    for line in told:
        assert line.startswith("metatoolkit.experiments need")
        assert 'needs pydantic, which is not installed: pip install "metatoolkit[records]"' in line


def test_commands_answer_in_one_line():
    done = run_without_extras(
        """
        sys.argv = ["reproduce", "--list"]
        runpy.run_module("metatoolkit.experiments.reproduce", run_name="__main__")
        """
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert 'pip install "metatoolkit[records]"' in done.stderr


def test_figures_name_their_extra():
    done = run_without_extras(
        """
        from metatoolkit.experiments.figures import draw_curves
        draw_curves([("loss", 1.0, 0)], "curves.png")
        """
    )
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(
            'a figure needs matplotlib, which is not installed: pip install "metatoolkit[plots]".'
        )
    )


def test_applications_name_the_extra():
    done = run_without_extras(
        """
        from metatoolkit.errors import MissingDependencyError
        from metatoolkit.experiments.applications import applications
        for name in applications():
            try:
                runpy.run_module(f"applications.{name}", run_name="__main__")
            except MissingDependencyError as error:
                print(error)
        """
    )
    told = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(told) == len(applications()) >= 6
    assert all(line.endswith('pip install "metatoolkit[records]".') for line in told)
