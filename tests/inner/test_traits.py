"""What learners say of their steps, and that overriding takes it back."""

from __future__ import annotations

import pytest

import metatoolkit as mt
from metatoolkit.inner import SGD
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import (
    is_coordinatewise,
    is_linear_in_gradient,
    is_own,
    is_said_of,
    tells_sensitivity,
)


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


def test_a_step_is_linear_where_its_class_says_so_and_nothing_newer_overrides():
    class Bent(Said):
        linear_in_gradient = False

    assert is_linear_in_gradient(mt.inner.SGD(0.1)) and is_linear_in_gradient(Said(0.1))
    assert not is_linear_in_gradient(Halved(0.1))
    assert is_said_of(Bent(0.1), "linear_in_gradient") and not is_linear_in_gradient(Bent(0.1))
    assert not is_linear_in_gradient(mt.inner.Adam(0.1))


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


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SGD(0.1), True),
        (lambda: overriding("update")(0.1), False),
        (lambda: overriding("apply")(0.1), False),
        (lambda: overriding("step")(0.1), False),
        (lambda: overriding("gradients")(0.1), False),
        (lambda: overriding("update", "sensitivity")(0.1), True),
        (lambda: overriding("sensitivity")(0.1), True),
        (lambda: overriding("init_slots")(0.1), True),
        (lambda: changed(SGD(0.1), "update"), False),
        (lambda: changed(SGD(0.1), "nesterov"), True),
        (lambda: mt.inner.Muon(), False),
    ],
)
def test_a_closed_form_is_that_of_the_update_it_was_written_for(make, told):
    assert tells_sensitivity(make(), mt.inner.InnerLearner) is told


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SGD(0.1), True),
        (lambda: overriding("update")(0.1), False),
        (lambda: mt.inner.GradientFlow(1.0, 2), True),
        (lambda: changed(mt.inner.GradientFlow(1.0, 2), "update"), False),
        (lambda: changed(mt.inner.GradientFlow(1.0, 2), "gradients"), False),
        (lambda: mt.inner.Muon(), False),
        (lambda: mt.inner.Clipped(SGD(0.1), max_norm=1.0), False),
    ],
)
def test_coordinates_that_move_by_themselves(make, told):
    assert is_coordinatewise(make(), mt.inner.InnerLearner) is told


def overriding(*names):
    return type("Own", (SGD,), {name: lambda self, *arguments: None for name in names})


def changed(inner, name):
    setattr(inner, name, lambda *arguments: None)
    return inner
