"""Study of the search for schedules."""

from __future__ import annotations

import functools

from applications.schedule_search.figures import draw_search
from metatoolkit.experiments.studies import Claim, Column, Row, Study

_ACCURACY = Column("test accuracy [%]", "result.test_accuracy", 100.0)
_BLACK_BOX = ("random search", "TPE", "Hyperband", "DEHB")
_MARGIN = 1.0

SEARCH = Study(
    name="schedule_search",
    title="Schedules of a training of 200 steps on digits, from a bad start",
    experiment="applications.schedule_search.experiment",
    rows={
        "fixed start": Row({"method": "fixed", "steps": 200}),
        "FDS": Row({"method": "fds"}),
        "greedy": Row({"method": "greedy"}),
        "truncated": Row({"method": "truncated"}),
        "replay": Row({"method": "replay"}),
        "reversible": Row({"method": "reversible"}),
        "evolution strategies": Row({"method": "es"}),
        # As many inner steps as FDS spends, in whole trainings.
        "random search": Row({"method": "random", "steps": 21_800}),
        "TPE": Row({"method": "tpe", "steps": 21_800}),
        "Hyperband": Row({"method": "hyperband", "steps": 21_800}),
        "DEHB": Row({"method": "dehb", "steps": 21_800}),
    },
    columns=(
        _ACCURACY,
        Column("validation accuracy [%]", "result.valid_accuracy", 100.0),
        Column("spent [inner steps]", "result.inner_steps", digits=0, exact=True),
    ),
    seeds=(1, 2, 3, 4, 5),
    draw=functools.partial(
        draw_search, accuracy=_ACCURACY.header, reached=_BLACK_BOX, margin=_MARGIN
    ),
    claims=(
        Claim("FDS", "above", "fixed start", _ACCURACY.header),
        Claim("FDS", "above", "greedy", _ACCURACY.header),
        Claim("FDS", "above", "truncated", _ACCURACY.header),
        Claim("FDS", "above", "evolution strategies", _ACCURACY.header),
        *(Claim("FDS", "above", row, _ACCURACY.header) for row in _BLACK_BOX),
        Claim("replay", "level", "FDS", _ACCURACY.header, margin=_MARGIN),
        Claim("reversible", "level", "FDS", _ACCURACY.header, margin=_MARGIN),
    ),
    note=(
        "Ten outer steps of each method through 200 inner steps, seven values in all: five rates, "
        "a momentum and a weight decay; the black boxes take what FDS spends. Accuracies are those "
        "of a fresh network that is trained by the last schedules. An inner step is 3 F, and a "
        "product with second derivatives 6 F. The learner of reversible weights gradients by "
        "1 − momentum and has no weight decay. What the tests do not ask of these parts, and why: "
        "how long 10,000 steps of forward mode take and how much faster its columns are side by "
        "side (times: [forward mode by the step](benchmarks/forward_mode.md)); an error of the "
        "flow taken backwards (the adjoint stores its states, and nothing takes them back); "
        "fractional steps in the brackets of DEHB (its rungs are rounded to whole steps); that "
        "DEHB ends above random search (it does on a test function; in this table the two are "
        "level in validation accuracy)."
    ),
    usual_seeds=0,
)

STUDIES = [SEARCH]
