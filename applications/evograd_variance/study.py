"""Study of EvoGrad's error against the number of candidates and how they are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from applications.evograd_variance.experiment import COUNTS
from metatoolkit.experiments.studies import Column, Row, Study

if TYPE_CHECKING:
    from pathlib import Path

    import pandas

_WHEN = ("early", "late")


def draw(frame: pandas.DataFrame, path: Path) -> None:
    """Draw the mean over seeds of the relative mean square error against K.

    Args:
        frame: Frame of the study, see :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, when in zip(axes, _WHEN, strict=True):
        for label, part in frame.groupby("row", sort=False):
            errors = [part[f"{when}, K = {number}"].mean() for number in COUNTS]
            axis.plot(COUNTS, errors, "o-", label=label)
        axis.set(xscale="log", yscale="log", xlabel="candidates K", title=when)
        axis.set_xticks(COUNTS, [str(number) for number in COUNTS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative mean square error")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
    figure.savefig(path, dpi=120)


STUDIES = [
    Study(
        name="evograd_variance",
        title="Label noise: mean square error of EvoGrad's hypergradient, relative to its square",
        experiment="applications.evograd_variance.experiment",
        rows={
            "independent, own constants (published)": Row({"constants": "own"}),
            "independent": Row(),
            "antithetic": Row({"directions": "antithetic"}),
            "orthogonal": Row({"directions": "orthogonal"}),
            "span of the last 4 outer gradients": Row({"directions": "span"}),
            "last outer gradient, rest at random": Row({"directions": "last_gradient"}),
            "guided (passes of K = 2)": Row({"directions": "guided"}),
            "exact, averaged over 5 steps": Row({"directions": "averaged"}),
        },
        columns=tuple(
            Column(f"{when}, K = {number}", f"result.{when}_k{number}", digits=4, spread=False)
            for when in _WHEN
            for number in COUNTS
        ),
        seeds=(31,),
        draw=draw,
        note=(
            "An estimate of zero has the error 1. After 30 and after 600 steps of training by "
            "second order. Candidates share what the loss detaches, except in the first row."
        ),
    )
]
