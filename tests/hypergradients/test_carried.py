"""What an estimator carries belongs to one problem: another one begins anew."""

import copy
import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import SOBA, ConjugateGradient, FixedPoint, Implicit, Penalty
from metatoolkit.testing import bank

CARRYING = {
    "SOBA": lambda: SOBA(0.3),
    "Implicit": lambda: Implicit(FixedPoint(5), warm_start=True),
    "Implicit, symmetric": lambda: Implicit(ConjugateGradient(2), warm_start=True),
    "Penalty": lambda: Penalty(3.0, steps=2),
}
carrying = pytest.mark.parametrize("make", CARRYING.values(), ids=CARRYING.keys())


def other_problem():
    """One of the same size with another curvature."""
    return bank.quadratic(3.0, 6)


def equal(one, other):
    return all(torch.equal(one.gradient[name], other.gradient[name]) for name in one.gradient)


@carrying
def test_another_problem_begins_anew(make):
    used = make()
    for _ in range(3):
        bank.quadratic(10.0, 6).call(used)
    case = bank.quadratic(10.0, 6)
    for _ in range(3):
        case.call(used)
    one, fresh = other_problem(), make()
    assert equal(one.call(used), one.call(fresh))
    # From then on both carry what belongs to it.
    assert equal(one.call(used), one.call(fresh))
    assert not equal(one.call(used), one.call(make()))


@carrying
def test_it_is_carried_within_a_problem_and_over_to_copies_of_it(make):
    case, used = other_problem(), make()
    first = case.call(used)
    copied = copy.deepcopy(used)
    double = dataclasses.replace(case, problem=copy.deepcopy(case.problem))
    second = case.call(used)
    assert not equal(first, second)
    assert equal(second, double.call(copied))


@carrying
def test_it_is_carried_over_a_checkpoint_to_the_problem_that_is_made_again(make):
    case, used = other_problem(), make()
    case.call(used)
    resumed = make()
    resumed.load_state_dict(copy.deepcopy(used.state_dict()))
    assert equal(case.call(used), other_problem().call(resumed))
    # Only to the first one.
    assert equal(bank.quadratic(5.0, 6).call(resumed), bank.quadratic(5.0, 6).call(make()))


@pytest.mark.parametrize(("kind", "anew"), [("SOBA", False), ("Penalty", True)])
def test_what_a_new_episode_begins_with(kind, anew):
    case, used = other_problem(), CARRYING[kind]()
    case.call(used)
    start = dataclasses.replace(case.state, key=99)
    assert equal(case.call(used, start), case.call(CARRYING[kind](), start)) is anew


@carrying
def test_the_comparison_of_estimators_does_not_carry_it_over(make):
    used = make()
    for _ in range(3):
        bank.quadratic(10.0, 6).call(used)
    case = other_problem()
    found = mt.compare_estimators(
        case.problem,
        case.inner,
        {"used": used, "fresh": make()},
        case.batches(2),
        case.valid_batch,
        show=False,
        progress=False,
        repeats=1,
    )
    one, other = found.table.loc["used"], found.table.loc["fresh"]
    assert one.relative_error == other.relative_error


def test_the_objective_is_that_of_the_call():
    used = SOBA(0.3)
    for _ in range(3):
        bank.quadratic(10.0, 6).call(used)
    case = other_problem()
    for _ in range(2):
        check = mt.check_hypergradient(
            case.problem, case.inner, used, case.batches(1), case.valid_batch, case.state
        )
        assert check.relative_error < 1e-6
        case.call(used)


@carrying
def test_another_size_is_an_error(make):
    used = make()
    bank.quadratic(10.0, 6).call(used)
    with pytest.raises(ConfigurationError, match="make a new"):
        bank.quadratic(10.0, 7).call(used)
