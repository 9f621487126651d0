"""Study of what a meta step costs in each application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metatoolkit.experiments.studies import Claim, Column, Row, Study

if TYPE_CHECKING:
    from pathlib import Path

    import pandas

_MEMORY = Column("memory / base step's", "result.memory_ratio", exact=True)
_FLOPS = Column("FLOPs / base step's", "result.flops_ratio")

# The application's own default where nothing is said; where that is a perceptron, the paper's
# network on images of its size.
SIZES: dict[str, dict[str, Any]] = {
    "label_noise": {"settings": ["paper_sized"]},
    "rotation": {},
    "cross_domain_few_shot": {},
    "cross_lingual": {"settings": ["data.name=generated"]},
}

# As published work takes it; without an argument Unrolled takes what costs less.
_DOUBLE_BACKWARD = {"estimator": "Unrolled", "options": {"product": "reverse_over_reverse"}}


def _rows() -> dict[str, Row]:
    rows = {}
    for application, options in SIZES.items():
        common = {"application": application, **options}
        rows[f"{application}: double backward"] = Row({**common, **_DOUBLE_BACKWARD})
        rows[f"{application}: second order"] = Row({**common, "estimator": "second_order"})
        for estimator, label in (("evograd", "EvoGrad"), ("evograd_streamed", "EvoGrad, streamed")):
            for count in (2, 4, 8):
                updates = {**common, "estimator": estimator, "candidates": count}
                rows[f"{application}: {label}, K={count}"] = Row(updates)
    return rows


def draw(frame: pandas.DataFrame, path: Path) -> None:
    """Draw memory and operations of a meta step as multiples of a base step's.

    Args:
        frame: Frame of the study, see :func:`metatoolkit.experiments.studies.collect`.
        path: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), layout="constrained")
    axes = figure.subplots(2, len(SIZES), squeeze=False)
    for column, application in enumerate(SIZES):
        chosen = frame[frame["row"].str.startswith(f"{application}: ")]
        names = [label.removeprefix(f"{application}: ") for label in chosen["row"]]
        for row, header in enumerate((_MEMORY.header, _FLOPS.header)):
            axis = axes[row][column]
            axis.barh(range(len(chosen)), chosen[header], color="tab:blue", alpha=0.6)
            axis.axvline(1.0, color="black", linewidth=1)
            axis.set_yticks(range(len(chosen)), names if column == 0 else [""] * len(chosen))
            axis.invert_yaxis()
            axis.set(xlabel=header, title=application if row == 0 else "")
    figure.savefig(path, dpi=120)


STUDIES = [
    Study(
        name="meta_step_cost",
        title="One meta step of the four deep experiments: memory and operations",
        experiment="applications.meta_step_cost.experiment",
        rows=_rows(),
        columns=(
            Column("meta step [MiB]", "result.peak_memory_bytes", 2.0**-20),
            Column("base step [MiB]", "result.base_peak_memory_bytes", 2.0**-20),
            _MEMORY,
            Column("meta step [GFLOP]", "result.flops", 1e-9, 3),
            _FLOPS,
        ),
        seeds=(1,),
        draw=draw,
        claims=tuple(
            Claim(
                f"{application}: EvoGrad, streamed, K={count}",
                "below",
                f"{application}: {other}",
                _MEMORY.header,
            )
            for other in ("double backward", "second order")
            for application in SIZES
            for count in (2, 4, 8)
        ),
        note=(
            "Memory is what a call holds at its peak beyond what was there before it, on the CPU "
            "without scratch memory inside kernels. A base step is one step of the inner learner "
            "on a training batch: a forward and a backward pass, and the new state."
        ),
    )
]
