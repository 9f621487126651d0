"""Studies of the application on few-shot classification across domains."""

from __future__ import annotations

from applications.cross_domain_few_shot import figures, horizon_study
from metatoolkit.experiments.by_application import estimator_study
from metatoolkit.experiments.studies import SIGNAL, Claim, Column, Row, Study

_ACCURACY = Column("test accuracy [%]", "result.test_accuracy", 100.0)
_MEMORY = Column("meta step [MiB]", "info.peak_memory_bytes", 2.0**-20, 1, exact=True)

COMPARISON = Study(
    name="cross_domain_few_shot",
    title="5-way 5-shot on an unseen domain",
    experiment="applications.cross_domain_few_shot.experiment",
    rows={
        "no transform": Row({"method": "no_transform"}),
        "fixed transform": Row({"method": "fixed_transform"}),
        "fixed, weak": Row(
            {"method": "fixed_transform", "transform": {"scale": 0.1, "shift": 0.1}}
        ),
        "LFT, second order": Row({"method": "second_order"}),
        "LFT, EvoGrad": Row({"method": "evograd"}),
        "LFT, EvoGrad guided": Row(
            {"method": "evograd", "evograd": {"guided": True, "sigma": 1e-2}}
        ),
    },
    columns=(
        _ACCURACY,
        Column("± over episodes", "result.test_interval", 100.0, spread=False),
        Column("deviation of γ", "result.scale_deviation", 1.0, 3, spread=False),
        Column("deviation of β", "result.shift_deviation", 1.0, 3, spread=False),
        SIGNAL,
        _MEMORY,
        Column("meta step [GFLOP]", "info.flops", 1e-9, spread=False),
        Column("ms/step", "info.milliseconds_per_step", 1.0, 1, spread=False),
    ),
    seeds=tuple(range(1, 11)),
    usual_seeds=5,
    draw=figures.draw_comparison,
    claims=(
        Claim("LFT, second order", "above", "fixed transform", _ACCURACY.header),
        Claim("LFT, EvoGrad", "above", "fixed transform", _ACCURACY.header),
        Claim("LFT, EvoGrad", "above", "no transform", _ACCURACY.header),
        Claim("LFT, EvoGrad", "level", "LFT, second order", _ACCURACY.header, margin=1.0),
        Claim("LFT, EvoGrad", "below", "LFT, second order", _MEMORY.header),
    ),
    note=(
        "Test classes of the unseen domain, over 1,000 episodes a run. Why the hypergradient says "
        "little at this size is told in docs/cross_domain_few_shot.md."
    ),
)

ESTIMATORS = estimator_study(
    "cross_domain_few_shot",
    "5-way 5-shot on an unseen domain: every estimator",
    _ACCURACY,
    (1, 2, 3, 4, 5),
    # Adam does not rest at a fixed point, which SOBA and Implicit differentiate at.
    absent={
        "ForwardMode, 5 steps": "too many λ",
        "SOBA": "no fixed point",
        "Implicit, GMRES(5)": "no fixed point",
    },
    note="All rows have the same learning rates.",
)

STUDIES = [COMPARISON, ESTIMATORS, *horizon_study.STUDIES]
