"""Black-box search: its budget, its points, what fails, and what it finds."""

import functools
import itertools
import math
import sys
from pathlib import Path

import pytest

from baselines.black_box import Evaluation, Fidelity, Found, search
from baselines.proposals import METHODS, Proposal, dehb, hyperband
from metatoolkit import records
from metatoolkit.errors import ConfigurationError, MissingDependencyError, UnknownNameError
from metatoolkit.experiments.jobs import Outcome
from metatoolkit.experiments.search_space import Choice, Range, Space

pytest.importorskip("optuna", reason="optuna is not installed")
pytest.importorskip("dehb", reason="dehb is not installed", exc_type=ImportError)

SEARCHED = """
from metatoolkit import records
from metatoolkit.errors import NonFiniteError

experiment = records.experiment("own_searched")
experiment.add_config({"x": 0.5, "part": {"y": 0.5, "kind": "a"}, "steps": 27, "seed": 1})
experiment.add_config({"progress": True})


@experiment.main
def main(_run, x, part, steps):
    if x > 0.9:
        _run.info["steps_done"] = 2
        raise NonFiniteError("train_loss is nan")
    loss = (x - 0.3) ** 2 + (part["y"] - 0.6) ** 2 + (part["kind"] == "b") + 1 / steps
    return {"loss": loss, "deep": {"score": -loss}, "nan": float("nan")}
"""
SPACE = Space(
    {
        "x": Range(0, 1, digits=None),
        "part.y": Range(0, 1, digits=None),
        "part.kind": Choice(("a", "b")),
    }
)
FIDELITY = Fidelity(high=27, low=1)
ASKED = {"score": "loss", "minimize": True, "budget": 540, "fidelity": FIDELITY}


