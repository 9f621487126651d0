"""Instances of problems: what an estimator is called with."""

import pytest
import torch

from metatoolkit.hypergradients import ProblemInstance, Unrolled
from metatoolkit.testing import bank


def test_batches_come_in_turns_and_all_of_them_by_default():
    instance = bank.started()
    assert instance.batches(5) == [1.0, 2.0, 4.0, 1.0, 2.0] and instance.batches(0) == []
    problem, inner, state, batches, valid_batch = instance.arguments()
    assert (problem, inner, valid_batch) == (instance.problem, instance.inner, 0.25)
    assert batches == [1.0, 2.0, 4.0] and batches is not instance.train_batches
    assert instance.arguments(2)[3] == [1.0, 2.0]
    assert state.step == 0 and float(state.parameters["value"]) == 0.8


def test_the_state_is_the_first_one_of_a_seed_or_the_one_given():
    small = bank.small_net()
    plain = ProblemInstance(small.problem, small.inner, small.train_batches, small.valid_batch)
    assert plain.state.key == small.inner.init(small.problem).key
    assert small.state.key == small.inner.init(small.problem, 5).key != plain.state.key
    # Without a start it is made anew from the model.
    assert small.state.parameters["0.weight"] is not small.state.parameters["0.weight"]
    later, _ = small.inner.step(
        small.problem, small.state, small.problem.meta_parameters(), small.train_batches[0]
    )
    small.start = later
    assert small.state is later and small.arguments(1)[2] is later
    assert small.arguments(1, plain.start or plain.state)[2].step == 0


def test_a_call_is_the_estimator_s_own_with_as_many_batches_as_it_takes():
    instance = bank.ridge()
    state = instance.state
    expected = Unrolled(3)(
        instance.problem, instance.inner, state, instance.train_batches * 3, instance.valid_batch
    )
    for found in (instance.call(Unrolled(3)), instance.call(Unrolled(3), state)):
        assert torch.equal(found.gradient["value"], expected.gradient["value"])
        assert found.state.step == 3
    later = instance.call(Unrolled(3), expected.state)
    assert later.state.step == 6
    with pytest.raises(AttributeError):
        instance.call(object())
