"""The trainer: order of the steps, what moves λ, which arguments go together."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import (
    GMRES,
    EvoGrad,
    EvolutionStrategies,
    Implicit,
    Unrolled,
)
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded
from tests.training.assembled import fit, same, tensors_of, trainer_of


def by_hand(case, steps, order, horizon=1, meta_every=1, lr=0.01):
    """The loop in so many words."""
    problem, inner, state = case.problem, case.inner, case.inner.init(case.problem, seed=0)
    estimator, taken = Unrolled(horizon), 0
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=lr)

    def move_meta(batches):
        result = estimator(problem, inner, state, batches, case.valid_batch)
        for name, parameter in problem.meta.named_parameters():
            parameter.grad = result.gradient[name]
        optimizer.step()

    for step in range(steps):
        batches = [case.train_batches[(taken + i) % 3] for i in range(horizon)]
        taken += horizon
        if order == "meta_first" and step % meta_every == 0:
            move_meta(batches)
        for batch in batches:
            state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
        if order == "inner_first" and step % meta_every == 0:
            move_meta(batches)
    problem.load(state)
    return tensors_of(problem)


@pytest.mark.parametrize("order", ["meta_first", "inner_first"])
@pytest.mark.parametrize(("horizon", "meta_every"), [(1, 1), (2, 1), (1, 3)])
def test_the_loop_equals_the_one_in_words(order, horizon, meta_every):
    expected = by_hand(bank.small_net(), 5, order, horizon, meta_every)
    case = bank.small_net()
    fit(trainer_of(case, Unrolled(horizon), order=order, meta_every=meta_every), case, 5)
    assert same(tensors_of(case.problem), expected)


def test_the_lookahead_is_what_a_second_pass_gives_with_the_old_meta():
    case = bank.small_net()
    expected = case.inner.init(case.problem, seed=0)
    for batch in case.train_batches[:2]:
        expected, _ = case.inner.step(case.problem, expected, case.problem.meta_parameters(), batch)
    trainer = trainer_of(case, Unrolled(2), keep_lookahead=True)
    fit(trainer, case, 1)
    for one, other in zip(trainer.state.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "estimator",
    [EvoGrad(2, 0.1, 0.5), EvolutionStrategies(2, 2, 0.1), Implicit(GMRES(5))],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_lookahead_that_is_none_cannot_be_kept(estimator):
    case = bank.small_net()
    before = [parameter.detach().clone() for parameter in case.problem.meta.parameters()]
    with pytest.raises(ConfigurationError, match=r"keep_lookahead.*θ would never move"):
        fit(trainer_of(case, estimator, keep_lookahead=True), case, 1)
    assert same(before, case.problem.meta.parameters())


def test_without_an_estimator_theta_learns_alone():
    case = bank.small_net()
    before = [p.clone() for p in case.problem.meta.parameters()]
    trainer = trainer_of(case, None)
    last = trainer.fit(case.train_batches, steps=7, progress=False)
    assert set(last) == {"train_loss"}
    assert same(before, list(case.problem.meta.parameters()))
    state = bank.small_net().state
    assert not same(trainer.state.tensors(), state.tensors())


def test_gradients_that_a_user_holds_are_neither_in_the_way_nor_touched():
    case = bank.small_net()
    fit(trainer_of(case), case, 2)
    expected = tensors_of(case.problem)
    case = bank.small_net()
    trainer = trainer_of(case)
    held = {}
    for name, parameter in case.problem.meta.named_parameters():
        parameter.grad = held[name] = torch.full_like(parameter, 1e6)
    fit(trainer, case, 2)
    assert same(tensors_of(case.problem), expected)
    for name, parameter in case.problem.meta.named_parameters():
        assert parameter.grad is held[name] and bool((held[name] == 1e6).all())


def paired(index):
    """A support set and the query set of the same task, told by a tag in the first entry."""
    case = bank.small_net()
    (inputs, targets), (valid_inputs, valid_targets) = case.train_batches[0], case.valid_batch
    inputs, valid_inputs = inputs.clone(), valid_inputs.clone()
    inputs[0, 0] = valid_inputs[0, 0] = float(index)
    return (inputs, targets), (valid_inputs, valid_targets)


class Noting(Unrolled):
    """Notes the tags of the batches that it is given."""

    def __init__(self, steps):
        super().__init__(steps)
        self.seen = []

    def estimate(self, problem, inner, state, train_batches, valid_batch):
        self.seen.append(([float(b[0][0, 0]) for b in train_batches], float(valid_batch[0][0, 0])))
        return super().estimate(problem, inner, state, train_batches, valid_batch)


@pytest.mark.parametrize("order", ["meta_first", "inner_first"])
@pytest.mark.parametrize(
    ("horizon", "meta_every", "accumulate", "expected"),
    [
        (1, 1, 1, [([0], 0), ([1], 1), ([2], 2), ([3], 3)]),
        (1, 3, 1, [([0], 0), ([3], 3)]),
        (2, 2, 1, [([0, 1], 0), ([4, 5], 2)]),
        (1, 2, 2, [([0], 0), ([1], 1), ([4], 4), ([5], 5)]),
    ],
)
def test_a_support_set_meets_its_own_query_set(order, horizon, meta_every, accumulate, expected):
    tasks = [paired(index) for index in range(8)]
    case = bank.small_net()
    options = {"order": order, "meta_every": meta_every, "accumulate": accumulate}
    trainer = trainer_of(case, Noting(horizon), **options)
    support, query = zip(*tasks, strict=True)
    trainer.fit(support, query, 4, progress=False)
    assert trainer.estimator.seen == expected


def test_an_accumulated_move_is_along_the_mean_of_the_hypergradients_at_one_point():
    case = bank.small_net()
    state, before = case.inner.init(case.problem, 0), tensors_of_meta(case)
    valid = [case.valid_batch, case.train_batches[2]]
    found = [
        Unrolled(1)(case.problem, case.inner, state, [batch], valid_batch)
        for batch, valid_batch in zip(case.train_batches[:2], valid, strict=True)
    ]
    trainer = trainer_of(case, Unrolled(1), lr=0.5, accumulate=2)
    last = trainer.fit(case.train_batches, valid, 1, progress=False)
    means = {n: (found[0].gradient[n] + found[1].gradient[n]) / 2 for n in before}
    for name, parameter in case.problem.meta.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.5 * means[name])
    flat = torch.cat([gradient.flatten() for gradient in means.values()])
    assert last["hypergradient_norm"] == pytest.approx(float(flat.norm()))
    assert last["valid_loss"] == pytest.approx(float(sum(f.valid_loss for f in found)) / 2)
    assert trainer.state.step == 2


def tensors_of_meta(case):
    return {n: p.detach().clone() for n, p in case.problem.meta.named_parameters()}


def test_an_episode_starts_over_with_a_key_of_its_own():
    case = bank.small_net()
    case.inner = mt.inner.SGD(lr=0.0)
    entered = []

    class Noted(Unrolled):
        def estimate(self, problem, inner, state, train_batches, valid_batch):
            entered.append((state.step, state.key))
            return super().estimate(problem, inner, state, train_batches, valid_batch)

    trainer = trainer_of(case, Noted(2), lr=0.0, reset_every=3)
    losses = []
    batch = case.train_batches[0]
    trainer.fit(
        [batch],
        [batch],
        6,
        log=lambda name, value, _: losses.append(value) if name == "train_loss" else None,
        progress=False,
    )
    # Three inner steps, rounded up to whole outer steps of two.
    assert [step for step, _ in entered] == [0, 2, 0, 2, 0, 2]
    keys = [key for _, key in entered[::2]]
    assert len(set(keys)) == 3 and keys[0] == trainer.start.key
    assert trainer.resets_done == 2
    # Nothing moves: what differs between the episodes are the dropout masks alone.
    assert len(set(losses)) == 6


def test_an_episode_starts_where_the_trainer_found_theta():
    case = bank.ridge()
    trainer = trainer_of(case, reset_every=1)
    start = case.problem.model.value.detach().clone()
    stepped = case.inner.init(case.problem)
    meta = {n: p.detach().clone() for n, p in case.problem.meta_parameters().items()}
    fit(trainer, case, 1)
    stepped, _ = case.inner.step(
        case.problem, stepped, case.problem.meta_parameters(), case.train_batches[0]
    )
    torch.testing.assert_close(trainer.state.parameters["value"], stepped.parameters["value"])
    assert torch.equal(trainer.start.parameters["value"], start)
    assert not torch.equal(meta["value"], case.problem.meta.value)
    fit(trainer, case, 2)
    restarted = trainer.start
    restarted, _ = case.inner.step(
        case.problem, restarted, case.problem.meta_parameters(), case.train_batches[0]
    )
    torch.testing.assert_close(trainer.state.parameters["value"], restarted.parameters["value"])


@pytest.mark.parametrize("meta_every", [1, 2])
def test_base_steps_are_taken_where_there_is_no_lookahead_to_keep(meta_every):
    case = bank.small_net()
    trainer = trainer_of(case, Unrolled(2), keep_lookahead=True, meta_every=meta_every)
    for step in range(3):
        batches = [case.train_batches[(2 * step + i) % 3] for i in range(2)]
        state, meta = trainer.state, tensors_of_meta(case)
        fit(trainer, case, step + 1)
        moves = step % meta_every == 0
        assert moves == (not same(meta.values(), case.problem.meta.parameters()))
        for batch in batches:
            state, _ = case.inner.step(case.problem, state, meta, batch)
        for one, other in zip(state.tensors(), trainer.state.tensors(), strict=True):
            torch.testing.assert_close(one, other)


def test_the_seed_is_that_of_the_trajectory_and_other_batches_begin_at_their_first():
    keys = {trainer_of(bank.small_net(), seed=seed).state.key for seed in (0, 1, 2)}
    assert len(keys) == 3
    case = recorded()
    trainer = trainer_of(case, None)
    batches = [1.0, 2.0, 3.0]
    for steps, given in ((2, batches), (3, batches), (5, [5.0, 6.0]), (6, list(batches))):
        trainer.fit(given, steps=steps, progress=False)
    # The same list goes on where it was, another one begins.
    assert [one.batch for one in case.seen] == [1.0, 2.0, 3.0, 5.0, 6.0, 1.0]


def test_the_former_name_of_resets_warns():
    case = bank.small_net()
    with pytest.warns(DeprecationWarning, match="reset_every= now"):
        assert trainer_of(case, episode=3).reset_every == 3
    with pytest.raises(ConfigurationError, match="the former name of reset_every"):
        trainer_of(case, episode=3, reset_every=3)
