"""Studies of the illustration: one for each figure."""

from __future__ import annotations

from applications.illustration import figures
from applications.illustration.settings import DEFAULT
from metatoolkit.experiments.studies import Column, Row, Study

_EXPERIMENT = "applications.illustration.experiment"
_SOURCE = "Bohdal et al. 2021, arXiv 2106.10575, notebook of the one-dimensional illustration"
_COUNTS = DEFAULT["candidates"]


def _columns(kinds: dict[str, str]) -> tuple[Column, ...]:
    return tuple(
        Column(f"{words}, K = {count}", f"result.{kind}_k{count}", digits=4)
        for kind, words in kinds.items()
        for count in _COUNTS
    )


GRADIENTS = Study(
    name="illustration_gradients",
    title="One parameter: EvoGrad's estimate against the true hypergradient",
    experiment=_EXPERIMENT,
    rows={
        "EvoGrad": Row(
            named=("gradients",),
            published={
                "bias, K = 2": "0.0851",
                "bias, K = 10": "0.0472",
                "bias, K = 100": "0.0486",
                "deviation, K = 2": "0.2912",
                "deviation, K = 10": "0.1244",
                "deviation, K = 100": "0.0718",
            },
        )
    },
    columns=_columns({"bias": "bias", "std": "deviation"}),
    # The seed of the notebook.
    seeds=(1,),
    draw=figures.draw_gradients,
    source=_SOURCE,
    note=(
        "Mean over λ of the absolute bias and of the standard deviation over 100 draws. The "
        "published numbers are computed from the notebook's printed curves."
    ),
)

TRAJECTORIES = Study(
    name="illustration_trajectories",
    title="One parameter: distance of EvoGrad's trajectories from the true ones after five steps",
    experiment=_EXPERIMENT,
    rows={"EvoGrad": Row(named=("trajectories",))},
    columns=_columns({"distance": "distance"}),
    seeds=(1,),
    draw=figures.draw_trajectories,
    source=_SOURCE,
    note="The true trajectories follow the hypergradient at their own λ.",
)

BIAS_VARIANCE = Study(
    name="illustration_bias_variance",
    title="One parameter: absolute bias of estimators, mean over λ",
    experiment=_EXPERIMENT,
    rows={"at x ~ N(0, 1)": Row(named=("bias_variance",))},
    columns=tuple(
        Column(label, f"result.bias: {label}", digits=4)
        for label in (
            "EvoGrad, K = 10",
            "Unrolled, 1 step",
            "Unrolled, 25 steps",
            "Implicit, 25 steps",
            "SOBA, 25 calls",
            "EvolutionStrategies, 25 steps",
        )
    ),
    seeds=(1,),
    draw=figures.draw_bias_variance,
    note="All estimators, with their deviations, are in the figure and in the run's metrics.",
)

STUDIES = [GRADIENTS, TRAJECTORIES, BIAS_VARIANCE]
