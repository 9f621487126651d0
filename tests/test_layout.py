"""Each thing stands where its name says, and no file is longer than a reader holds in mind."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("metatoolkit", "applications", "baselines", "benchmarks", "scripts", "tests")
LONGEST = 350
# Lists, of which a line is an entry.
DATA = {".json", ".toml", ".typed"}
# The core, what stands around it, and the harness, as the page of the design names them.
TOP = {
    *("__init__.py", "py.typed", "errors.py", "problem.py", "state.py"),
    *("components", "diagnostics", "hypergradients", "inner", "metaparameters", "randomness"),
    *("algorithms", "losses", "stateless", "testing", "training"),
    *("evaluation", "networks", "tasks"),
    *("cli", "experiments", "records"),
}


def files():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in DATA:
                yield path


def test_no_file_is_too_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in files()
    }
    assert lengths["metatoolkit/problem.py"] > 200 and "scripts/quickstart" in lengths
    assert "metatoolkit/records/report.html" in lengths
    too_long = {name: length for name, length in lengths.items() if length > LONGEST}
    assert not too_long, f"cut at a seam what is longer than {LONGEST} lines: {too_long}"


def test_the_top_of_the_package_holds_what_the_design_names():
    assert {path.name for path in (ROOT / "metatoolkit").iterdir()} - {"__pycache__"} == TOP
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    section = page.partition("## Where things stand")[2].partition("\n## ")[0]
    modules = {name.removesuffix(".py") for name in TOP} - {"__init__", "py.typed"}
    assert not [name for name in sorted(modules) if f"`{name}`" not in section]


def test_every_legend_has_a_place():
    # Matplotlib looks for one among all points, and warns where that takes more than a second.
    calls = [
        (path.relative_to(ROOT).as_posix(), call.lineno, {word.arg for word in call.keywords})
        for path in files()
        if path.suffix == ".py" and "tests" not in path.relative_to(ROOT).parts
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", None) == "legend"
    ]
    assert len(calls) > 10
    assert not [(name, line) for name, line, words in calls if "loc" not in words]
