"""Random estimators draw anew in each call, and the same again after a resume."""

import copy
import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients import (
    EvoGrad,
    EvolutionStrategies,
    ForwardGradient,
    Implicit,
    NoiseReuseES,
    Nystrom,
    PersistentES,
)
from metatoolkit.hypergradients import draws as draws_module
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank

RANDOM = {
    "EvoGrad": lambda **options: EvoGrad(2, 0.1, 0.5, noise="gaussian", **options),
    "EvoGrad, streamed": lambda **options: EvoGrad(
        3, 0.1, 0.5, noise="gaussian", streamed=True, **options
    ),
    "ForwardGradient": lambda **options: ForwardGradient(2, noise="gaussian", **options),
    "EvolutionStrategies": lambda **options: EvolutionStrategies(1, 1, 0.1, **options),
    "PersistentES": lambda **options: PersistentES(1, 1, 0.1, **options),
    "NoiseReuseES": lambda **options: NoiseReuseES(1, 1, 0.1, **options),
}
NYSTROM = {"Implicit, Nystrom": lambda **options: Implicit(Nystrom(2), **options)}
random = pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM.keys())
all_random = pytest.mark.parametrize(
    "make", [*RANDOM.values(), *NYSTROM.values()], ids=[*RANDOM, *NYSTROM]
)


def case_of(make):
    """Plain gradient descent where a symmetric solver needs it, and its inner optimum."""
    return bank.quadratic(10.0, 6) if isinstance(make(), Implicit) else bank.ridge()


def flat(result):
    return torch.cat([gradient.flatten() for gradient in result.gradient.values()])


def state_at(step, key=11):
    return dataclasses.replace(bank.ridge().state, step=step, key=key)


@random
def test_two_hundred_calls_at_new_initial_states_have_full_rank(make):
    case, estimator = bank.ridge(), make()
    rows = [flat(case.call(estimator, case.inner.init(case.problem))) for _ in range(200)]
    rank = torch.linalg.matrix_rank(torch.stack(rows), rtol=1e-6)
    assert rank == rows[0].numel()


def test_the_sketch_of_a_solver_is_another_one_in_each_call():
    case, estimator = bank.quadratic(10.0, 6), Implicit(Nystrom(2))
    rows = torch.stack([flat(case.call(estimator)) for _ in range(8)])
    assert torch.linalg.matrix_rank(rows - rows.mean(0), rtol=1e-6) == 3


@all_random
def test_the_first_call_and_the_calls_of_a_trainer_are_those_of_the_state_alone(make):
    """As without a count: a fixed draw at every step of one trajectory."""
    case = case_of(make)
    counting, fixed = make(), make(fresh=False)
    state = case.state
    for step in (0, 1, 2, 5):
        at = dataclasses.replace(state, step=step)
        assert torch.equal(flat(case.call(counting, at)), flat(case.call(fixed, at)))
    other = dataclasses.replace(state, key=77)
    assert torch.equal(flat(case.call(counting, other)), flat(case.call(fixed, other)))


@all_random
def test_a_fixed_draw_where_it_is_asked_for(make):
    case, estimator = case_of(make), make(fresh=False)
    first, again = (flat(case.call(estimator)) for _ in range(2))
    assert torch.equal(first, again)
    assert "draws" not in estimator.state_dict()


@all_random
def test_equal_seeds_give_equal_sequences(make):
    case = case_of(make)
    one, other = make(), make()
    first = [flat(case.call(one)) for _ in range(4)]
    again = [flat(case.call(other)) for _ in range(4)]
    assert all(map(torch.equal, first, again))
    assert len({tuple(row.tolist()) for row in first}) == 4


@all_random
def test_a_resumed_estimator_goes_on_where_it_was(make):
    case = case_of(make)
    whole, before = make(), make()
    expected = [flat(case.call(whole)) for _ in range(5)]
    for _ in range(3):
        case.call(before)
    after = make()
    after.load_state_dict(before.state_dict())
    assert all(torch.equal(flat(case.call(after)), row) for row in expected[3:])


@all_random
def test_checkpoints_from_before_the_count_load(make):
    estimator = make()
    case_of(make).call(estimator)
    old = {name: value for name, value in estimator.state_dict().items() if name != "draws"}
    resumed = make()
    resumed.load_state_dict(old)
    assert resumed._draws.state_dict() == {}


@random
def test_tasks_that_take_turns_draw_anew(make):
    case, estimator = bank.ridge(), make()
    found = []
    for _ in range(4):
        for key in (3, 4, 5):
            found.append(flat(case.call(estimator, dataclasses.replace(case.state, key=key))))
    assert len({tuple(row.tolist()) for row in found}) == len(found)


@random
def test_problems_that_take_turns_draw_anew(make):
    cases, estimator = [bank.ridge(), bank.ridge()], make()
    found = [flat(case.call(estimator)) for _ in range(4) for case in cases]
    assert len({tuple(row.tolist()) for row in found}) == len(found)


def test_a_second_pass_over_a_trajectory_draws_anew_at_each_step():
    draws = Draws()
    first = [draws.advance(state_at(step)) for step in range(4)]
    second = [draws.advance(state_at(step)) for step in range(4)]
    third = [draws.advance(state_at(step)) for step in (2, 3)]
    assert first == [11] * 4
    assert len({*first, *second, *third}) == 3


