"""Losses that differentiate inside themselves, as gradient penalties do, under each estimator."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import metatoolkit as mt
from metatoolkit.errors import MetatoolkitError
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS


def adapted(model, meta, batch):
    """The loss after one step of gradient descent that is taken inside, in two ways."""
    inputs, targets = batch

    def by_autograd():
        loss = (inputs @ model.value - targets).square().mean()
        (gradient,) = torch.autograd.grad(loss, model.value, create_graph=True)
        return gradient

    def by_hand():
        return 2 * inputs.T @ (inputs @ model.value - targets) / len(inputs)

    def after(gradient):
        moved = model.value - 0.1 * meta.value.exp() * gradient
        return (inputs @ moved - targets).square().mean() + 0.1 * gradient.square().sum()

    return after, by_autograd, by_hand


def by_autograd(model, meta, batch):
    after, gradient, _ = adapted(model, meta, batch)
    return after(gradient())


def by_hand(model, meta, batch):
    after, _, gradient = adapted(model, meta, batch)
    return after(gradient())


def by_backward(model, meta, batch):
    """As the others, with the gradient from ``backward``, and only in value a function of θ."""
    inputs, targets = batch
    point = model.value.detach().requires_grad_()
    (inputs @ point - targets).square().mean().backward()
    after, _, _ = adapted(model, meta, batch)
    return after(point.grad)


def build(loss):
    case = bank.ridge()
    problem = mt.BilevelProblem(case.problem.model, case.problem.meta, loss, loss)
    return dataclasses.replace(case, problem=problem, inner=mt.inner.SGD(lr=0.05))


def call(loss, make):
    case, estimator = build(loss), make()
    return case.call(estimator)


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_estimators_see_the_derivative_that_is_taken_inside(make):
    try:
        expected = call(by_hand, make)
    except MetatoolkitError as error:
        pytest.skip(str(error))
    found = call(by_autograd, make)
    torch.testing.assert_close(found.gradient, expected.gradient)
    torch.testing.assert_close(found.valid_loss, expected.valid_loss)
    assert not found.valid_loss.requires_grad


@pytest.mark.parametrize("loss", [by_autograd, by_backward])
def test_values_without_a_graph_are_right_the_first_time_and_later(loss):
    case, other = build(loss), build(by_hand)
    meta = case.problem.meta_parameters()
    expected = outer_loss(other.problem, other.state, meta, case.valid_batch)
    for _ in range(2):
        value = outer_loss(case.problem, case.state, meta, case.valid_batch)
        assert not value.requires_grad
        torch.testing.assert_close(value, expected)
    assert case.problem.model.value.grad is None and case.problem.meta.value.grad is None


def test_steps_without_a_graph():
    case, other = build(by_autograd), build(by_hand)
    meta = case.problem.meta_parameters()
    found, expected = (
        roll_out(each.problem, each.inner, each.state, meta, each.batches(2))
        for each in (case, other)
    )
    torch.testing.assert_close(found.parameters, expected.parameters)


def test_an_ordinary_loss_is_evaluated_once_and_without_a_graph():
    case = bank.small_net()
    meta = case.problem.meta_parameters()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loss, _ = case.problem.evaluate_train(
            case.state.parameters, meta, case.state.buffers, case.train_batches[0], 0
        )
    assert not loss.requires_grad
    # Two linear layers on ten examples, and those of the weight network.
    assert counter.get_total_flops() == 2 * 10 * (6 * 8 + 8 * 3 + 4 + 4)


def test_another_error_of_a_loss_is_not_tried_twice():
    calls = []

    def broken(model, meta, batch):
        calls.append(1)
        raise RuntimeError("does not fit")

    case = build(broken)
    with pytest.raises(RuntimeError, match="does not fit"):
        outer_loss(case.problem, case.state, case.problem.meta_parameters(), case.valid_batch)
    assert len(calls) == 1


def test_a_loss_that_cannot_be_differentiated_tells_its_own_error():
    def constant(model, meta, batch):
        (gradient,) = torch.autograd.grad(torch.ones(()), model.value)
        return gradient.sum()

    case = build(constant)
    with pytest.raises(RuntimeError, match="does not require grad"):
        outer_loss(case.problem, case.state, case.problem.meta_parameters(), case.valid_batch)
    with pytest.raises(RuntimeError, match="does not require grad"):
        case.inner.step(case.problem, case.state, case.problem.meta_leaves(), None, True)
