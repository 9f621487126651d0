"""Study of the cross-lingual application."""

from __future__ import annotations

import dataclasses

from applications.cross_lingual import figures
from metatoolkit.experiments.by_application import estimator_study
from metatoolkit.experiments.studies import SIGNAL, Claim, Column, Row, Study

_SCORE = Column("test F1 [%]", "result.test_f1", 100.0)
_MEMORY = Column("meta step [MiB]", "info.peak_memory_bytes", 2.0**-20, 1, spread=False)
_FLOPS = Column("meta step [GFLOP]", "info.flops", 1e-9, 2, spread=False)
_NOT_AVAILABLE = {_SCORE.header: "not available"}


def _comparison(name: str, data: str, languages: str) -> Study:
    """Return the study of all methods on one data set."""
    updates = {"data": {"name": data}}
    return Study(
        name=name,
        title=f"Named entities in {languages}, with 100 sentences: F1 on test data",
        experiment="applications.cross_lingual.experiment",
        rows={
            "target only": Row({"method": "target_only", **updates}, published=_NOT_AVAILABLE),
            "joint training": Row({"method": "joint", **updates}, published=_NOT_AVAILABLE),
            "untrained transformation": Row({"method": "frozen", **updates}),
            "MetaXL, second order": Row(
                {"method": "second_order", **updates}, published=_NOT_AVAILABLE
            ),
            "MetaXL, EvoGrad": Row({"method": "evograd", **updates}, published=_NOT_AVAILABLE),
            "MetaXL, EvoGrad guided": Row(updates, ("guided",)),
        },
        columns=(
            _SCORE,
            Column("tuning F1 [%]", "result.dev_f1", 100.0),
            Column("λ moved", "result.lambda_distance", spread=False),
            SIGNAL,
            _MEMORY,
            Column("base step [MiB]", "info.base_peak_memory_bytes", 2.0**-20, 1, spread=False),
            _FLOPS,
            Column("ms/step", "info.milliseconds_per_step", 1.0, 1, spread=False),
        ),
        # No choice was made on these.
        seeds=tuple(range(31, 41)),
        usual_seeds=5,
        draw=figures.draw_comparison,
        claims=(
            Claim("joint training", "above", "target only", _SCORE.header),
            Claim("MetaXL, second order", "above", "joint training", _SCORE.header),
            Claim("MetaXL, EvoGrad", "above", "joint training", _SCORE.header),
            Claim("MetaXL, EvoGrad guided", "above", "joint training", _SCORE.header),
            Claim("MetaXL, EvoGrad guided", "above", "untrained transformation", _SCORE.header),
            Claim("untrained transformation", "level", "joint training", _SCORE.header, margin=1.0),
            Claim("MetaXL, EvoGrad", "level", "MetaXL, second order", _SCORE.header, margin=1.0),
            Claim("MetaXL, EvoGrad", "below", "MetaXL, second order", _MEMORY.header),
            Claim("MetaXL, EvoGrad", "below", "MetaXL, second order", _FLOPS.header),
        ),
    )


ESTIMATORS = estimator_study(
    "cross_lingual",
    "Named entities in a generated language: every estimator",
    _SCORE,
    (31, 32, 33, 34, 35),
    # Adam does not rest at a fixed point, which SOBA and Implicit differentiate at.
    absent={
        "ForwardMode, 5 steps": "too many λ",
        "SOBA": "no fixed point",
        "Implicit, GMRES(5)": "no fixed point",
    },
    updates={"data": {"name": "generated"}},
    note="What was not tuned under its own name has the settings of second order.",
)

STUDIES = [
    _comparison("cross_lingual", "generated", "a generated language from another one"),
    ESTIMATORS,
    # Its data have to be put under METATOOLKIT_DATA.
    dataclasses.replace(
        _comparison("cross_lingual_masakhaner", "masakhaner", "Swahili from Nigerian Pidgin"),
        usual_seeds=0,
    ),
]