def test_the_objective_has_the_draw_of_the_last_call_at_the_state():
    draws = Draws()
    start = state_at(0)
    assert draws.current(start) == draws.advance(start)
    assert draws.current(start) == 11
    second = draws.advance(start)
    assert draws.current(start) == second != 11
    # That of the next call, at a state where there was none.
    assert draws.current(state_at(3)) == draws.advance(state_at(3))
    ahead = draws.current(state_at(1))
    assert draws.advance(state_at(1)) == ahead != second


@pytest.mark.parametrize("kind", ["EvoGrad", "EvoGrad, streamed"])
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_the_check_compares_with_the_draw_of_its_own_call(kind, calls):
    case, estimator = bank.ridge(), RANDOM[kind]()
    for _ in range(calls):
        case.call(estimator)
    before = copy.deepcopy(estimator.state_dict())
    check = mt.check_hypergradient(
        case.problem, case.inner, estimator, case.batches(1), case.valid_batch, case.state
    )
    assert check.relative_error < 1e-6
    assert estimator.state_dict() == before


def test_keys_beyond_those_that_are_kept_draw_anew_too(monkeypatch):
    monkeypatch.setattr(draws_module, "_KEPT", 3)
    draws = Draws()
    found = [(key, draws.advance(state_at(0, key))) for _ in range(6) for key in range(1, 6)]
    assert len(set(found)) == len(found)
    assert len(draws.state_dict()["draws"]["seen"]) == 3


@random
def test_episodes_of_a_trainer_are_what_a_fixed_draw_gives(make):
    found = []
    for fresh in (True, False):
        case = bank.ridge()
        estimator = make(fresh=fresh)
        trainer = mt.MetaTrainer(
            case.problem,
            case.inner,
            estimator,
            torch.optim.SGD(case.problem.meta.parameters(), lr=0.01),
            reset_every=2 * estimator.horizon,
        )
        trainer.fit(case.train_batches, [case.valid_batch], steps=7, progress=False)
        found.append(case.problem.meta.value.detach().clone())
    assert torch.equal(*found)


@random
def test_a_trainer_with_an_estimator_that_was_used_is_that_with_a_new_one(make):
    found, used = [], make()
    for estimator in (used, used, make()):
        case = bank.ridge()
        optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=0.01)
        trainer = mt.MetaTrainer(case.problem, case.inner, estimator, optimizer)
        trainer.fit(case.train_batches, [case.valid_batch], steps=4, progress=False)
        found.append(case.problem.meta.value.detach().clone())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def bare(step, key):
    return mt.InnerState({}, {}, {}, step, key)


def drawn(draws, *calls):
    """The number of the draw of each call, by key and step; 0 is the one of the state alone."""
    found = []
    for key, step in calls:
        given = draws.advance(bare(step, key))
        numbers = [0, *range(-9, 0), *range(1, 9)]
        keys = [fold_in(key, -9, number) if number else key for number in numbers]
        found.append(numbers[keys.index(given)])
    return found


def test_the_draws_of_published_runs_stay_what_they_were():
    draws = Draws()
    assert drawn(draws, (7, 0), (7, 1), (7, 1), (7, 0), (7, 2), (8, 2), (7, 3)) == [
        *(0, 0, 1, 2, 2),
        *(0, 2),
    ]
    draws.restart()
    assert draws.state_dict() == {} and drawn(draws, (7, 0), (7, 0)) == [0, 1]


def test_the_key_that_was_used_least_lately_is_forgotten(monkeypatch):
    monkeypatch.setattr(draws_module, "_KEPT", 3)
    draws = Draws()
    assert drawn(draws, (1, 0), (2, 0), (2, 0), (2, 0), (3, 0), (1, 1)) == [0, 0, 1, 2, 0, 0]
    # Key 2, of which three draws were seen, goes: whatever key comes now begins with the fourth.
    assert drawn(draws, (4, 0)) == [0]
    assert [key for key, *_ in draws.state_dict()["draws"]["seen"]] == [3, 1, 4]
    assert draws.state_dict()["draws"]["forgotten"] == 3
    # Then 3 and 1 go, after one draw each.
    resumed = Draws()
    resumed.load_state_dict(draws.state_dict())
    for one in (draws, resumed):
        assert drawn(one, (2, 0), (2, 0), (5, 0), (5, 1)) == [3, 4, 4, 4]
    draws.restart()
    assert drawn(draws, (2, 0), (6, 0)) == [0, 0]


def test_some_thousand_keys_are_kept():
    draws = Draws()
    for key in range(4097):
        draws.advance(bare(0, key))
    seen = draws.state_dict()["draws"]["seen"]
    assert [key for key, *_ in seen] == list(range(1, 4097))


def test_a_fixed_draw_stays_one_after_the_checkpoint_of_another():
    counting, fixed = Draws(), Draws(fresh=False)
    drawn(counting, (7, 0), (7, 0), (7, 0))
    rest = fixed.load_state_dict({**counting.state_dict(), "moved": True})
    assert rest == {"moved": True}
    assert drawn(fixed, (7, 0), (7, 0), (7, 3)) == [0, 0, 0]
    assert fixed.current(state_at(1, 7)) == 7


def test_the_caller_keeps_what_is_loaded():
    counting = Draws()
    drawn(counting, (7, 0), (7, 0))
    saved = {**counting.state_dict(), "other": 1}
    before = copy.deepcopy(saved)
    loaded = Draws()
    assert loaded.load_state_dict(saved) == {"other": 1}
    drawn(loaded, (7, 0))
    assert saved == before
    # Without an entry of its own it begins anew.
    assert loaded.load_state_dict({"other": 1}) == {"other": 1} and loaded.state_dict() == {}
