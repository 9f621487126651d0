"""What learners say of their steps, and that overriding takes it back."""

from __future__ import annotations

import metatoolkit as mt
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_own, is_said_of


class Renamed(mt.inner.SGD):
    pass


class Halved(mt.inner.SGD):
    def update(self, parameter, gradient, slots, hyperparameters, step):
        return super().update(parameter, gradient / 2, slots, hyperparameters, step)


class Said(Halved):
    linear_in_gradient = True


def test_a_statement_holds_until_a_part_of_the_step_is_overridden():
    assert mt.inner.SGD(0.1).linear_in_gradient
    assert is_said_of(mt.inner.SGD(0.1), "linear_in_gradient")
    assert is_said_of(Renamed(0.1), "linear_in_gradient")
    assert not is_said_of(Halved(0.1), "linear_in_gradient")
    assert is_said_of(Said(0.1), "linear_in_gradient")
    assert not mt.inner.Adam(0.1).linear_in_gradient


def test_an_instance_that_overrides_takes_a_statement_back():
    inner = mt.inner.SGD(0.1)
    inner.apply = lambda problem, state, meta, gradients: state
    assert not is_said_of(inner, "linear_in_gradient")


def test_a_method_is_its_own_where_class_or_instance_overrides_it():
    class Own(mt.inner.SGD):
        def step(self, problem, state, meta, batch):
            return state

    plain = mt.inner.SGD(0.1)
    assert is_own(Own(0.1), InnerLearner, "step")
    assert not is_own(plain, InnerLearner, "step")
    plain.step = lambda problem, state, meta, batch: state
    assert is_own(plain, InnerLearner, "step")
