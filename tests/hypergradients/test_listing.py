"""The list of all estimators: which, in what order, and how it is printed."""

import inspect

import pytest

from metatoolkit import hypergradients
from metatoolkit.cli.estimators import list_estimators
from metatoolkit.hypergradients import EvoGrad, Implicit, PersistentES
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.listing import all_estimators

PARTS = ["kind", "computes", "assumes", "passes", "memory", "paper"]


@pytest.fixture
def printed(monkeypatch, capsys):
    def run(width, **variables):
        for name, value in {"COLUMNS": str(width), **variables}.items():
            monkeypatch.setenv(name, value)
        assert list_estimators(None) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_all_that_can_be_made_by_name_exact_ones_first():
    found = all_estimators()
    assert {"EvoGrad": EvoGrad, "Implicit": Implicit, "PersistentES": PersistentES}.items() <= (
        found.items()
    )
    assert all(name == kind.__name__ for name, kind in found.items())
    assert all(issubclass(kind, Estimator) for kind in found.values())
    assert not any(inspect.isabstract(kind) for kind in found.values())
    # Solvers and results are exported beside them, and what is abstract is none.
    assert "GMRES" in vars(hypergradients) and not {"GMRES", "Estimator"} & set(found)
    kinds = [kind.traits.kind for kind in found.values()]
    groups = list(dict.fromkeys(kinds))
    assert groups == ["exact", "iterative", "approximate", "stochastic"]
    by_hand = [
        name
        for group in groups
        for name in sorted(name for name, kind in found.items() if kind.traits.kind == group)
    ]
    assert list(found) == by_hand


def test_each_with_its_traits_in_three_columns(printed):
    lines = printed(250)
    width = max(map(len, all_estimators())) + 2
    expected = []
    for name, kind in all_estimators().items():
        words = [getattr(kind.traits, part) for part in PARTS]
        for place, (part, text) in enumerate(zip(PARTS, words, strict=True)):
            expected.append(f"{name if place == 0 else '':{width}}{part:10}{text}")
        expected.append("")
    expected.append("F is one forward pass over one training batch.")
    assert [line.rstrip() for line in lines] == expected


def test_a_narrow_terminal_folds_the_words_alone(printed):
    lines = printed(44)
    names = {line.split()[0] for line in lines if line[:1].strip()}
    assert set(all_estimators()) <= names
    assert sum(" computes" in line for line in lines) == len(all_estimators())
    told = " ".join(lines)
    assert "…" not in told and max(map(len, lines)) <= 46


def test_words_that_are_too_long_are_folded(printed):
    lines = printed(40)
    width = max(map(len, all_estimators())) + 2
    texts = [text for kind in all_estimators().values() for text in vars(kind.traits).values()]
    *rows, _, _ = lines
    # Some words are longer than what is left, and no letter is lost.
    assert any(len(word) > 40 - width - 10 for text in texts for word in text.split())
    assert "".join(line[width + 10 :] for line in rows).replace(" ", "") == "".join(texts).replace(
        " ", ""
    )


def test_names_stand_out_on_a_terminal(printed):
    lines = printed(250, FORCE_COLOR="1", TERM="xterm-256color")
    (line,) = [line for line in lines if "Unrolled" in line and "kind" in line]
    assert line.startswith("\x1b[1mUnrolled") and "\x1b[2mkind" in line
