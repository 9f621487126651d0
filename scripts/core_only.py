"""Checks that the core works where nothing but PyTorch, NumPy and tqdm is installed.

Builds an environment with the package and what it needs, runs the first Python example of the
README in it, and then tests. ``--linked`` takes the packages of the running environment instead of
installing them: a few seconds in the place of a few minutes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ("torch", "numpy", "tqdm")
# What runs the tests lies beside the environment, not in it.
RUNNERS = ("pytest", "pytest-timeout")
CONFORMANCE = (
    "tests/hypergradients/test_conformance.py",
    "tests/hypergradients/test_linear_solvers.py",
    "tests/inner/test_conformance.py",
)
# Names of the example that it leaves to the reader, and fewer steps.
_BEFORE = """
import torch
torch.manual_seed(0)
def _batches():
    while True:
        yield torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
train_batches, valid_batches = _batches(), _batches()
"""
_AFTER = """
assert trainer.steps_done == 2
assert all(torch.isfinite(p).all() for p in problem.meta.parameters())
"""
_IMPORTS = """
import importlib, importlib.util, pkgutil, sys
import metatoolkit
from metatoolkit.errors import EXTRAS
names = " ".join(EXTRAS.values()).split()
present = [name for name in names if importlib.util.find_spec(name)]
assert not present, f"this environment is not the core's: {present}"
harness = tuple(f"metatoolkit.{name}" for name in ("cli", "experiments", "records"))
found = [one.name for one in pkgutil.walk_packages(metatoolkit.__path__, "metatoolkit.")
         if not one.name.startswith(harness)]
for name in found:
    importlib.import_module(name)
assert len(found) > 100, found
for name in metatoolkit.__all__:
    getattr(metatoolkit, name)
try:
    metatoolkit.records.connect
except metatoolkit.errors.MissingDependencyError as error:
    assert 'pip install "metatoolkit[records]"' in str(error), error
else:
    raise AssertionError("records need no extra here")
print(f"{len(found)} modules import")
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the environment and run what must work there.

    Args:
        arguments: The command line; by default that of the process. What is no option of the
            script goes to pytest; by default the conformance tests run.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--linked", action="store_true", help="take the packages that are here")
    options, tests = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory(prefix="metatoolkit-core-") as made:
        folder = Path(made)
        python, runners = (linked if options.linked else installed)(folder)
        say("importing all modules, and running the example of the README")
        run(folder, python, "-c", _IMPORTS)
        run(folder, python, "-c", example())
        say("running the tests")
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=_left_out)
        shutil.copy(ROOT / "setup.cfg", folder)
        asked = tests or CONFORMANCE
        run(folder, python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *asked, path=runners)
        say("done")
    return 0


def example() -> str:
    """Return the README's first Python example, made to run for two steps."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    if found is None or "steps=10_000" not in found[1]:
        raise SystemExit("the README no longer begins with an example of 10,000 steps.")
    return _BEFORE + found[1].replace("steps=10_000", "steps=2") + _AFTER


def installed(folder: Path) -> tuple[Path, Path]:
    """Install the package into a new environment, as a user does.

    Args:
        folder: Where the environment goes.

    Returns:
        Its Python, and the folder of what runs the tests.
    """
    say("creating an environment and running pip install .")
    venv.create(folder / "environment", symlinks=True, with_pip=True)
    python, runners = folder / "environment" / "bin" / "python", folder / "runners"
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "-q")
    run(folder, python, *pip, str(source(folder)))
    run(folder, python, *pip, "--target", str(runners), *RUNNERS)
    return python, runners


def linked(folder: Path) -> tuple[Path, Path]:
    """Make an environment that sees of the running one only what the package needs.

    Args:
        folder: Where the environment goes.

    Returns:
        Its Python, and the folder of what runs the tests.
    """
    say("linking the packages of the core")
    venv.create(folder / "environment", symlinks=True)
    python, runners = folder / "environment" / "bin" / "python", folder / "runners"
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    link(needed(CORE), site)
    runners.mkdir()
    link([one for one in needed(RUNNERS) if one not in needed(CORE)], runners)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder))
    run(folder, *pip, *build, str(source(folder)))
    (wheel,) = folder.glob("metatoolkit-*.whl")
    run(folder, *pip, "--python", str(python), "install", "-q", "--no-deps", str(wheel))
    return python, runners


def source(folder: Path) -> Path:
    """Copy what a wheel is built from, so that nothing is written beside it.

    Args:
        folder: Where the copy goes.
    """
    copy = folder / "source"
    shutil.copytree(ROOT / "metatoolkit", copy / "metatoolkit", ignore=_left_out)
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, copy)
    return copy


def needed(names: Iterable[str]) -> list[str]:
    """Return distributions with all that they need, of those that are installed here.

    Args:
        names: The distributions.
    """
    # pytest brings it.
    from packaging.requirements import Requirement

    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        parsed = map(Requirement, requirements)
        waiting += [
            one.name for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return sorted(found)


def link(distributions: Iterable[str], site: Path) -> None:
    """Link the modules and the metadata of distributions into a folder.

    Args:
        distributions: Names of distributions that are installed here.
        site: The folder.
    """
    for name in distributions:
        files = importlib.metadata.files(name) or []
        base = Path(str(importlib.metadata.distribution(name).locate_file("")))
        for top in sorted({file.parts[0] for file in files}):
            # Scripts lie outside, and a .pth file acts on the whole environment.
            if top in ("..", "__pycache__") or top.endswith(".pth") or (site / top).exists():
                continue
            (site / top).symlink_to(base / top)


def run(folder: Path, *command: str | Path, path: Path | None = None) -> None:
    """Run a command in a folder, and leave where it fails.

    Args:
        folder: The folder.
        *command: Program and arguments.
        path: What Python finds modules in, besides its environment.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    env["METATOOLKIT_HOME"] = str(folder / "home")
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"core_only: {command[1]} {command[2]} ended with {done.returncode}.")


def say(message: str) -> None:
    """Print what goes on, with the time since the start.

    Args:
        message: What goes on.
    """
    seconds = int(time.monotonic() - _STARTED)
    print(f"core_only [{seconds // 60:2d}:{seconds % 60:02d}] {message}", flush=True)


_STARTED = time.monotonic()
_left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")

if __name__ == "__main__":
    sys.exit(main())