@pytest.fixture
def application(tmp_path, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "own_searched.py"
    path.write_text(SEARCHED)
    yield str(path)
    sys.modules.pop("own_searched", None)


def loss_of(updates):
    x, y, kind = updates["x"], updates["part"]["y"], updates["part"]["kind"]
    return (x - 0.3) ** 2 + (y - 0.6) ** 2 + (kind == "b") + 1 / updates["steps"]


def run(job):
    """Do as the application, without a record."""
    if job.updates["x"] > 0.9:
        return Outcome(job, error="NonFiniteError: train_loss is nan", steps=2)
    loss = loss_of(job.updates)
    return Outcome(job, {"loss": loss, "deep": {"score": -loss}, "nan": math.nan})


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_kept_and_the_seed_tells_the_points(application, method):
    found = search(application, SPACE, method=method, seed=3, run=run, **ASKED)
    spent = 0
    for one in found.evaluations:
        spent += min(2, one.steps) if one.error else one.steps
        assert one.spent == spent <= ASKED["budget"]
        assert one.steps in ((1, 3, 9, 27) if method in ("hyperband", "dehb") else (27,))
        assert "steps" not in one.settings
        if not one.error:
            assert one.score == loss_of({**one.settings, "steps": one.steps})
    # No evaluation in full would have fitted in.
    assert ASKED["budget"] - spent < 27
    again = search(application, SPACE, method=method, seed=3, run=run, **ASKED)
    assert str(again) == str(found)
    other = search(application, SPACE, method=method, seed=4, run=run, **ASKED)
    assert str(other) != str(found)
    assert found.best is not None and found.best.steps == 27
    assert found.best.score < 0.15 + 1 / 27


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_score_may_be_better(application, method):
    asked = {**ASKED, "score": "deep.score", "minimize": False}
    found = search(application, SPACE, method=method, seed=3, run=run, **asked)
    mirrored = search(application, SPACE, method=method, seed=3, run=run, **ASKED)
    assert [one.settings for one in found.evaluations] == [
        one.settings for one in mirrored.evaluations
    ]
    assert [one.spent for one in found.incumbents] == [one.spent for one in mirrored.incumbents]


@pytest.mark.parametrize("method", ["tpe", "cma_es", "dehb"])
def test_what_learns_finds_more_than_chance(method):
    """Driven without an application, which would take most of the time."""

    def loss(proposal):
        return loss_of({**SPACE.point(proposal.positions).updates, "steps": proposal.steps})

    def mean(name):
        bests = []
        for seed in range(4):
            found = _taken(METHODS[name](SPACE, FIDELITY, seed), 60, loss)
            bests.append(min(loss(one) for one in found if one.steps == 27))
        return sum(bests) / len(bests)

    assert mean(method) < mean("random")


def test_each_evaluation_is_a_recorded_run(application):
    asked = {**ASKED, "budget": 81, "method": "hyperband", "seed": 5}
    found = search(application, SPACE, **asked)
    same = search(application, SPACE, **asked, run=run)
    assert str(same.evaluations) == str(found.evaluations)
    with records.connect() as database:
        runs = database.find("info.search.method == 'hyperband'", "own_searched").sort(
            "info.search.number"
        )
        assert len(runs) == len(found.evaluations) > 5
        for number, (one, made) in enumerate(zip(runs, found.evaluations, strict=True), 1):
            told = {"method": "hyperband", "seed": 5, "number": number, "budget": 81}
            assert one.info["search"] == told
            assert one.config["steps"] == made.steps and one.config["seed"] == 5
            assert one.config["part"] == made.settings["part"]
            assert one.status == ("FAILED" if made.error else "COMPLETED")


@pytest.mark.parametrize("method", METHODS)
def test_where_everything_fails_the_search_ends_at_its_budget(application, method):
    asked = {**ASKED, "budget": 270}

    def fails(job, steps=None):
        return Outcome(job, error="it failed", steps=steps)

    found = search(application, SPACE, method=method, seed=1, run=fails, **asked)
    assert found.best is None and found.incumbents == []
    assert all(one.error == "it failed" and math.isnan(one.score) for one in found.evaluations)
    assert 270 - 27 < found.evaluations[-1].spent <= 270
    nan = search(application, SPACE, method=method, seed=1, run=run, **{**asked, "score": "nan"})
    assert {one.error for one in nan.evaluations if "train_loss" not in one.error} == {"nan is nan"}
    # Those that end at once count a step each.
    soon = functools.partial(fails, steps=0)
    found = search(application, SPACE, method=method, seed=1, run=soon, **asked)
    assert [one.spent for one in found.evaluations] == list(range(1, len(found.evaluations) + 1))


def test_failures_count_as_worse_than_any_other(application):
    """The part of the space that fails is left by what learns."""
    asked = {**ASKED, "budget": 27 * 40}
    found = search(application, SPACE, method="tpe", seed=2, run=run, **asked)
    half = len(found.evaluations) // 2
    failed = [bool(one.error) for one in found.evaluations]
    assert sum(failed[half:]) <= sum(failed[:half]) and sum(failed[half:]) < 0.1 * half


def test_the_incumbent_is_the_best_of_those_with_the_most_steps():
    told = [(1, 0.1), (1, 0.05), (9, 0.9), (1, 0.01), (9, math.nan), (9, 0.8), (27, 1.0), (9, 0.1)]
    evaluations = tuple(
        Evaluation({}, steps, spent, score, "failed" if math.isnan(score) else "")
        for spent, (steps, score) in enumerate(told)
    )
    found = Found(evaluations, minimize=True)
    assert [one.spent for one in found.incumbents] == [0, 1, 2, 5, 6]
    assert found.best is evaluations[6]
    assert found.at(4) is evaluations[2] and found.at(-1) is None
    assert [one.spent for one in Found(evaluations, False).incumbents] == [0, 2, 6]


def _taken(proposals, count, loss):
    proposal = next(proposals)
    found = []
    for _ in range(count):
        found.append(proposal)
        proposal = proposals.send(loss(proposal))
    proposals.close()
    return found


def test_dehb_has_the_brackets_of_its_paper_and_positions_within_the_cube():
    found = _taken(dehb(SPACE, FIDELITY, 1), 40 + 13 + 8 + 4, lambda one: one.positions[0])
    assert [one.steps for one in found] == (
        [1] * 27
        + [3] * 9
        + [9] * 3
        + [27]
        + [3] * 9
        + [9] * 3
        + [27]
        + [9] * 6
        + [27] * 2
        + [27] * 4
    )
    assert all(0 <= place <= 1 for one in found for place in one.positions)
    # The second rung holds the best of the first.
    best = sorted(one.positions[0] for one in found[:27])[:9]
    assert sorted(one.positions[0] for one in found[27:36]) == best


def test_a_child_of_dehb_has_a_gene_of_its_mutant_and_its_parent_stays(monkeypatch):
    """Strategies that cross over exponentially write on the population; this one may not."""
    from dehb.optimizers.de import DE

    crossover, children = DE.crossover, []

    def watched(self, target, mutant):
        before = target.copy()
        child = crossover(self, target, mutant)
        assert (target == before).all()
        assert (child == mutant).any() and ((child == mutant) | (child == target)).all()
        children.append(child)
        return child

    monkeypatch.setattr(DE, "crossover", watched)
    _taken(dehb(SPACE, FIDELITY, 1), 200, lambda one: one.positions[0])
    assert len(children) > 100


def test_hyperband_lets_the_best_go_on():
    found = _taken(hyperband(SPACE, FIDELITY, 1), 60, lambda one: one.positions[0])
    seen = {steps: [] for steps in (1, 3, 9, 27)}
    for one, after in itertools.pairwise(found):
        seen[one.steps].append(one.positions[0])
        if len(seen[1]) == 27:
            break
        goes_on = after.positions == one.positions
        rank = sum(other < one.positions[0] for other in seen[one.steps])
        if one.steps < 27:
            # The first third of what its rung has seen, and one where it has seen fewer than three.
            assert goes_on == (rank < max(1, len(seen[one.steps]) // 3))
            assert not goes_on or after.steps == 3 * one.steps
    assert len(seen[1]) == 27


def test_rungs_rise_to_the_full_number_of_steps():
    assert Fidelity(high=27, low=1).rungs() == [1, 3, 9, 27]
    assert Fidelity(high=243, low=1).rungs() == [1, 3, 9, 27, 81, 243]
    assert Fidelity(high=100, low=1).rungs() == [1, 4, 11, 33, 100]
    assert Fidelity(high=100, low=10, eta=2, multiple=5).rungs() == [10, 25, 50, 100]


def test_a_long_ladder_of_dehb_loses_no_rung():
    fidelity = Fidelity(high=243, low=1)
    assert _taken(dehb(SPACE, fidelity, 1), 1, lambda one: 0.0)[0].steps == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"high": 0}, "high is 0; at least 1"),
        ({"high": 9, "low": 0}, "low is 0; at least 1"),
        ({"high": 9, "low": 10}, "low is 10 and high 9: reversed"),
        ({"high": 9, "eta": 1}, "eta is 1; at least 2"),
        ({"high": 9, "multiple": 2}, "a multiple of 2 is needed"),
    ],
)
def test_fidelities_that_cannot_be_are_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        Fidelity(**given)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"method": "tpee"}, UnknownNameError, "Did you mean 'tpe'"),
        ({"budget": 26}, ConfigurationError, "budget is 26, but one run takes 27 inner steps"),
        ({"method": "dehb", "fidelity": Fidelity(27)}, ConfigurationError, "low is None"),
        ({"method": "hyperband", "fidelity": Fidelity(27, 10)}, ConfigurationError, "at most 9"),
        ({"score": "accuracy"}, UnknownNameError, "Accepted: deep.score, loss, nan"),
        (
            {"fidelity": Fidelity(27, entries=("steps", "step"))},
            UnknownNameError,
            "Did you mean 'steps'",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(application, changed, error, message):
    asked = {**ASKED, "method": "random", "seed": 1, "run": run, **changed}
    with pytest.raises(error, match=message):
        search(application, SPACE, **asked)


def test_an_unknown_entry_and_a_single_coordinate_are_refused(application):
    asked = {**ASKED, "seed": 1, "run": None}
    with pytest.raises(UnknownNameError, match="'xx'"):
        search(application, Space({"xx": Range(0, 1)}), method="random", **asked)
    with pytest.raises(ConfigurationError, match="cma_es needs two coordinates"):
        search(application, Space({"x": Range(0, 1)}), method="cma_es", **asked)


@pytest.mark.parametrize(
    ("method", "module"), [("tpe", "optuna"), ("cma_es", "cmaes"), ("dehb", "dehb")]
)
def test_a_missing_package_names_its_extra(method, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"needs {module}, .*metatoolkit\[search\]"):
        next(METHODS[method](SPACE, FIDELITY, 1))


def test_nothing_is_left_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(_taken(dehb(SPACE, FIDELITY, 1), 2, lambda one: 0.0)[0], Proposal)
    assert list(Path().iterdir()) == []
