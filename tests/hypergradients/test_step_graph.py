"""The outer loss is differentiated with the steps before it as it is by itself."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients.step_graph import DifferentiatedStep, StepGraph
from metatoolkit.testing import bank


def both(problem, inner, state, batches, valid_batch, weight, known=0.0, through_state=True):
    """Return what one backward pass gives, and what one for the loss and one for the steps do."""
    found = []
    for owner in (StepGraph, DifferentiatedStep):
        meta = problem.meta_leaves()
        direct = [None if known == 0 else torch.full_like(leaf, known) for leaf in meta.values()]
        step = StepGraph(problem, inner, state, meta, batches[0], through_state)
        step.extend(batches[1:])
        loss, before, total = owner.pull_back_outer(step, valid_batch, weight, direct)
        assert not loss.requires_grad
        found.append([loss, *before, *total])
    return found


def assert_same(one, other, **tolerance):
    assert len(one) == len(other)
    for found, expected in zip(one, other, strict=True):
        if expected is None or found is None:
            assert found is None and expected is None
        else:
            torch.testing.assert_close(found, expected, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("through_state", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("known", [0.0, 0.3])
@pytest.mark.parametrize("name", bank.PROBLEMS)
def test_as_two_passes(name, steps, known, through_state):
    case = bank.PROBLEMS[name]()
    arguments = (case.problem, case.inner, case.state, case.batches(steps), case.valid_batch)
    one, other = both(*arguments, 1.0, known, through_state)
    # To the last bit, but for the order in which what is known is added to.
    assert_same(one, other, **({"rtol": 1e-14, "atol": 1e-15} if known else {}))


def test_a_weight_is_a_factor_of_the_outer_loss():
    case = bank.small_net()
    arguments = (case.problem, case.inner, case.state, case.batches(2), case.valid_batch)
    one, other = both(*arguments, 0.3, known=0.1)
    assert_same(one, other, rtol=1e-12, atol=1e-14)
    assert_same(*both(*arguments, 0.0))


class Scaled(torch.autograd.Function):
    """x · θ, whose backward pass reads θ from the module."""

    @staticmethod
    def forward(ctx, x, model):
        ctx.model = model
        return x * model.value.detach()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.model.value.detach(), None


@pytest.mark.parametrize("where", ["train", "valid", "both"])
def test_backward_passes_that_read_the_modules_find_them_as_they_were(where):
    def reading(model, meta, batch):
        return (Scaled.apply(model.value - meta.value, model) * batch).square().sum()

    def plain(model, meta, batch):
        return ((model.value - meta.value) * model.value.detach() * batch).square().sum()

    def problem(where):
        losses = [reading if where in (kind, "both") else plain for kind in ("train", "valid")]
        return mt.BilevelProblem(bank.Value([0.7, -0.4]), bank.Value([0.2, 0.3]), *losses)

    found = []
    for losses in (where, "none"):
        made = problem(losses)
        inner = mt.inner.SGD(0.1)
        found += both(made, inner, inner.init(made), [2.0], 1.5, 1.0)
    for other in found[1:]:
        assert_same(found[0], other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("depends", [False, True])
def test_an_outer_loss_that_the_steps_do_not_reach(depends):
    def train_loss(model, meta, batch):
        return (model.value - meta.value * batch).square().sum()

    def valid_loss(model, meta, batch):
        return meta.value.square().sum() if depends else torch.tensor(2.0)

    problem = mt.BilevelProblem(bank.Value(0.5), bank.Value(2.0), train_loss, valid_loss)
    inner = mt.inner.SGD(0.1)
    one, other = both(problem, inner, inner.init(problem), [1.0], None, 1.0, known=0.5)
    assert_same(one, other)
    assert float(one[-1]) == (4.5 if depends else 0.5)
