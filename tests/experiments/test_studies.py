import math

import pandas
import pytest

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.jobs import run_jobs
from metatoolkit.experiments.studies import Claim, Column, Row, Study, judge, summarize

SCORE = Column("score", "result.score", digits=1)
ROWS = {"ours": Row(), "theirs": Row()}


def study(*claims):
    return Study("s", "title", "applications.x.experiment", ROWS, (SCORE,), claims=claims)


def frame(ours, theirs):
    lines = [{"row": "ours", "seed": i, "score": v} for i, v in enumerate(ours)]
    lines += [{"row": "theirs", "seed": i, "score": v} for i, v in enumerate(theirs)]
    return pandas.DataFrame(lines)


def test_cells_hold_mean_and_sample_deviation():
    cells = summarize(study(), frame([1.0, 3.0], [5.0]))
    assert cells == [["ours", f"2.0 ± {math.sqrt(2):.1f}"], ["theirs", "5.0"]]
    assert summarize(study(), frame([math.nan], [])) == [["ours", "–"], ["theirs", "–"]]


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "holds"),
    [
        ("above", [10.0, 12.0], [7.0, 9.0], True),  # 3 > √2
        ("above", [10.0, 12.0], [9.0, 11.0], False),
        ("level", [10.0, 12.0], [11.0, 13.0], True),  # −1 ≥ −√2
        ("level", [10.0, 12.0], [12.0, 14.0], False),
        ("below", [1.0, 1.0], [2.0, 2.0], True),
        ("below", [2.0, 2.0], [2.0, 2.0], False),
        ("above", [0.0, 9.0], [1.0, 1.1], False),  # the larger of the two deviations counts
    ],
)
def test_claims_are_judged_by_the_spread(kind, ours, theirs, holds):
    (sentence,) = judge(study(Claim("ours", kind, "theirs", "score")), frame(ours, theirs))
    assert (": holds" in sentence) == holds
    assert ("does not hold" in sentence) != holds


def test_a_claim_without_runs_is_not_judged():
    assert judge(study(Claim("ours", "above", "theirs", "score")), frame([1.0], [])) == []


def test_claims_name_rows_and_columns_that_exist():
    with pytest.raises(UnknownNameError, match="theirs"):
        study(Claim("ours", "above", "their", "score"))
    with pytest.raises(UnknownNameError, match="column"):
        study(Claim("ours", "above", "theirs", "scores"))


def test_no_processes_are_refused():
    with pytest.raises(ConfigurationError, match="processes is 0"):
        run_jobs([], 0)
