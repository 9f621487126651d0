import pandas
import pytest
from matplotlib.figure import Figure

from metatoolkit.experiments.claims import paired_difference
from metatoolkit.experiments.figures import draw_curves, draw_differences, draw_rows, spans_decades
from tests.drawings import bars


@pytest.mark.parametrize("name", ["$loss", "$a$_loss", "_$x"])
def test_curves_are_drawn_whatever_their_metrics_are_called(name, tmp_path):
    history = [(name, 1.0, 0), (name, 0.5, 10), ("test_accuracy", 0.1, 0)]
    assert draw_curves(history, tmp_path / "curves.png").stat().st_size > 1000


def test_rows_are_drawn_with_mean_deviation_and_seeds():
    frame = pandas.DataFrame(
        {"row": ["$a", "$a", "b_$c$"], "score [$]": [1.0, 3.0, 5.0]}
    )  # fmt: skip
    figure = Figure()
    axis = figure.add_subplot()
    draw_rows(axis, frame, "score [$]")
    means, _, (deviations,) = axis.containers[0]
    assert means.get_xdata().tolist() == [2.0, 5.0]
    widths = [abs(line[1, 0] - line[0, 0]) for line in deviations.get_segments()]
    assert widths == pytest.approx([2 * 2**0.5, 0.0])
    assert [label.get_text() for label in axis.get_yticklabels()] == [r"\$a", r"b_\$c\$"]
    points = [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "."]
    assert points == [[1.0, 3.0], [5.0]]
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.08, 500.0, float("nan")], True),
        ([0.1, 9.9], False),
        ([0.0, 500.0], False),
        ([-1.0, 500.0], False),
        ([0.1, float("inf")], False),
        ([], False),
    ],
)
def test_rows_of_which_one_would_hide_the_others_are_drawn_by_their_logarithms(values, expected):
    assert spans_decades(values) == expected
    axis = Figure().add_subplot()
    draw_rows(axis, pandas.DataFrame({"row": "a", "error": values or [1.0]}), "error")
    assert axis.get_xscale() == ("log" if expected else "linear")


def test_differences_are_drawn_with_their_intervals_beside_costs(tmp_path, drawn):
    scores = {"exact": [90.0, 92.0, 94.0], "$cheap": [89.5, 92.5, 93.0], "single": [80.0]}
    costs = {"exact": 10.0, "$cheap": 5.0, "single": 2.5}
    lines = [
        {"row": row, "seed": seed, "score": value, "cost": costs[row]}
        for row, values in scores.items()
        for seed, value in enumerate(values)
    ]
    frame = pandas.DataFrame(lines)
    draw_differences(frame, tmp_path / "differences.png", "exact", "score", ["cost"], margin=1.0)
    left, right = drawn.axes("differences.png", tmp_path)
    found = paired_difference(frame, "$cheap", "exact", "score")
    (cheap, caps, (bar,)), (single, _, without) = left.containers
    assert cheap.get_xdata() == [found.mean] and cheap.get_ydata() == [1]
    (ends,) = bar.get_segments()
    assert ends[:, 0].tolist() == pytest.approx([found.low, found.high]) and len(caps) == 2
    assert single.get_xdata() == [-10.0] and not without
    assert bars(right, left) == {"exact": 1.0, r"\$cheap": 0.5, "single": 0.25}
