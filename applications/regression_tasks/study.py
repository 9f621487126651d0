"""Study of the application on few-shot regression."""

from __future__ import annotations

import functools

from metatoolkit.experiments.studies import Claim, Column, Study
from metatoolkit.experiments.task_study import COSTS, NOTE, ROWS, draw_scores

_ERROR = Column("test error", "result.test_error", 1.0, 3)

COMPARISON = Study(
    name="regression_tasks",
    title="5-shot regression of sinusoids, mean squared error on 1,000 test tasks",
    experiment="applications.regression_tasks.experiment",
    rows=ROWS,
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
        Claim("MAML", "below", "first-order MAML", _ERROR.header),
        Claim("MAML", "below", "Reptile", _ERROR.header),
        Claim("MAML", "below", "ANIL", _ERROR.header),
        *(Claim(row, "below", "MAML", _ERROR.header) for row in ("Meta-SGD", "MAML++", "WarpGrad")),
    ),
    note=NOTE,
    usual=False,
)

STUDIES = [COMPARISON]
