"""A comparison as bars and as a table, from figures that are given."""

import itertools
import math
import os
import shutil
import sys

import pytest

from metatoolkit.diagnostics.comparison_display import align, draw, print_table
from metatoolkit.errors import MissingDependencyError
from tests.drawings import bars, legend, lines

NAN = math.nan
COLUMNS = ["cosine", "relative_error", "mean_cosine", "mean_relative_error"]
COLUMNS += ["forward", "backward", "jvp", "hvp", "residual", "iterations"]
COLUMNS += ["flops", "peak_bytes", "seconds", "note"]


def table_of(**rows):
    return {name: dict(zip(COLUMNS, row, strict=True)) for name, row in rows.items()}


@pytest.fixture
def table():
    return table_of(
        exact=[1.0, 0.0, 1.0, 0.0, 2, 1, 0, 3, NAN, NAN, 5.04, 3 * 2**20, 0.0125, NAN],
        random=[-0.5, 2.5, 0.75, 0.3, 9, 8, 7, 6, NAN, NAN, 12.0, 2**19, 0.5, NAN],
        broken=[NAN] * 13 + ["[no] double backward"],
        unseen=[0.123456, 1e-3, 0.2, 1e-4, 1, 2, 3, 4, NAN, NAN, NAN, NAN, 1e-3, "hidden [2]"],
    )


def test_bars_are_the_figures_of_the_table(table):
    figure = draw(table)
    error, flops, memory, seconds = figure.axes
    # The one that was left out is no bar, and zero is drawn at the rounding of float64.
    assert bars(error) == pytest.approx({"exact": 1e-16, "random": 2.5, "unseen": 1e-3})
    assert bars(flops, error) == pytest.approx({"exact": 5.04, "random": 12.0, "unseen": 0.0})
    assert bars(memory, error) == pytest.approx({"exact": 3.0, "random": 0.5, "unseen": 0.0})
    assert bars(seconds, error) == pytest.approx({"exact": 12.5, "random": 500.0, "unseen": 1.0})
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "relative error of a call",
        "operations [forward passes]",
        "peak memory [MiB]",
        "time of a call [ms]",
    ]
    assert all(axis.get_xscale() == "log" for axis in figure.axes)
    means, places = lines(error)["of the mean over draws"]
    assert means == pytest.approx([1e-16, 0.3, 1e-4]) and places == [0, 1, 2]
    assert legend(error) == ["of the mean over draws"]
    (mark,) = error.lines
    assert (mark.get_marker(), mark.get_linestyle(), mark.get_color()) == ("|", "None", "k")


def test_the_first_row_stands_at_the_top_of_panels_side_by_side(table):
    figure = draw(table)
    assert figure.get_size_inches().tolist() == pytest.approx([14, 1.2 + 0.32 * 3])
    figure.draw_without_rendering()
    for axis in figure.axes:
        below, above = axis.get_ylim()
        assert below > above and below > 2 and above < 0
        assert all(line.get_visible() for line in axis.get_xgridlines())
        assert not any(line.get_visible() for line in axis.get_ygridlines())
    boxes = [axis.get_position() for axis in figure.axes]
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))
    assert len({box.y0 for box in boxes}) == 1
    # Names stand at the first panel, and its label below is inside of the figure.
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(
        bars(figure.axes[0])
    )
    assert boxes[0].y0 > 0.05 and len({axis.get_ylim() for axis in figure.axes}) == 1


def test_nothing_above_zero_has_no_logarithmic_axis():
    row = [NAN] * 13 + ["broken"]
    figure = draw(table_of(one=row, other=row))
    assert [axis.get_xscale() for axis in figure.axes] == ["linear"] * 4
    assert figure.get_size_inches().tolist() == pytest.approx([14, 1.2])
    uncounted = [1.0, 0.5, 1.0, 0.5, 2, 1, 0, 3, NAN, NAN, NAN, NAN, 0.0125, "uncounted"]
    figure = draw(table_of(one=uncounted))
    assert [axis.get_xscale() for axis in figure.axes] == ["log", "linear", "linear", "log"]


def test_the_table_in_a_pipe_is_as_wide_as_it_needs(table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_table(table)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "Hypergradient estimators against the reference",
        "estimator   cosine  rel. error  fwd  bwd  jvp  hvp  FLOPs [F]  peak [MiB]  time [ms]",
        "-" * 84,
        "exact       1.0000     0.0e+00    2    1    0    3        5.0        3.00      12.50",
        "random     -0.5000     2.5e+00    9    8    7    6       12.0        0.50     500.00",
        "unseen      0.1235     1.0e-03    1    2    3    4                              1.00",
        # Notes follow in order, as they are.
        "left out: broken: [no] double backward",
        "unseen: hidden [2]",
    ]


def test_a_terminal_is_not_written_beyond_its_width(table, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(
        shutil, "get_terminal_size", lambda fallback=(80, 24): os.terminal_size((60, 24))
    )
    print_table(table)
    told = capsys.readouterr().out.splitlines()
    assert max(map(len, told)) == 60
    # Cut, not wrapped: a line for each row, one for the head and one below it.
    assert len(told) == 1 + 5 + 2
    assert told[-1] == "unseen: hidden [2]"


def test_a_row_that_holds_nothing_but_a_reason(capsys):
    print_table({"mine": {"note": "does not apply"}})
    assert capsys.readouterr().out.splitlines()[-1] == "left out: mine: does not apply"


def test_columns_are_aligned():
    assert align([["a", "bcd"], ["long", "1"]]) == ["a     bcd", "long    1"]


def test_what_draws_is_an_extra(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "metatoolkit\[plots\]"'):
        draw(table)
