"""Studies of the application on few-shot regression."""

from __future__ import annotations

import dataclasses
import functools

from metatoolkit.experiments.studies import Claim, Column, Row, Study
from metatoolkit.experiments.task_study import COSTS, IN_DOUBLE, NOTE, ROWS, draw_scores

_ERROR = Column("test error", "result.test_error", 1.0, 3)

COMPARISON = Study(
    name="regression_tasks",
    title="5-shot regression of sinusoids, mean squared error on 1,000 test tasks",
    experiment="applications.regression_tasks.experiment",
    # At the rates of the others WarpGrad diverges; docs/few_shot.md.
    rows={**{label: row for label, row in ROWS.items() if label != "WarpGrad"}, **IN_DOUBLE},
    columns=(
        _ERROR,
        Column("± over tasks", "result.test_interval", 1.0, 3, spread=False),
        *COSTS,
    ),
    seeds=(1, 2, 3, 4, 5),
    draw=functools.partial(draw_scores, metric="valid_error", header=_ERROR.header),
    claims=(
        Claim("MAML", "below", "scratch", _ERROR.header),
        Claim("MAML", "level", "MAML, learn2learn", _ERROR.header, margin=0.1),
        Claim("MAML, float64", "level", "MAML, learn2learn, float64", _ERROR.header, margin=0.01),
        Claim("MAML", "below", "first-order MAML", _ERROR.header),
        Claim("MAML", "below", "Reptile", _ERROR.header),
        Claim("MAML", "below", "ANIL", _ERROR.header),
        *(Claim(row, "below", "MAML", _ERROR.header) for row in ("Meta-SGD", "MAML++")),
    ),
    note=NOTE,
    usual_seeds=0,
)

_PIXELS = ("scratch", "MAML", "MAML, learn2learn", "first-order MAML", "Reptile", "Meta-SGD")

PIXELS = dataclasses.replace(
    COMPARISON,
    name="digit_pixels",
    title="Pixels of handwritten digits from 20 of 64, mean squared error on 1,000 test tasks",
    rows={label: Row(ROWS[label].updates, named=("digits",)) for label in _PIXELS},
    claims=(
        Claim("MAML", "below", "scratch", _ERROR.header),
        Claim("MAML", "level", "MAML, learn2learn", _ERROR.header, margin=0.005),
        *(
            Claim("MAML", "below", row, _ERROR.header)
            for row in ("first-order MAML", "Reptile", "Meta-SGD")
        ),
    ),
    note=NOTE,
)

_QUERY = Column("query nRMSE", "result.test_nrmse", 1.0, 3)
# The last is the whole way to the mean end of the inner steps.
_MANY_STEPS = {
    "no meta-learning": Row({"algorithm": "scratch"}),
    "A-MAML": Row({"algorithm": "a-maml"}),
    "MAML": Row({"algorithm": "maml"}),
    "MAML, learn2learn": Row({"algorithm": "maml", "library": "learn2learn"}),
    "first-order MAML": Row({"algorithm": "fomaml"}),
    "iMAML": Row({"algorithm": "imaml"}),
    "Reptile": Row({"algorithm": "reptile", "meta_optimizer": "sgd", "meta_lr": 1.0}),
}


def _many_steps(name: str, family: str, title: str) -> Study:
    """Return the study of 200 inner steps on a family of A-MAML."""
    return Study(
        name=name,
        title=f"{title}, 100 points, 200 inner steps: error on 100 test tasks",
        experiment="applications.regression_tasks.experiment",
        rows={label: Row({**row.updates}, named=(family,)) for label, row in _MANY_STEPS.items()},
        columns=(
            _QUERY,
            Column("± over tasks", "result.test_interval", 1.0, 3, spread=False),
            Column("support nRMSE", "result.support_nrmse", 1.0, 3),
            *COSTS,
        ),
        seeds=(1, 2, 3),
        draw=functools.partial(draw_scores, metric="valid_nrmse", header=_QUERY.header),
        claims=(
            Claim("A-MAML", "level", "MAML", _QUERY.header, margin=0.02),
            *(
                Claim("A-MAML", "below", row, _QUERY.header)
                for row in ("no meta-learning", "first-order MAML", "iMAML", "Reptile")
            ),
        ),
        note=f"{NOTE} Errors are in units of the family's deviation.",
        usual_seeds=0,
    )


ALPINE = _many_steps("meta_regression", "alpine", "Alpine functions of two inputs")
COSINES = _many_steps(
    "meta_regression_cosines", "cosine_mixture", "Mixtures of cosines of two inputs"
)

STUDIES = [COMPARISON, PIXELS, ALPINE, COSINES]
