"""Search spaces, and what runs at their points scored."""

import math

import pytest

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments.jobs import Job, Outcome
from metatoolkit.experiments.search_space import (
    Choice,
    Point,
    Range,
    Space,
    jobs_of,
    rounded,
    score_of,
)

POSITIONS = [0.0, 0.1, 0.25, 0.5, 0.9, 1.0]


def test_bounds_are_reached_on_both_scales():
    assert [Range(1e-3, 1e-1, log=True).at(one) for one in (0.0, 0.5, 1.0)] == [1e-3, 1e-2, 1e-1]
    assert [Range(-1, 3).at(one) for one in (0.0, 0.5, 1.0)] == [-1.0, 1.0, 3.0]
    assert Range(1.0, 10.0, log=True).at(1 / 3) == 2.2
    assert Range(1.0, 10.0, log=True, digits=None).at(1 / 3) == pytest.approx(10 ** (1 / 3), 1e-15)
    assert rounded(0.123456) == 0.12 and rounded(123456, 3) == 123000.0


def test_each_integer_and_each_value_has_its_share():
    positions = [(place + 0.5) / 1000 for place in range(1000)]
    numbers = [Range(2, 5, integer=True).at(one) for one in positions]
    assert [numbers.count(one) for one in (2, 3, 4, 5)] == [250] * 4
    assert all(isinstance(one, int) for one in numbers)
    values = [Choice(("a", "b", None)).at(one) for one in positions]
    assert [values.count(one) for one in ("a", "b", None)] == [333, 334, 333]
    logarithmic = Range(1, 100, log=True, integer=True)
    assert [logarithmic.at(one) for one in (0.0, 1.0)] == [1, 100]
    # From 0.5 to 100.5 as many ratios below 7.09 as above.
    assert logarithmic.at(0.5) == round(math.sqrt(0.5 * 100.5))


def test_a_point_holds_what_is_fixed_and_what_follows_from_others():
    space = Space(
        {"part.lr": Range(0, 1), "method": Choice(("a", "b"))},
        lambda values: {**values, "double": 2 * values["part.lr"]},
        {"steps": 5, "part": {"on": True}},
        ("fast",),
    )
    point = space.point([0.25, 0.75])
    updates = {"steps": 5, "part": {"on": True, "lr": 0.25}, "method": "b", "double": 0.5}
    assert point == Point(updates, ("fast",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Range(1.0, 1.0), "from 1 to 1 is empty"),
        (lambda: Range(2.0, 1.0), "from 2 to 1 is reversed"),
        (lambda: Range(0.0, math.inf), "is not finite"),
        (lambda: Range(0.0, math.nan), "is not finite"),
        (lambda: Range(0.0, 1.0, log=True), "no logarithmic scale"),
        (lambda: Range(0.5, 3, integer=True), "integer bounds"),
        (lambda: Choice(("a",)), "nothing to choose"),
        (lambda: Choice(()), "nothing to choose"),
        (lambda: Space({}), "nothing to search"),
    ],
)
def test_spaces_with_nothing_in_them_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_points_are_run_with_each_seed_and_unknown_entries_are_told_first():
    module = "applications.label_noise.experiment"
    points = [Point({"lr": 0.1}), Point({"lr": 0.2}, ("smoke",))]
    jobs = jobs_of(module, points, (3, 4), "tried", {"search": {"number": 1}})
    told = [(job.updates["lr"], job.seed, job.named) for job in jobs]
    assert told == [(0.1, 3, ()), (0.1, 4, ()), (0.2, 3, ("smoke",)), (0.2, 4, ("smoke",))]
    assert {job.label for job in jobs} == {"tried"}
    assert all(job.info == {"search": {"number": 1}} for job in jobs)
    with pytest.raises(UnknownNameError, match="Did you mean 'lr'"):
        jobs_of(module, [*points, Point({"lrr": 0.1})], (1,), "tried")


def test_scores_are_read_from_results():
    job = Job("module", "label", 1)
    assert score_of(Outcome(job, {"a": {"b": 2}}), "a.b") == 2.0
    assert math.isnan(score_of(Outcome(job, error="it failed"), "a.b"))
    with pytest.raises(UnknownNameError, match=r"Accepted: a\.b"):
        score_of(Outcome(job, {"a": {"b": 2}}), "accuracy")
