"""Figures and columns of the illustration's studies."""

import dataclasses

import pytest

from applications.illustration.study import BIAS_VARIANCE, GRADIENTS, TRAJECTORIES
from metatoolkit import records
from metatoolkit.experiments.jobs import run_job
from metatoolkit.experiments.studies import collect, jobs_of
from tests.drawings import legend, lines


def shows_gradients(axes, run):
    counts = run.config["candidates"]
    assert [axis.get_title() for axis in axes] == [f"K = {count}" for count in counts]
    for axis, count in zip(axes, counts, strict=True):
        shown = lines(axis)
        for label, metric in {
            "EvoGrad, mean": f"mean_k{count}",
            "mean for K → ∞": "limit",
            "true hypergradient": "true_hypergradient",
        }.items():
            assert shown[label] == (run.metrics["penalty"].tolist(), run.metrics[metric].tolist())
        (band,) = axis.collections
        mean, std = run.metrics[f"mean_k{count}"], run.metrics[f"std_k{count}"]
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx((mean + std).max())
        assert heights.min() == pytest.approx((mean - std).min())
    assert legend(axes[0])[0] == "EvoGrad, mean"


def shows_trajectories(axes, run):
    counts, starts = run.config["candidates"], run.config["starts"]
    assert [axis.get_title() for axis in axes] == [f"K = {count}" for count in counts]
    for axis, count in zip(axes, counts, strict=True):
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
        expected = [
            tuple(run.metrics[f"{part}_{kind}_start{index}"].tolist() for part in ("x", "penalty"))
            for index in range(len(starts))
            for kind in ("truth", f"k{count}")
        ]
        assert drawn == expected
        assert (axis.get_xlabel(), axis.get_xlim(), axis.get_ylim()) == ("x", (-2, 2), (0, 2))


def shows_bias_and_variance(axes, run):
    *sweeps, bias, deviation = axes
    for axis, name in zip(sweeps, ("candidates", "sigma", "temperature"), strict=True):
        shown, values = lines(axis), run.metrics[f"{name}_value"].tolist()
        assert shown["bias"] == (values, run.metrics[f"{name}_bias"].tolist())
        assert shown["deviation"] == (values, run.metrics[f"{name}_std"].tolist())
    for axis, kind in ((bias, "bias"), (deviation, "std")):
        names = [text.get_text() for text in bias.get_yticklabels()]
        widths = [bar.get_width() for bar in axis.patches]
        assert widths == [float(run.metrics[f"{kind}: {name}"].iloc[-1]) for name in names]
    # The least biased stands first.
    widths = [bar.get_width() for bar in bias.patches]
    assert widths == sorted(widths) and len(widths) > 5


CHECKS = {
    GRADIENTS.name: shows_gradients,
    TRAJECTORIES.name: shows_trajectories,
    BIAS_VARIANCE.name: shows_bias_and_variance,
}


@pytest.mark.parametrize("study", [GRADIENTS, TRAJECTORIES, BIAS_VARIANCE], ids=lambda s: s.name)
def test_figures_are_drawn_from_the_records(study, tmp_path, drawn):
    rows = {
        label: dataclasses.replace(row, named=(*row.named, "smoke"))
        for label, row in study.rows.items()
    }
    small = dataclasses.replace(study, rows=rows)
    jobs = jobs_of(small)
    for job in jobs:
        assert not run_job(job).error
    with records.connect() as database:
        frame = collect(small, jobs, database)
        assert len(frame) == 1
        small.draw(frame, tmp_path / "figure.png")
        CHECKS[study.name](drawn.axes("figure.png", tmp_path), frame["run"].iloc[0])


def test_columns_of_the_studies_are_recorded(tmp_path):
    job = dataclasses.replace(jobs_of(GRADIENTS)[0], updates={"trials": 2})
    given = run_job(job).result
    for column in GRADIENTS.columns:
        assert column.path.removeprefix("result.") in given
    assert set(next(iter(GRADIENTS.rows.values())).published) == {
        c.header for c in GRADIENTS.columns
    }
