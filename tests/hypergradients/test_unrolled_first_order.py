"""Unrolls whose steps hold the gradients of the training loss."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import FirstOrder, Unrolled
from metatoolkit.testing import bank
from tests.metaparameters.test_initialization import maml

STEPS = 4
SETTINGS = [
    {},
    {"keep_graphs": STEPS},
    {"keep_graphs": 2},
    {"checkpoint": "sqrt"},
    {"checkpoint": "tree", "arity": 2},
    {"product": "forward_over_reverse"},
]


def first_order(steps=STEPS, **options):
    return Unrolled(steps, first_order=True, **options)


def close(found, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-15)


def test_it_is_first_order_maml_whatever_is_kept():
    case = maml(mt.inner.SGD(lr=0.1))
    expected = case.call(FirstOrder(STEPS))
    second = case.call(Unrolled(STEPS))
    off = [second.gradient[name] - part for name, part in expected.gradient.items()]
    assert max(float(part.abs().max()) for part in off) > 1e-4
    for options in SETTINGS:
        found = case.call(first_order(**options))
        close(found.gradient, expected.gradient)
        assert torch.equal(found.valid_loss, expected.valid_loss)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, STEPS + 1),
        ({"keep_graphs": STEPS}, STEPS + 1),
        # States that are computed again, and their gradients.
        ({"checkpoint": "tree", "arity": 2}, None),
    ],
)
def test_it_takes_first_order_passes_alone(options, passes):
    cost = bank.initialized().call(first_order(**options)).cost
    assert cost.hvp == 0 and cost.forward == cost.backward
    if passes is None:
        assert STEPS + 1 < cost.forward <= 2 * STEPS + 1
    else:
        assert cost.forward == passes


def with_momentum():
    # The update goes on to act on θ and the slots, its gradient held.
    return maml(mt.inner.SGD(lr=0.1, momentum=0.9, weight_decay=0.3))


@pytest.mark.parametrize("weights", [None, [0.2, 0.0, 0.3, 0.5]])
@pytest.mark.parametrize("make", [with_momentum, bank.learned_rates])
def test_it_is_the_derivative_of_its_objective(make, weights):
    case = make()
    options = {} if weights is None else {"keep_graphs": STEPS, "step_weights": weights}
    check = mt.check_hypergradient(
        case.problem,
        case.inner,
        first_order(**options),
        case.batches(STEPS),
        case.valid_batch,
    )
    assert check.relative_error < 1e-6


def test_weighted_outer_losses_are_those_of_shorter_unrolls():
    case, weights = bank.learned_rates(), [0.2, 0.0, 0.3, 0.5]
    found = case.call(first_order(keep_graphs=STEPS, step_weights=weights))
    each = [case.call(first_order(steps)).gradient for steps in range(1, STEPS + 1)]
    total = {
        name: sum(w * one[name] for w, one in zip(weights, each, strict=True))
        for name in found.gradient
    }
    close(found.gradient, total)


def test_rates_learn_and_what_acts_in_the_training_loss_alone_is_refused():
    problem = mt.BilevelProblem(
        bank.Value(0.5),
        bank.Value(2.0),
        lambda model, meta, batch: batch * model.value.square() / 2,
        lambda model, meta, batch: model.value * batch,
    )
    rates = mt.inner.SGD(lr=lambda meta, step: 0.1 * meta.value)
    case = bank.ProblemInstance(problem, rates, [1.0, 2.0], 3.0)
    # θ₁ = 0.5 − 0.2 · 0.5 = 0.4, and the gradients 0.5 and 0.8 are held.
    found = case.call(first_order(2)).gradient["value"]
    assert float(found) == pytest.approx(-3 * 0.1 * (0.5 + 0.8), rel=1e-14)

    def weighed(model, meta, batch):
        return batch * model.value * meta.value

    inner_meta = mt.BilevelProblem(bank.Value(0.5), bank.Value(2.0), weighed, problem.valid_loss)
    case = bank.ProblemInstance(inner_meta, mt.inner.SGD(lr=0.1), [1.0, 2.0], 3.0)
    with pytest.raises(UnsupportedError, match=r"value.*act where Unrolled\(first_order=True\)"):
        case.call(first_order(2))


def test_an_inner_step_that_is_no_update_by_a_gradient_is_refused():
    class Twice(mt.inner.SGD):
        def step(self, problem, state, meta, batch, create_graph=False):
            state, _ = super().step(problem, state, meta, batch, create_graph)
            return super().step(problem, state, meta, batch, create_graph)

    case = bank.initialized()
    case = dataclasses.replace(case, inner=Twice(lr=0.1))
    with pytest.raises(UnsupportedError, match="first_order=True need an inner step that is an up"):
        case.call(first_order())


def test_it_may_be_set_between_calls():
    estimator = Unrolled(STEPS, keep_graphs=1)
    plain, case = estimator.traits, maml(mt.inner.SGD(lr=0.1))
    exact = case.call(estimator).gradient
    assert estimator.repeats_steps and plain.kind == "exact"
    estimator.first_order = True
    assert not estimator.repeats_steps and estimator.traits.kind == "approximate"
    assert estimator.traits.passes == "(3 T + 3) F" and estimator.traits != plain
    close(case.call(estimator).gradient, case.call(FirstOrder(STEPS)).gradient)
    estimator.first_order = False
    assert estimator.traits == plain and estimator.repeats_steps
    close(case.call(estimator).gradient, exact)
    assert first_order(3, truncation=2).traits.computes.endswith("loss held")


def test_arguments():
    for value in (1, 0.5, None, "yes"):
        with pytest.raises(ConfigurationError, match=r"first_order is .*; accepted: True, False"):
            Unrolled(2, first_order=value)
