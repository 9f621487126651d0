"""Study of the application on few-shot classification."""

from __future__ import annotations

import functools

from metatoolkit.experiments.studies import Claim, Column, Row, Study
from metatoolkit.experiments.task_study import COSTS, NOTE, ROWS, draw_scores

_ACCURACY = Column("test accuracy [%]", "result.test_accuracy", 100.0)

COMPARISON = Study(
    name="few_shot",
    title="5-way 1-shot on generated glyphs, 1,000 test tasks",
    experiment="applications.few_shot.experiment",
    # The control of what inner learning is worth: class means in the same embedding.
    rows={**ROWS, "ProtoNet": Row({"algorithm": "protonet"})},
    columns=(
        _ACCURACY,
        Column("± over tasks", "result.test_interval", 100.0, spread=False),
        *COSTS,
    ),
    seeds=(1, 2, 3, 4, 5),
    draw=functools.partial(draw_scores, metric="valid_accuracy", header=_ACCURACY.header),
    claims=(
        Claim("MAML", "above", "scratch", _ACCURACY.header),
        Claim("MAML", "level", "MAML, learn2learn", _ACCURACY.header, margin=1.0),
        Claim("MAML", "above", "first-order MAML", _ACCURACY.header),
        Claim("MAML", "above", "Reptile", _ACCURACY.header),
        Claim("MAML", "above", "ANIL", _ACCURACY.header),
        *(
            Claim(row, "above", "MAML", _ACCURACY.header)
            for row in ("Meta-SGD", "MAML++", "WarpGrad", "ProtoNet")
        ),
    ),
    note=NOTE,
    usual=False,
)

STUDIES = [COMPARISON]
