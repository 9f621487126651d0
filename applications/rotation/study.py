"""Studies of the rotation application."""

from __future__ import annotations

from applications.rotation import figures
from metatoolkit.experiments.by_application import estimator_study
from metatoolkit.experiments.studies import SIGNAL, Claim, Column, Row, Study

_ROTATED = Column("rotated test images [%]", "result.test_accuracy", 100.0)
_UPRIGHT = Column("upright test images [%]", "result.test_upright_accuracy", 100.0)
_ANGLE = Column("angle [°]", "result.angle_degrees")
_MEMORY = Column("meta step [MiB]", "info.peak_memory_bytes", 2.0**-20, exact=True)

_PUBLISHED = {
    _ROTATED.header: "98.11 ± 0.32",
    _UPRIGHT.header: "77.23 ± 6.55",
    _ANGLE.header: "28.47 ± 5.23",
}

COMPARISON = Study(
    name="rotation",
    title="Learning a rotation: validation and test images are rotated by 30°",
    experiment="applications.rotation.experiment",
    rows={
        "baseline": Row(
            {"method": "baseline"},
            published={_ROTATED.header: "81.79 ± 0.64", _UPRIGHT.header: "98.40 ± 0.07"},
        ),
        "second order": Row({"method": "second_order"}),
        "EvoGrad": Row({"method": "evograd"}, published=_PUBLISHED),
        "EvoGrad, two candidates": Row(
            {"method": "evograd", "evograd": {"candidates": 2}}, published=_PUBLISHED
        ),
    },
    columns=(
        _ROTATED,
        _UPRIGHT,
        _ANGLE,
        SIGNAL,
        _MEMORY,
        Column("meta step [GFLOP]", "info.flops", 1e-9, 3, spread=False),
        Column("ms/step", "info.milliseconds_per_step", 1.0, 1, spread=False),
    ),
    seeds=tuple(range(1, 11)),
    usual_seeds=5,
    draw=figures.draw_angles,
    claims=(
        Claim("EvoGrad", "above", "baseline", _ROTATED.header),
        Claim("second order", "above", "baseline", _ROTATED.header),
        Claim("EvoGrad", "level", "second order", _ROTATED.header, margin=1.0),
        Claim("EvoGrad", "below", "second order", _MEMORY.header),
    ),
    source="Bohdal et al. 2021, arXiv 2106.10575, notebook of the rotation experiment (MNIST)",
    note=(
        "The digits are scikit-learn's, 958 images to train on and four candidates in the row "
        "EvoGrad; the published numbers are for 40,000 images of MNIST and two candidates, which "
        "`with mnist` runs."
    ),
)

MNIST5000 = Study(
    name="rotation_mnist5000",
    title="Learning a rotation on 5,000 images of MNIST, turned by 30° in validation and test",
    experiment="applications.rotation.experiment",
    rows={
        "baseline": Row(
            {"method": "baseline"}, ("mnist5000",), published=COMPARISON.rows["baseline"].published
        ),
        "second order": Row({"method": "second_order"}, ("mnist5000",)),
        "EvoGrad": Row({"method": "evograd"}, ("mnist5000",), published=_PUBLISHED),
    },
    columns=COMPARISON.columns,
    seeds=COMPARISON.seeds[:5],
    draw=figures.draw_angles,
    claims=COMPARISON.claims,
    source=COMPARISON.source,
    note=(
        "3,000 images to train on, 500 for validation and 1,000 to test on; the published numbers "
        "are for 40,000, 10,000 and 10,000. Two candidates in both."
    ),
    # Its images are an optional dependency.
    usual_seeds=0,
)

ESTIMATORS = estimator_study(
    "rotation",
    "Learning a rotation: every estimator",
    _ROTATED,
    COMPARISON.seeds[:5],
    # Adam does not rest at a fixed point, which these differentiate at.
    absent={"SOBA": "no fixed point", "Implicit, GMRES(5)": "no fixed point"},
    note="All rows have the learning rates of the paper.",
)

STUDIES = [COMPARISON, ESTIMATORS, MNIST5000]
