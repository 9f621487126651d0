"""Examples in docstrings and on pages run, and every family of components has one."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import itertools
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import metatoolkit as mt
from metatoolkit.cli import main
from metatoolkit.components.registry import Registry
from metatoolkit.errors import MissingDependencyError
from tests.registries import set_apart

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for package in ("metatoolkit", "applications", "baselines")
    for path in (ROOT / package).rglob("*.py")
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A block that needs a download or a GPU says so in the line before it.
NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n```python\n")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Where the page is run with what it presumes.
ELSEWHERE = {"docs/questions.md": "tests/records/test_questions.py"}
# What is longer on a page than it has to be here.
SHORTER = {
    "steps=10_000": "steps=2",
    "count=1000": "count=2, progress=False",
    "(3, 224, 224)": "(3, 112, 112)",
    "budget=3_000": "budget=2",
    "Fidelity(high=1_500, low=50)": "Fidelity(high=1)",
    "check_estimator(LastStep(steps=2))": "check_estimator(LastStep(steps=2), ['pickled', 'form'])",
}


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> types.ModuleType:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METATOOLKIT_DATA", str(tmp_path / "data"))
    torch.manual_seed(0)
    set_apart(monkeypatch)
    yield
    # The server that a page started.
    if (tmp_path / "home").exists():
        assert main(["db", "stop"]) == 0


WITH_EXAMPLES = [path for path in SOURCES if any(">>> " in text for text in docstrings(path))]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=relative)
def test_examples_in_docstrings_run(path):
    module = module_of(path)
    found = doctest.DocTestFinder().find(module, module.__name__, module)
    written = "\n".join(docstrings(path)).count(">>> ")
    assert sum(len(one.examples) for one in found) == written
    for one in found:
        try:
            doctest.DebugRunner().run(one)
        except doctest.UnexpectedException as failure:
            raised = failure.exc_info[1]
            if isinstance(raised, MissingDependencyError):
                pytest.skip(str(raised))
            raise raised from None
        except doctest.DocTestFailure as failure:
            example = failure.example
            pytest.fail(f"{one.name}: {example.source}wants {example.want}gives {failure.got}")


def components() -> Iterator[tuple[str, Any]]:
    """What can be built by name, of every registry of the package."""
    found = [vars(module_of(path)).values() for path in SOURCES if path.name == "registry.py"]
    for registry in itertools.chain.from_iterable(found):
        for name, component in registry.items() if isinstance(registry, Registry) else ():
            made = getattr(component, "func", component)
            # Tests register components of their own.
            if made.__module__.startswith("metatoolkit."):
                yield f"{registry.kind} {name}", made


def test_every_family_of_components_has_an_example():
    named = dict(components())
    kinds = {name.rpartition(" ")[0] for name in named}
    assert {"estimator", "inner learner", "linear solver", "network", "schedule"} <= kinds
    families = {
        "estimator": mt.hypergradients,
        "inner learner": mt.inner,
        "trainer": importlib.import_module("metatoolkit.training"),
        "problem": mt.BilevelProblem,
        "check": mt.check_hypergradient,
        "comparison": mt.compare_estimators,
        "conformance": importlib.import_module("metatoolkit.testing"),
        "signal and noise": mt.signal_to_noise,
        "loss": mt.losses.cross_entropy,
        "data set": mt.tasks.load_dataset,
        "batches": mt.tasks.Batches,
        "label noise": mt.tasks.corrupt_labels,
        "rotated images": mt.tasks.rotation_task,
        "domains": mt.tasks.default_domains,
        "episodes": mt.tasks.EpisodeBatches,
        "languages": mt.tasks.generated_languages,
        "reviews": mt.tasks.generated_reviews,
        "accuracy": mt.evaluation.accuracy,
        "few-shot accuracy": mt.evaluation.few_shot_accuracy,
    }
    without = [
        name
        for name, described in (named | families).items()
        if ">>> " not in (inspect.getdoc(described) or "")
    ]
    assert not without
    assert "records.connect()" in "".join(BLOCK.findall(PAGES[0].read_text("utf-8")))


def is_python(text: str) -> bool:
    """Whether a text is Python that does something."""
    try:
        tree = ast.parse(inspect.cleandoc(text))
    except SyntaxError:
        return False
    does = ast.Import | ast.ImportFrom | ast.Assign | ast.Call | ast.ClassDef | ast.FunctionDef
    return any(isinstance(node, does) for node in ast.walk(tree))


def test_code_in_docstrings_is_an_example_that_runs():
    for path in SOURCES:
        for text in docstrings(path):
            assert "```" not in text, path
            for section in re.findall(r"^Examples?:\n((?:    .*\n?|\n)+)", text, re.MULTILINE):
                assert section.lstrip().startswith(">>> "), path
            literals = re.findall(r"::\n\n((?: {4}.*\n?|\n)+)", text)
            assert not any(map(is_python, literals)), path


def batches(*shape: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield torch.randn(4, *shape), torch.randint(10, (4,))


def write_sentences(folder: Path) -> None:
    """Lay out the files of two languages, as MasakhaNER has them."""
    for language in ("pcm", "swa"):
        (folder / language).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            lines = (f"Ann{i % 7} B-PER\nsleeps O\n. O\n\n" for i in range(120))
            (folder / language / f"{split}.txt").write_text("".join(lines))


def for_languages() -> dict[str, Any]:
    write_sentences(Path("data/masakhaner"))
    return {"model": lambda batch: batch["labels"].clamp(min=0)}


def for_domains() -> dict[str, Any]:
    return {"score": lambda episode: torch.eye(5).repeat_interleave(15, 0)}


def for_cross_domain() -> dict[str, Any]:
    def images(split: str) -> mt.tasks.ImageSet:
        names = tuple(f"{split} {label}" for label in range(5))
        labels = torch.arange(5).repeat_interleave(20)
        return mt.tasks.ImageSet(torch.rand(100, 3, 112, 112), labels, names)

    return {"domain": mt.tasks.Domain("noise", *map(images, ("train", "valid", "test")))}


def for_choosing() -> dict[str, Any]:
    problem = mt.BilevelProblem(
        mt.networks.MLP(4, (3,), 10),
        mt.metaparameters.WeightNet(),
        mt.losses.weighted_cross_entropy,
        mt.losses.cross_entropy,
    )
    source, inner = batches(4), mt.inner.SGD(lr=0.1)
    optimizer = torch.optim.Adam(problem.meta.parameters())
    return {
        "problem": problem,
        "inner": inner,
        "trainer": mt.MetaTrainer(problem, inner, mt.hypergradients.OneStep(), optimizer),
        "train_batches": [next(source) for _ in range(10)],
        "valid_batch": next(source),
        "train_loader": source,
        "valid_loader": source,
    }


def for_extending() -> dict[str, Any]:
    """The names of a module that can be imported, as the file of a component can."""
    module = types.ModuleType("extending_page")
    sys.modules[module.__name__] = module
    return vars(module)


def for_readme() -> dict[str, Any]:
    return {"train_batches": batches(3, 32, 32), "valid_batches": batches(3, 32, 32)}


# What a page leaves to its reader.
PRESUMED: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": for_readme,
    "docs/choosing.md": for_choosing,
    "docs/cross_domain_few_shot.md": for_cross_domain,
    "docs/domains.md": for_domains,
    "docs/extending.md": for_extending,
    "docs/languages.md": for_languages,
}
WITH_CODE = [path for path in PAGES if BLOCK.search(path.read_text("utf-8"))]


@pytest.mark.parametrize("path", WITH_CODE, ids=relative)
def test_code_on_pages_runs(path):
    page, text = relative(path), path.read_text("utf-8")
    if page in ELSEWHERE:
        assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text("utf-8")
        return
    names = PRESUMED.get(page, dict)()
    for block in BLOCK.findall(NOT_RUN.sub("```\n", text)):
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        try:
            exec(compile(block, page, "exec"), names)
        except MissingDependencyError as error:
            pytest.skip(str(error))
    if "runs" in names:
        names["runs"].close()


def test_few_blocks_are_not_run():
    """Each says why, and there are as many as are counted here."""
    found = {relative(path): NOT_RUN.findall(path.read_text("utf-8")) for path in PAGES}
    assert {page: reasons for page, reasons in found.items() if reasons} == {}


def test_python_on_pages_is_marked_as_such():
    for path in PAGES:
        rest = BLOCK.sub("", path.read_text("utf-8"))
        fenced = re.findall(r"^```(?!python$).*?\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
        indented = re.findall(r"\n\n((?: {4}.*\n)+)", rest)
        assert not any(map(is_python, [*fenced, *indented])), path


def test_what_is_python_and_what_is_none():
    assert is_python("    import a\n    a.b()") and is_python("x = 1") and is_python("f(x)")
    for text in ("scripts/test", "metatoolkit runs list", "[a]\nb =\n    C = d:C", "A sentence."):
        assert not is_python(text)
