import pandas
import pytest
from matplotlib.figure import Figure

from metatoolkit.experiments.figures import draw_curves, draw_rows


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
    assert [bar.get_width() for bar in axis.patches] == [2.0, 5.0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [r"\$a", r"b_\$c\$"]
    points = [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "."]
    assert points == [[1.0, 3.0], [5.0]]
    figure.canvas.draw()
