"""Study of the application on few-shot classification."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from metatoolkit.experiments.studies import Claim, Column, Row, Study
from metatoolkit.experiments.task_study import COSTS, IN_DOUBLE, NOTE, ROWS, draw_scores

_ACCURACY = Column("test accuracy [%]", "result.test_accuracy", 100.0)

COMPARISON = Study(
    name="few_shot",
    title="5-way 1-shot on generated glyphs, 1,000 test tasks",
    experiment="applications.few_shot.experiment",
    # The control of what inner learning is worth: class means in the same embedding.
    rows={**ROWS, **IN_DOUBLE, "ProtoNet": Row({"algorithm": "protonet"})},
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
        Claim("MAML, float64", "level", "MAML, learn2learn, float64", _ACCURACY.header, margin=0.1),
        Claim("MAML", "above", "first-order MAML", _ACCURACY.header),
        Claim("MAML", "above", "Reptile", _ACCURACY.header),
        Claim("MAML", "above", "ANIL", _ACCURACY.header),
        *(
            Claim(row, "above", "MAML", _ACCURACY.header)
            for row in ("Meta-SGD", "MAML++", "WarpGrad", "ProtoNet")
        ),
    ),
    note=NOTE,
    usual_seeds=0,
)

_SHORTER = COMPARISON.without(["first-order MAML", "Reptile", "ANIL"])

OMNIGLOT = dataclasses.replace(
    _SHORTER,
    name="few_shot_omniglot",
    title="5-way 1-shot on the characters of alphabets that were not learned from",
    rows={
        label: Row({**row.updates, "dataset": "omniglot_alphabets"})
        for label, row in _SHORTER.rows.items()
    },
    note=f"{NOTE} 16 × 16 pixels, ten alphabets of Omniglot in all.",
)

# Tuned on other seeds and validation users with the same effort: applications.few_shot.tuning.
_SINGLE_RATE: dict[str, Any] = {"algorithm": "reptile", "lr": 0.17}
_ARUBA: dict[str, Any] = {"algorithm": "aruba", "lr": 0.3, "options": {"zeta": 0.01}}


def _aruba(**options: Any) -> Row:
    """Return a row with what was tuned for ARUBA, and further options of its own."""
    return Row({**_ARUBA, "options": {**_ARUBA["options"], **options}}, named=("federated",))


FEDERATED_DIGITS = Study(
    name="federated_digits",
    title="Federated digits, 3 of 10 classes a user, 400 test users",
    experiment="applications.few_shot.experiment",
    rows={
        "single rate": Row(_SINGLE_RATE, named=("federated",)),
        "ARUBA": Row(_ARUBA, named=("federated",)),
        "ARUBA, one rate": _aruba(isotropic=True),
        # Its coefficient is not tuned.
        "ARUBA++": _aruba(refinement=1.0),
    },
    columns=(
        _ACCURACY,
        Column("± over users", "result.test_interval", 100.0, spread=False),
        *COSTS,
    ),
    seeds=tuple(range(1, 11)),
    draw=functools.partial(draw_scores, metric="valid_accuracy", header=_ACCURACY.header),
    claims=(
        *(
            Claim("ARUBA", "above", row, _ACCURACY.header)
            for row in ("single rate", "ARUBA, one rate")
        ),
        Claim("ARUBA++", "above", "single rate", _ACCURACY.header),
    ),
    note="The single rate, and the first rate and ζ of ARUBA, are tuned on other seeds and on "
    "validation users with the same number of runs; the two rows below ARUBA take what it has.",
    usual_seeds=0,
)

STUDIES = [COMPARISON, OMNIGLOT, FEDERATED_DIGITS]
