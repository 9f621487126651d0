import warnings

import numpy as np
import pytest
from matplotlib.image import imread

from metatoolkit.errors import UnknownNameError
from metatoolkit.records.comparison import Comparison, literal

from .fakes import fake_run


def test_no_text_is_read_as_a_formula_or_left_out():
    assert literal("a $x$ b") == r"a \$x\$ b"
    assert literal("_hidden") == "\u200b_hidden"
    assert literal("plain_name") == "plain_name"


def study(methods=("plain", "second_order", "evograd", "evograd2"), seeds=range(5), **more):
    """Runs as the README's study makes them: many entries differ with the method."""
    runs = []
    for number, method in enumerate(methods):
        for seed in seeds:
            config = {"seed": seed, "method": method.rstrip("2"), "lr": 0.1 / (number + 1)}
            config |= {"evograd": {"rescale": method[-1] != "2"}, "network": {"name": "m" * 90}}
            config |= {"checkpoint": f"/a/long/path/{len(runs)}", **more}
            values = [number + seed / 10 + 1 / step for step in range(1, 30)]
            runs.append(fake_run(len(runs), config, metrics={"loss": values}))
    return runs


def ink(path):
    """Columns of the picture in which the axes stand: where the grid's frame is drawn."""
    picture = imread(path)[..., :3]
    dark = (picture < 0.25).all(axis=2)
    full = dark.mean(axis=1) > 0.2
    line = dark[np.flatnonzero(full)[0]]
    return np.ptp(np.flatnonzero(line)) / picture.shape[1], picture.shape


def test_labels_are_the_shortest_that_tell_apart():
    comparison = Comparison(study(), "loss")
    assert [label for label, _ in comparison._groups("seed")] == [
        "lr=0.1", "lr=0.05", "lr=0.033333", "lr=0.025"
    ]  # fmt: skip
    assert {curves.shape for _, curves in comparison._groups("seed")} == {(29, 5)}
    labels = [label for label, _ in comparison._groups(None)]
    assert labels[:6] == [*(f"{n}: lr=0.1" for n in range(5)), "5: lr=0.05"]


def test_curves_are_averaged_where_configurations_agree_however_they_are_labeled():
    runs = study(methods=["m" * 60 + end for end in ("a", "b")])
    for run in runs:
        run.document["config"]["lr"] = 1
    groups = Comparison(runs, "loss")._groups("config.seed")
    assert [curves.shape for _, curves in groups] == [(29, 5), (29, 5)]
    (both,) = Comparison(runs, "loss")._groups(["seed", "method", "evograd"])
    assert both[0] == "fake" and both[1].shape == (29, 10)
    with pytest.raises(UnknownNameError, match="Did you mean 'seed'"):
        Comparison(runs, "loss")._groups("sed")


@pytest.mark.parametrize(
    ("runs", "over"),
    [
        (study(), "seed"),
        (study(), None),
        (study(methods=[f"a method of some length {n}" for n in range(40)]), None),
    ],
)
def test_the_legend_leaves_the_curves_their_room(runs, over, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Comparison(runs, "loss").plot(tmp_path / "curves.png", over=over)
    share, (height, width, _) = ink(path)
    # Seven inches and a legend beside them, whatever it holds.
    assert share * width > 0.8 * 7 * 150 and height == 675


def test_signs_of_formulas_are_drawn_as_they_are(tmp_path):
    runs = [
        fake_run(n, {"seed": 1, "note": note}, metrics={"$loss": [1.0, 2.0]})
        for n, note in enumerate(("$x", "costs $5 and $6", r"\frac $", "_$_", "{$}^"))
    ]
    drawn = Comparison(runs, "$loss")._draw(Comparison(runs, "$loss")._groups("seed"), False, False)
    labels = [entry.get_text() for entry in drawn.axes[0].get_legend().get_texts()]
    assert labels[1] == r"note=costs \$5 and \$6" and len(labels) == 5
    assert Comparison(runs, "$loss").plot(tmp_path / "a.svg").stat().st_size > 1000


def test_runs_whose_id_is_a_dictionary_are_drawn_and_compared():
    ids = [{"host": "a", "n": 1}, {"host": "a", "n": 2}]
    runs = [fake_run(one, {"seed": one["n"]}, metrics={"loss": [1.0]}) for one in ids]
    comparison = Comparison(runs, "loss")
    assert list(comparison.differences().columns) == [str(one) for one in ids]
    assert len(comparison._groups(None)) == 2
