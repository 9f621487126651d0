import math
from types import SimpleNamespace

import pandas
import pytest

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.jobs import run_jobs
from metatoolkit.experiments.studies import (
    Claim,
    Column,
    Row,
    Study,
    collect,
    jobs_of,
    judge,
    summarize,
)

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


def test_claims_name_rows_and_columns_that_exist():
    with pytest.raises(UnknownNameError, match="theirs"):
        study(Claim("ours", "above", "their", "score"))
    with pytest.raises(UnknownNameError, match="column"):
        study(Claim("ours", "above", "theirs", "scores"))


def test_rows_are_left_out_with_what_is_claimed_of_them():
    given = study(Claim("ours", "above", "theirs", "score"))
    assert given.without([]) == given
    fewer = given.without(["theirs"])
    assert list(fewer.rows) == ["ours"] and not fewer.claims
    with pytest.raises(UnknownNameError, match="their"):
        given.without(["their"])


def test_no_processes_are_refused():
    with pytest.raises(ConfigurationError, match="processes is 0"):
        run_jobs([], 0)


def test_what_does_not_depend_on_the_seed_is_decided_by_one_run():
    claim = Claim("ours", "below", "theirs", "score")
    one = frame([1.0], [2.0])
    assert judge(study(claim), one) == [
        "ours below theirs in score: undecided (-1.0, one seed)",
    ]
    column = Column("score", "result.score", digits=1, exact=True)
    exact = Study("s", "title", "applications.x.experiment", ROWS, (column,), claims=(claim,))
    assert judge(exact, one) == ["ours below theirs in score: holds (-1.0)"]
    assert summarize(exact, frame([1.0, 1.0], [2.0]))[0] == ["ours", "1.0"]


class Runs:
    """A database of runs, as far as a study asks it."""

    def __init__(self, *runs):
        self.runs = runs

    def find(self, expression, experiment):
        assert (expression, experiment) == ("status == 'COMPLETED'", "label_noise")
        return self

    def sort(self, key):
        assert key == "start_time"
        return self.runs


def test_runs_of_no_study_are_passed_over_and_the_newest_counts():
    of_study = Study(
        "s", "title", "applications.label_noise.experiment", {"ours": Row()}, (SCORE,), seeds=(3,)
    )
    jobs = jobs_of(of_study)
    place = jobs[0].info["study"]
    runs = [
        SimpleNamespace(info=info, result={"score": score}, config={})
        for score, info in enumerate([{"study": place}, {"study": place}, {"study": None}, {}])
    ]
    frame = collect(of_study, jobs, Runs(*runs))
    assert frame[["row", "seed", "score"]].to_numpy().tolist() == [["ours", 3, 1.0]]
    assert frame["run"].tolist() == [runs[1]]
    assert collect(of_study, jobs, Runs(*runs[2:])).empty
