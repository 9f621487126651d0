"""A comparison as points and as a table, from figures that are given."""

import math
import os
import shutil
import sys

import numpy as np
import pytest

from metatoolkit.diagnostics.comparison_display import align, draw, print_table
from metatoolkit.errors import MissingDependencyError
from tests.drawings import legend, points

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


def test_points_are_the_figures_of_the_table(table):
    figure = draw(table)
    seconds, flops, memory = figure.axes
    # The one that was left out is no point, and zero is drawn at the rounding of float64.
    errors = [1e-16, 2.5, 1e-3]
    for axis, costs in (
        (seconds, [12.5, 500, 1]),
        (flops, [5.04, 12, NAN]),
        (memory, [3, 0.5, NAN]),
    ):
        found = np.array(points(axis))
        assert found[:, 0] == pytest.approx(costs, nan_ok=True)
        assert found[:, 1] == pytest.approx(errors)
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "time of a call [ms]",
        "operations [forward passes]",
        "peak memory [MiB]",
    ]
    assert {(axis.get_xscale(), axis.get_yscale()) for axis in figure.axes} == {("log", "log")}
    assert legend(figure) == ["exact", "random", "unseen"]
    assert seconds.get_ylabel() == "relative error of a call"
    # Means over draws, where they are not the error itself.
    means = [line for line in seconds.lines if line.get_marker() == "_"]
    assert [float(line.get_ydata()[0]) for line in means] == [0.3, 1e-4]
    assert [line.get_color() for line in means] == ["C1", "C2"]


def test_intervals_are_lines_through_points(table):
    table["random"] |= {"relative_error_interval": (0.5, 3.5), "seconds_interval": (0.4, 0.7)}
    seconds, flops, _ = draw(table).axes
    exact, random, _ = seconds.containers
    assert not (exact.has_xerr or exact.has_yerr)
    across, along = (one.get_segments()[0].tolist() for one in random[2])
    assert np.array(across) == pytest.approx(np.array([[400, 2.5], [700, 2.5]]))
    assert np.array(along) == pytest.approx(np.array([[500, 0.5], [500, 3.5]]))
    assert flops.containers[1].has_yerr and not flops.containers[1].has_xerr


def test_many_rows_are_told_apart():
    row = [1.0, 0.5, 1.0, 0.5, 2, 1, 0, 3, NAN, NAN, 5.0, 2**20, 0.01, NAN]
    figure = draw(table_of(**{f"row {number}": row for number in range(40)}))
    marks = [container[0] for container in figure.axes[0].containers]
    assert len({(mark.get_color(), mark.get_marker()) for mark in marks}) == 40
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0 and box.y1 <= figure.bbox.height
    assert len({axis.get_position().y0 for axis in figure.axes}) == 1


def test_nothing_above_zero_has_no_logarithmic_axis():
    row = [NAN] * 13 + ["broken"]
    figure = draw(table_of(one=row, other=row))
    assert [axis.get_xscale() for axis in figure.axes] == ["linear"] * 3
    uncounted = [1.0, 0.5, 1.0, 0.5, 2, 1, 0, 3, NAN, NAN, NAN, NAN, 0.0125, "uncounted"]
    figure = draw(table_of(one=uncounted))
    assert [axis.get_xscale() for axis in figure.axes] == ["log", "linear", "linear"]


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
