"""The core in an environment that holds nothing but PyTorch, NumPy and tqdm."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from metatoolkit.errors import EXTRAS

ROOT = Path(__file__).parents[1]
# What experiments need is the extra `records`; the rest computes.
HARNESS = ("cli", "experiments", "records")
# PyTorch needs typing_extensions itself.
CORE = {"metatoolkit", "numpy", "torch", "tqdm", "typing_extensions", *sys.stdlib_module_names}
OPTIONAL = {module for modules in EXTRAS.values() for module in modules.split()}
FILES = sorted(
    path
    for path in (ROOT / "metatoolkit").rglob("*.py")
    if path.relative_to(ROOT / "metatoolkit").parts[0] not in HARNESS
)


def imports(path):
    """Yield the top-level modules that a file imports, and whether it does so at its import."""
    waiting = [(node, True) for node in ast.parse(path.read_text()).body]
    while waiting:
        node, at_once = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += [(one, at_once) for one in node.orelse]
            continue
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.partition(".")[0], at_once
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0], at_once
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        waiting += [(one, at_once and not inside) for one in ast.iter_child_nodes(node)]


@pytest.mark.parametrize("path", FILES, ids=[str(one.relative_to(ROOT)) for one in FILES])
def test_nothing_but_the_core_is_imported_with_a_module(path):
    found = list(imports(path))
    assert {module for module, at_once in found if at_once} <= CORE
    # What a function imports has an extra that brings it; filelock comes with PyTorch.
    assert {module for module, at_once in found if not at_once} <= CORE | OPTIONAL | {"filelock"}


def test_hypergradients_leave_displays_and_command_lines_to_the_caller():
    for path in (ROOT / "metatoolkit").rglob("*.py"):
        if path.relative_to(ROOT / "metatoolkit").parts[0] in ("hypergradients", "diagnostics"):
            assert not {"rich", "argparse"} & {module for module, _ in imports(path)}, path


def test_imports_are_found_where_they_stand(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport a.b, c\nif TYPE_CHECKING:\n    import d\n"
        "else:\n    from e.f import g\ntry:\n    import h\nexcept ImportError:\n    pass\n"
        "class I:\n    import j\n    def k(self):\n        with self:\n            import l\n"
    )
    now = {module for module, at_once in imports(file) if at_once}
    later = {module for module, at_once in imports(file) if not at_once}
    assert now == {"typing", "a", "c", "e", "h", "j"} and later == {"l"}


@pytest.mark.slow
def test_an_environment_of_the_core_runs_the_example_and_conforms():
    """Every module imports there, the README's first example runs, and so do tests."""
    pytest.importorskip("pip", reason="pip is needed to install the wheel")
    selected = (
        "test_says_what_it_is or exported or (small_net and form_of_the_meta) or "
        "(ridge and leaves_everything) or neither_pandas or (Nesterov and matrices) or "
        "(Nystrom and solves)"
    )
    files = (
        "hypergradients/test_conformance.py",
        "hypergradients/test_linear_solvers.py",
        "inner/test_conformance.py",
        "diagnostics/test_check.py",
        "diagnostics/test_comparison.py",
    )
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "scripts" / "core_only.py", "--linked"),
            *(f"tests/{name}" for name in files),
            *("-k", selected),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "modules import" in done.stdout and " passed" in done.stdout
