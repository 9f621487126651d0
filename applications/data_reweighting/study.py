"""Study of data hyper-cleaning."""

from __future__ import annotations

from applications.data_reweighting import figures
from metatoolkit.experiments.studies import Claim, Column, Row, Study

_ACCURACY = Column("test accuracy [%]", "result.test_accuracy", 100.0)
_F1 = Column("F1 [%]", "result.f1", 100.0)
_LEARNING = ("unrolled", "reversible", "implicit", "penalty")

COMPARISON = Study(
    name="data_reweighting",
    title="Digits, half of the labels drawn at random: one learned weight for each example",
    experiment="applications.data_reweighting.experiment",
    rows={
        **{method: Row({"method": method}) for method in _LEARNING},
        "one step": Row({"estimator": {"name": "Unrolled", "steps": 1}}),
        "plain training": Row({"method": "plain"}),
        "validation set only": Row({"method": "valid_only"}),
        "clean examples only": Row({"method": "clean_only"}),
    },
    columns=(
        _ACCURACY,
        Column("precision [%]", "result.precision", 100.0),
        Column("recall [%]", "result.recall", 100.0),
        _F1,
        Column("weight, clean", "result.weight_clean", spread=False),
        Column("weight, corrupted", "result.weight_corrupted", spread=False),
        Column("hypergradient [MiB]", "info.peak_memory_bytes", 2.0**-20, spread=False),
        Column("learning [s]", "info.seconds", 1.0, 1, spread=False),
    ),
    # No choice was made on these.
    seeds=tuple(range(31, 41)),
    draw=figures.draw_comparison,
    claims=(
        *(
            Claim(method, "above", control, _ACCURACY.header)
            for method in _LEARNING
            for control in ("plain training", "validation set only")
        ),
        *(
            Claim(method, "level", "clean examples only", _ACCURACY.header, margin=1.0)
            for method in _LEARNING
        ),
        *(
            Claim(method, "level", "unrolled", _F1.header, margin=2.0)
            for method in _LEARNING
            if method != "unrolled"
        ),
        Claim("unrolled", "above", "one step", _F1.header),
    ),
    note=(
        "An example whose weight is below 0.5, where all begin, is called corrupted. Each method "
        "has 2,000 inner steps to learn the weights and the same learning rates; the network is "
        "then trained anew under them. Nobody can train on the clean examples only."
    ),
    usual_seeds=0,
)

STUDIES = [COMPARISON]
