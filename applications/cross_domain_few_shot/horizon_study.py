"""Studies of the application on how strong transforms shall be, and what can learn it."""

from __future__ import annotations

from typing import Any

from applications.cross_domain_few_shot import figures
from metatoolkit.experiments.studies import SIGNAL, Claim, Column, Row, Study

_NAMED = ("per_layer",)
_EXPERIMENT = "applications.cross_domain_few_shot.experiment"
_SEEDS = tuple(range(1, 11))
_HORIZONS = (1, 5, 20)

_ACCURACY = Column("test accuracy [%]", "result.test_accuracy", 100.0)
_OUTER_LOSS = Column("outer loss", "result.outer_loss", digits=3)


def _fixed(scale: float, shift: float, slopes: bool = True) -> Row:
    asked = {"valid_episodes": 40, "steps": list(_HORIZONS) if slopes else []}
    transform = {"scale": scale, "shift": shift}
    updates = {"method": "fixed_transform", "transform": transform, "horizons": asked}
    return Row(updates, _NAMED)


def _slope(name: str, words: str, horizon: int) -> Column:
    return Column(f"{words}, T = {horizon}", f"result.{name}_{horizon}", 1e3, 1)


def _one(name: str, words: str) -> Column:
    """Return by how much one hypergradient of one step varies."""
    return Column(f"noise {words}, T = 1", f"result.{name}_1_deviation", 1e3, 1, spread=False)


DERIVATIVES = tuple(_slope("slope", "slope by θ", horizon) for horizon in _HORIZONS)
"""Slopes with running statistics constant, as gradients have them, one for each horizon."""

DIFFERENCES = tuple(
    _slope("slope_with_statistics", "slope in all", horizon) for horizon in _HORIZONS
)
"""Slopes with all that λ changes, as evolution strategies have them."""

STRENGTH = Study(
    name="few_shot_strength",
    title="How strong the transforms shall be, and what each horizon says of it",
    experiment=_EXPERIMENT,
    rows={
        "none": Row({"method": "no_transform", "horizons": {"valid_episodes": 40}}, _NAMED),
        "0.1, 0.1": _fixed(0.1, 0.1),
        "0.3, 0.5": _fixed(0.3, 0.5),
        "0.6, 0.8": _fixed(0.6, 0.8),
        "1, 1": _fixed(1.0, 1.0),
        "0, 1": _fixed(0.0, 1.0, slopes=False),
        "1, 0": _fixed(1.0, 0.0, slopes=False),
    },
    columns=(
        _ACCURACY,
        _OUTER_LOSS,
        *DERIVATIVES,
        *DIFFERENCES,
        _one("slope", "by θ"),
        _one("slope_with_statistics", "in all"),
    ),
    seeds=_SEEDS,
    draw=figures.draw_strength,
    claims=(
        Claim("none", "above", "1, 1", _ACCURACY.header),
        Claim("0.1, 0.1", "above", "1, 1", _ACCURACY.header),
        Claim("0.3, 0.5", "above", "1, 1", _ACCURACY.header),
        Claim("0.1, 0.1", "above", "none", _ACCURACY.header),
        Claim("0.3, 0.5", "above", "none", _ACCURACY.header),
        Claim("0, 1", "above", "1, 0", _ACCURACY.header),
        Claim("0, 1", "above", "none", _ACCURACY.header),
        Claim("none", "below", "1, 1", _OUTER_LOSS.header),
        *(
            Claim("1, 1", "above", "0.1, 0.1", column.header)
            for column in (*DERIVATIVES, *DIFFERENCES)
        ),
    ),
    note=(
        "Rows are the deviations of γ and β. A slope is dL/d(log s) for a factor s of all "
        "strengths, in thousandths, T inner steps after the middle of training: above 0, weaker "
        "transforms lower the outer loss L. By θ: running statistics are constants, as gradients "
        "have it; in all: λ changes them, too. A mean over ten seeds differs from 0 where it is "
        "more than 0.72 of the deviation beside it. Noise is the deviation of one hypergradient."
    ),
    usual_seeds=0,
)

_SCALE = Column("deviation of γ", "result.scale_deviation", digits=3)
_COST = Column("meta step / base step", "info.flops", digits=1, exact=True, over="info.base_flops")
_SECONDS = Column("training [s]", "info.seconds", digits=0, spread=False)


def _learned(part: str, scale: float, shift: float, estimator: dict[str, Any]) -> Row:
    """Return a row that learns λ in one training, and goes on learning it in a second."""
    updates = {
        "method": "meta",
        "estimator": estimator,
        "transform": {"scale": scale, "shift": shift},
        "horizons": {"valid_episodes": 40},
        "meta_lr": 0.05,
        "steps": 400,
        "reset_every": 200,
        "evaluate_every": 20,
    }
    return Row(updates, (f"per_{part}",))


_ES = {"name": "EvolutionStrategies", "steps": 5, "pairs": 1, "sigma": 0.1}
_UNROLLED = {"name": "Unrolled", "steps": 5}

LEARNED = Study(
    name="few_shot_learned",
    title="Transforms that are learned where their strength matters",
    experiment=_EXPERIMENT,
    rows={
        "fixed 1, 1": _fixed(1.0, 1.0),
        "ES from 1, 1": _learned("network", 1.0, 1.0, _ES),
        "fixed 0.3, 0.5": _fixed(0.3, 0.5),
        "ES from 0.3, 0.5": _learned("network", 0.3, 0.5, _ES),
        "Unrolled from 1, 1": _learned("network", 1.0, 1.0, _UNROLLED),
        "ES per layer from 1, 1": _learned("layer", 1.0, 1.0, _ES),
    },
    columns=(
        _ACCURACY,
        _OUTER_LOSS,
        _SCALE,
        Column("deviation of β", "result.shift_deviation", digits=3),
        SIGNAL,
        _COST,
        _SECONDS,
    ),
    seeds=_SEEDS,
    draw=figures.draw_comparison,
    claims=(
        Claim("ES from 1, 1", "above", "fixed 1, 1", _ACCURACY.header),
        Claim("ES per layer from 1, 1", "above", "fixed 1, 1", _ACCURACY.header),
        Claim("Unrolled from 1, 1", "above", "fixed 1, 1", _ACCURACY.header),
        Claim("ES from 1, 1", "above", "Unrolled from 1, 1", _ACCURACY.header),
        Claim("ES from 0.3, 0.5", "above", "fixed 0.3, 0.5", _ACCURACY.header),
        Claim("ES from 1, 1", "above", "fixed 0.3, 0.5", _ACCURACY.header),
        Claim("ES from 1, 1", "below", "fixed 1, 1", _OUTER_LOSS.header),
        Claim("ES per layer from 1, 1", "below", "fixed 1, 1", _OUTER_LOSS.header),
        Claim("ES from 0.3, 0.5", "below", "fixed 0.3, 0.5", _OUTER_LOSS.header),
        Claim("Unrolled from 1, 1", "below", "fixed 1, 1", _OUTER_LOSS.header),
    ),
    note=(
        "One scale and one shift for the whole network, or for each layer. Learned rows train "
        "twice for 200 steps: λ goes on from the first training to the second, θ starts over; "
        "what is tested is the second. All estimators look five steps ahead."
    ),
    usual_seeds=0,
)

STUDIES = [STRENGTH, LEARNED]
