"""Rows of tangents: which direction each belongs to, when they begin one after another."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import ForwardMode, Unrolled
from metatoolkit.hypergradients.tangent_rows import Rows, nonzero
from metatoolkit.hypergradients.tangents import TangentBundle
from metatoolkit.inner import SGD
from metatoolkit.metaparameters import LearningRates
from metatoolkit.testing import bank
from tests.hypergradients.test_unrolled import error, flat

F64 = torch.float64


def test_rows_that_may_move_follow_those_that_have():
    rows = Rows(3, 8)
    matrices = [torch.zeros(9, 2, dtype=F64), torch.zeros(9, dtype=F64)]
    no = [False] * 5
    assert rows.arrange(no, no) == (0, 0) and rows.changes == 0
    # The loss reads the direction 4, hyper-parameters 1, 3 and 4.
    turned = [False, True, False, True, True]
    assert rows.arrange([False] * 4 + [True], turned) == (1, 3)
    assert rows.order == [4, 1, 3, 0, 2]
    # Of these 3 alone moves, by an entry of the second tensor.
    matrices[1][5] = 7.0
    rows.settle(matrices, 3)
    assert rows.moved == 1 and rows.order == [3, 1, 4, 0, 2]
    assert matrices[1].tolist() == [0.0, 0.0, 0.0, 7.0] + [0.0] * 5
    assert not matrices[0].any()
    parts = torch.arange(5)
    assert rows.taken(parts, 3).tolist() == [3, 1, 4]
    assert rows.arrange(no, [True] * 5) == (1, 5)
    matrices[0][4, 1] = -2.0
    matrices[0][7, 0] = 5.0
    rows.settle(matrices, 5)
    assert rows.moved == 3 and rows.order == [3, 1, 2, 0, 4]
    assert matrices[0][3:8].tolist() == [[0, 0], [0, -2.0], [5.0, 0], [0, 0], [0, 0]]


def test_rows_in_the_order_of_directions_are_not_copied():
    rows, parts = Rows(0, 4), torch.arange(4)
    assert rows.taken(parts, 4) is parts
    assert rows.taken(parts, 2).data_ptr() == parts.data_ptr()
    rows.arrange([False] * 4, [True, True, False, False])
    assert rows.changes == 0


def test_a_row_that_is_no_number_is_not_zero():
    part = torch.tensor([[0.0, float("nan")], [0.0, 0.0], [-0.0, 1e-300]], dtype=F64)
    assert nonzero([part]) == [True, False, True]
    assert nonzero([part, torch.tensor([0, 1j, 0])]) == [True, True, True]


def backward_schedule(learner, steps=7):
    """Rates of which the last begins first, and a weight that the loss reads from a step on."""
    given = bank.small_net()
    loss = given.problem.valid_loss
    meta = bank.Value([0.05, 0.1, 0.15, 0.2, 0.3, -0.4])

    def train_loss(model, meta, batch):
        batch, late = batch
        return (
            meta.value[4:].exp().sum() * loss(model, meta, batch)
            if late
            else loss(model, meta, batch)
        )

    problem = mt.BilevelProblem(given.problem.model, meta, train_loss, loss)
    inner = learner(
        lr=lambda meta, step: meta.value[3 - step // 2],
        momentum=lambda meta, step: meta.value[:4].mean() if step > 2 else torch.tensor(0.0),
    )
    batches = [(batch, step > 3) for step, batch in enumerate(given.batches(steps))]
    return bank.ProblemInstance(problem, inner, batches, given.valid_batch)


class Differentiated(SGD):
    """SGD by an update of its own, of which no closed form is told."""

    def update(self, parameter, gradient, slots, hyperparameters, step):
        return super().update(parameter, gradient, slots, hyperparameters, step)


@pytest.mark.parametrize("learner", [SGD, Differentiated])
@pytest.mark.parametrize("chunk", [64, 4, 1])
def test_directions_that_begin_in_another_order_than_theirs(learner, chunk):
    case = backward_schedule(learner)
    found, exact = case.call(ForwardMode(7, chunk=chunk)), case.call(Unrolled(7))
    assert error(flat(found), flat(exact)) < 1e-12
    check = mt.check_hypergradient(
        case.problem, case.inner, ForwardMode(7, chunk=chunk), case.train_batches, case.valid_batch
    )
    assert check.relative_error < 1e-6


@pytest.mark.parametrize("chunk", [64, 2])
def test_tangents_are_told_by_direction_whatever_the_rows_are(chunk):
    case = backward_schedule(SGD)
    meta = case.problem.meta_leaves()
    probes = ForwardMode(7)._probes(case.problem, case.state)
    bundle = TangentBundle(
        case.problem, case.inner, case.state, meta, probes.directions, 6, chunk, 7
    )
    for step, batch in enumerate(case.train_batches[:3]):
        bundle.step(batch)
        begun = [bool(row.any()) for row in bundle.tangents[0]]
        assert begun == [False, False, step > 1, True, False, False]
    adjoint = [torch.ones_like(tensor) for tensor in bundle.state.tensors()]
    expected = sum(tangent.flatten(1).sum(1) for tangent in bundle.tangents)
    torch.testing.assert_close(bundle.slopes(adjoint), expected, rtol=1e-12, atol=1e-14)


def test_rates_that_are_numbers_at_some_steps_and_tensors_at_others():
    given = bank.small_net()
    loss = given.problem.valid_loss
    meta = nn.ModuleDict(
        {
            "layer": LearningRates(given.problem.model, 0.1, "layer").double(),
            "entry": LearningRates(given.problem.model, 0.2, "coordinate").double(),
        }
    )
    problem = mt.BilevelProblem(given.problem.model, meta, loss, loss)
    inner = SGD(
        lr=lambda meta, step: meta["entry" if step in (2, 3) else "layer"].at(step), momentum=0.9
    )
    case = bank.ProblemInstance(problem, inner, given.train_batches, given.valid_batch)
    found, exact = case.call(ForwardMode(6, chunk=200)), case.call(Unrolled(6))
    assert error(flat(found), flat(exact)) < 1e-12
