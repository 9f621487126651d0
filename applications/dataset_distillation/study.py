"""Study of dataset distillation."""

from __future__ import annotations

from typing import Any

from applications.dataset_distillation import figures
from metatoolkit.experiments.studies import Claim, Column, Row, Study

_ACCURACY = Column("test accuracy [%]", "result.test_accuracy", 100.0)
# Real images need more steps than the images that were learned for few.
_LONG: dict[str, Any] = {"test_steps": 200}

COMPARISON = Study(
    name="dataset_distillation",
    title="Ten or twenty images in the place of 1,238: fresh networks trained on these alone",
    experiment="applications.dataset_distillation.experiment",
    rows={
        "distilled, 1 a class": Row(),
        "distilled, 1 a class, reversible": Row({"method": "reversible"}),
        "distilled, 1 a class, one start": Row({"random_starts": False}),
        "distilled, 2 a class": Row({"per_class": 2}),
        "real, 1 a class": Row({"method": "real", **_LONG}),
        "real, 2 a class": Row({"method": "real", "per_class": 2, **_LONG}),
        "means, 1 a class": Row({"method": "means", **_LONG}),
        "means, 2 a class": Row({"method": "means", "per_class": 2, **_LONG}),
        "real, 100 a class": Row({"method": "real", "per_class": 100, **_LONG}),
    },
    columns=(
        _ACCURACY,
        Column("λ moved", "result.lambda_distance", spread=False),
        Column("hypergradient [MiB]", "info.peak_memory_bytes", 2.0**-20, spread=False),
        Column("learning [s]", "info.seconds", 1.0, 1, spread=False),
    ),
    # No choice was made on these.
    seeds=tuple(range(31, 41)),
    draw=figures.draw_comparison,
    claims=(
        Claim("distilled, 1 a class", "above", "real, 1 a class", _ACCURACY.header),
        Claim("distilled, 1 a class", "above", "means, 1 a class", _ACCURACY.header),
        Claim("distilled, 1 a class", "above", "distilled, 1 a class, one start", _ACCURACY.header),
        Claim(
            "distilled, 1 a class, reversible",
            "level",
            "distilled, 1 a class",
            _ACCURACY.header,
            margin=1.0,
        ),
        Claim("distilled, 2 a class", "above", "distilled, 1 a class", _ACCURACY.header),
        Claim("distilled, 2 a class", "above", "means, 2 a class", _ACCURACY.header),
        Claim("real, 100 a class", "above", "distilled, 2 a class", _ACCURACY.header),
    ),
    note=(
        "Means over ten networks that no image was learned for. They take 20 steps on learned "
        "images, as in learning, and 200 on the others. The learning rate was chosen for learned "
        "images."
    ),
    usual_seeds=0,
)

STUDIES = [COMPARISON]
