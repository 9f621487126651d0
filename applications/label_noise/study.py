"""Studies of the label noise application."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from applications.label_noise import figures
from metatoolkit.experiments.by_application import estimator_study
from metatoolkit.experiments.studies import SIGNAL, Claim, Column, Row, Study

_EXPERIMENT = "applications.label_noise.experiment"
_ACCURACY = Column("test accuracy [%]", "result.test_accuracy", 100.0)
_MEMORY = Column("meta step [MiB]", "info.peak_memory_bytes", 2.0**-20, 2, exact=True)
_TIME = Column("ms/step", "info.milliseconds_per_step", 1.0, 1, spread=False)


def _named(name: str, **options: Any) -> dict[str, Any]:
    """Return the entries that choose an estimator by its name; the rest is second order's."""
    return {"method": "meta", "estimator": {"name": name, **options}}


COMPARISON = Study(
    name="label_noise",
    title="Digits, 40 % flip noise: test accuracy after the last step",
    experiment=_EXPERIMENT,
    rows={
        "second order": Row(
            {"method": "second_order"}, published={_ACCURACY.header: "87.54 ± 0.23"}
        ),
        "finite difference": Row(_named("FiniteDifference")),
        "EvoGrad, rescaled": Row({"method": "evograd"}),
        "EvoGrad, common constants": Row(_named("EvoGrad", sigma=2.3e-3, constants="common")),
        "EvoGrad, guided": Row(_named("GuidedEvoGrad")),
        "EvoGrad, paper's scale": Row(named=("paper_scale",)),
        "plain training": Row({"method": "plain"}, published={_ACCURACY.header: "70.77 ± 2.31"}),
        "uniform weights": Row({"method": "uniform_weights"}),
        "frozen weights": Row({"method": "frozen_weights"}),
    },
    columns=(
        _ACCURACY,
        Column("weight, clean", "result.weight_clean", spread=False),
        Column("weight, corrupted", "result.weight_corrupted", spread=False),
        Column("λ moved", "result.lambda_distance", spread=False),
        SIGNAL,
        _TIME,
    ),
    # No choice was made on these.
    seeds=tuple(range(31, 41)),
    usual_seeds=5,
    draw=figures.draw_comparison,
    claims=(
        Claim("second order", "above", "plain training", _ACCURACY.header),
        Claim("finite difference", "level", "second order", _ACCURACY.header, margin=1.0),
        Claim("EvoGrad, guided", "level", "second order", _ACCURACY.header, margin=1.0),
        Claim("EvoGrad, rescaled", "above", "plain training", _ACCURACY.header),
        Claim("EvoGrad, rescaled", "above", "uniform weights", _ACCURACY.header),
        Claim("EvoGrad, rescaled", "level", "second order", _ACCURACY.header, margin=1.0),
        Claim("EvoGrad, common constants", "level", "second order", _ACCURACY.header, margin=1.0),
    ),
    source="Shu et al. 2019 (Meta-Weight-Net): CIFAR-10, 40 % flip noise, ResNet-32",
    note="The published numbers are for the protocol that `with cifar10` runs.",
)

MNIST5000 = Study(
    name="label_noise_mnist5000",
    title="5,000 images of MNIST, 40 % flip noise: test accuracy after the last step",
    experiment=_EXPERIMENT,
    rows={
        label: replace(COMPARISON.rows[label], named=("mnist5000",), published={})
        for label in COMPARISON.rows
        if label not in ("frozen weights", "EvoGrad, paper's scale")
    },
    columns=COMPARISON.columns,
    seeds=COMPARISON.seeds[:5],
    draw=figures.draw_comparison,
    claims=COMPARISON.claims,
    note="Every setting is the one tuned on the 8 × 8 digits; none was tuned on these images.",
    # Its images are an optional dependency.
    usual_seeds=0,
)


# As published work takes it; without an argument Unrolled takes what costs less.
_DOUBLE_BACKWARD = {"name": "Unrolled", "product": "reverse_over_reverse"}
_SCALED: dict[str, dict[str, Any]] = {
    "plain training": {"method": "plain"},
    "double backward": {"method": "meta", "estimator": _DOUBLE_BACKWARD},
    "second order": {"method": "second_order"},
    "EvoGrad": {"method": "evograd"},
}


def _scaling_rows() -> dict[str, Row]:
    rows = {}
    for label, updates in _SCALED.items():
        for width in (1, 2, 3, 4):
            rows[f"{label}, width {width}"] = Row(updates, ("scaling", f"width_{width}"))
        if updates["method"] == "plain":
            continue
        for c in (1, 10, 100):
            named = ("scaling", f"weight_net_{c}")
            rows[f"{label}, weight net {100 * c}"] = Row(updates, named)
    for count in (2, 4, 8):
        named = ("scaling", f"candidates_{count}")
        rows[f"EvoGrad, candidates {count}"] = Row({"method": "evograd"}, named)
    return rows


SCALING = Study(
    name="label_noise_scaling",
    title="Meta-Weight-Net on ResNet-32: memory and time against sizes",
    experiment=_EXPERIMENT,
    rows=_scaling_rows(),
    columns=(
        _MEMORY,
        Column("base step [MiB]", "info.base_peak_memory_bytes", 2.0**-20),
        Column("meta step [GFLOP]", "info.flops", 1e-9, exact=True),
        Column("base step [GFLOP]", "info.base_flops", 1e-9),
        Column("meta step [ms]", "info.seconds_of_meta_step", 1e3, 1),
    ),
    seeds=(1,),
    draw=figures.draw_scaling,
    claims=tuple(
        Claim(f"EvoGrad, width {width}", "below", f"{other}, width {width}", header)
        for other in ("double backward", "second order")
        for width in (1, 2, 3, 4)
        for header in (_MEMORY.header, "meta step [GFLOP]")
    ),
    note=(
        "ResNet-32 on the 8 × 8 digits with 32 images a batch; `with cifar10 width_3` and the like "
        "measure it on CIFAR. Memory is that of one hypergradient beyond what was there before, "
        "time the least processor time of five."
    ),
)

ESTIMATORS = estimator_study(
    "label_noise",
    "Digits, 40 % flip noise: every estimator",
    _ACCURACY,
    COMPARISON.seeds[:5],
    absent={"ForwardMode, 5 steps": "too many λ"},
    note=(
        "What was not tuned under its own name has the settings of second order: "
        "docs/label_noise.md tells which were."
    ),
)

STUDIES = [COMPARISON, ESTIMATORS, MNIST5000, SCALING]
