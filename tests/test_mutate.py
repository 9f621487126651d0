"""Mutation testing of a toy module: which mistakes are made, and which of them are noticed."""

import mmap
import random
import textwrap
from pathlib import Path

import pytest

from scripts import mutation, mutation_report, mutation_suites

ROOT = Path(__file__).parents[1]
SOURCE = """\
'''A toy.'''

def area(width: float, height: float) -> float:
    '''Return the area.'''
    if width < 0:
        raise ValueError('width is negative')
    return width * height

def idle(steps: int) -> int:
    while steps > 0:
        steps = steps - 1
    return steps
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package with one module and its tests, in the working directory."""
    (tmp_path / "toy_of_mutation").mkdir()
    (tmp_path / "toy_of_mutation" / "values.py").write_text(SOURCE)
    test = """
        from toy_of_mutation.values import area, idle

        def test_area():
            assert area(3, 4) == 12
            assert idle(3) == 0
    """
    (tmp_path / "test_values.py").write_text(textwrap.dedent(test))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "toy_of_mutation/values.py"


def changed(toy, old, new):
    source = SOURCE.replace(old, new)
    assert source != SOURCE
    return mutation.Mutant(toy, source, f"@@ -1 +1 @@\n-    {old}\n+    {new}")


def test_addresses_that_the_process_has_already_are_not_counted(toy, tmp_path):
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, 17 * mutation.GIB, flags=flags, prot=mmap.PROT_READ):
        suite = tmp_path / "test_large.py"
        suite.write_text("def test_large():\n    assert len(bytearray(2**26)) == 2**26\n")
        assert mutation.warm_up([[str(suite)]], toy, tmp_path)


def test_mistakes_are_noticed_or_not(toy, tmp_path, capfd):
    queue = [
        changed(toy, "width * height", "width / height"),
        changed(toy, "width < 0", "width <= 0"),
        changed(toy, "steps - 1", "steps + 1"),
    ]
    suites = [[str(tmp_path / "test_values.py")]]
    times = mutation.warm_up(suites, toy, tmp_path)
    assert list(times) == [tuple(suites[0])]
    found = mutation.examine(queue, suites, dict.fromkeys(times, -6), jobs=2)
    statuses = {mutant.source: status for mutant, status in found}
    assert [statuses[mutant.source] for mutant in queue] == ["killed", "survived", "timeout"]
    assert capfd.readouterr() == ("", "")


def test_tests_that_fail_by_themselves_are_told(toy, tmp_path):
    (tmp_path / "test_values.py").write_text("def test():\n    assert False\n")
    with pytest.raises(SystemExit, match="fail without a mutant"):
        mutation.warm_up([[str(tmp_path / "test_values.py")]], toy, tmp_path)


def test_report(toy, tmp_path):
    killed, survived, same = (
        changed(toy, "width * height", other) for other in ("0", "height", "height * width")
    )
    judged = [{"module": toy, "change": same.change, "reason": "a product commutes"}]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{mutation_report.BEGIN}\nold\n{mutation_report.END}\nafter\n")
    results = [(killed, "killed"), (survived, "survived"), (same, "survived")]
    mutation_report.write_report(results, judged, tmp_path / "report.md", page)
    row = f"| `{toy}` | 3 | 1 | 1 | 1 | 50.0% |"
    report = (tmp_path / "report.md").read_text()
    assert row in report and survived.diff in report and same.diff not in report
    text = page.read_text()
    assert row in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")


def test_the_mistakes_that_are_made(toy):
    pytest.importorskip("mutmut", reason="the extra `mutation` is not installed")
    found = mutation.mutants(toy)
    changes = {tuple(mutant.change) for mutant in found}
    product = "return width * height"
    assert (f"-{product}", "+return width / height") in changes
    assert ("-if width < 0:", "+if width <= 0:") in changes
    assert ("-if width < 0:", "+if not (width < 0):") in changes
    text = str(changes)
    assert "negative" not in text and "float" not in text and "toy." not in text.lower()
    few = mutation.mutants(toy, 4, 1)
    assert len(few) == 4 and {mutant.key for mutant in few} <= {mutant.key for mutant in found}
    assert few == mutation.mutants(toy, 4, 1) != mutation.mutants(toy, 4, 2)


def test_arguments_and_methods_are_forgotten():
    pytest.importorskip("mutmut", reason="the extra `mutation` is not installed")
    from scripts.mutation_operators import mutated_sources

    source = "def f(x, k, s):\n    return g(x.detach(), fold(k, s), rows[-1], strict=True)\n"
    found = mutated_sources(source, None, random.Random(0))
    for text in ("g(x, fold(k, s)", "fold(k, )", "fold(s)", "rows[0]"):
        assert any(text in mutated for mutated in found), text
    assert all("strict=True" in mutated or "return g" not in mutated for mutated in found)


def test_every_module_of_the_core_has_tests_that_mirror_it():
    paths = [ROOT / "metatoolkit" / name for name in mutation.CORE]
    files = [f for p in paths for f in ([p] if p.is_file() else sorted(p.rglob("*.py")))]
    assert len(files) > 50
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        for suite in mutation_suites.suites_of(path):
            assert all((ROOT / name).exists() for name in suite if name.endswith(".py")), path


def test_estimators_are_conformant_under_mutation_whatever_their_file_is_called(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = Path("metatoolkit/hypergradients/new_one.py")
    file.parent.mkdir(parents=True)
    file.write_text("@estimators.register()\nclass Newest(Estimator):\n    pass\n")
    conformance = [mutation_suites.CONFORMANCE, "-k", "Newest"]
    assert mutation_suites.suites_of(file.as_posix()) == [conformance]
    file.write_text("class Part:\n    pass\n")
    assert mutation_suites.suites_of(file.as_posix()) == []


def test_each_mutant_that_changes_nothing_is_one_of_a_line_that_there_is():
    listed = mutation_report.equivalents()
    assert len({(entry["module"], *entry["change"]) for entry in listed}) == len(listed) > 20
    for entry in listed:
        lines = [line.strip() for line in (ROOT / entry["module"]).read_text().splitlines()]
        removed = [change[1:] for change in entry["change"] if change.startswith("-")]
        assert len(removed) < len(entry["change"]) and len(entry["reason"]) > 10
        for text in removed:
            assert any(text in line for line in lines), entry
