"""The states of a trajectory, last first: their order, their number and the steps they take."""

import dataclasses
import math
import weakref

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import NonFiniteError
from metatoolkit.hypergradients.step_graph import StepGraph
from metatoolkit.hypergradients.trajectory import (
    finite_outer_gradient,
    outer_gradient,
    outer_loss,
    roll_out,
    states_backward,
    tree_depth,
    valid_key,
)
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank
from metatoolkit.testing.draws import recorded
from tests.stateless.functions import Square


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """Stands for an inner state where only its index matters."""

    index: int


@pytest.mark.parametrize("arity", [2, 3, 5, 8, 100])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 8, 26, 63, 99])
def test_replay_tree(arity, steps):
    alive = weakref.WeakSet()
    most = taken = 0

    def advance(point, index):
        nonlocal most, taken
        assert point.index == index
        taken += 1
        after = Point(index + 1)
        alive.add(after)
        most = max(most, len(alive))
        return after, index

    order = []
    for point, gradient in states_backward(advance, Point(0), steps, arity):
        order.append(point.index)
        assert gradient in (None, point.index)
    assert order == list(range(steps, -1, -1))
    depth = tree_depth(steps, arity)
    # One more than the bound is alive for the moment in which a step is taken.
    assert most <= (arity - 1) * depth + 1
    assert taken <= steps * depth
    if arity > steps:
        assert taken == steps


class Gradient:
    """Stands for the gradient of a step."""


@pytest.mark.parametrize("arity", [2, 3, 5])
def test_gradients_are_kept_at_the_lowest_level_alone(arity):
    gradients = weakref.WeakSet()

    def advance(point, index):
        gradient = Gradient()
        gradients.add(gradient)
        return Point(index + 1), gradient

    for point, gradient in states_backward(advance, Point(0), 50, arity):
        assert len(gradients) <= arity
        del point, gradient


def test_the_outer_loss_has_masks_of_its_own_at_every_step_and_in_every_run():
    case = bank.small_net()
    state, other = case.state, case.inner.init(case.problem, seed=6)
    after, _ = case.inner.step(
        case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
    )
    keys = [valid_key(state), valid_key(after), valid_key(other), state.key, other.key]
    keys += [fold_in(key, step) for key in (state.key, other.key) for step in (0, 1)]
    assert len(set(keys)) == len(keys) and valid_key(state) == keys[0]
    # What was recorded can be computed again by later versions.
    assert valid_key(after) == fold_in(state.key, 1, -1)


def test_trajectories_and_outer_losses_by_hand():
    case = recorded()
    meta = case.problem.meta_leaves()
    final = roll_out(case.problem, case.inner, case.state, meta, [1.0, 2.0, 3.0])
    theta = 0.7
    for batch in (1.0, 2.0, 3.0):
        theta = 0.9 * theta + 0.1 * batch * 0.4
    assert float(final.parameters["value"]) == pytest.approx(theta, rel=1e-14)
    assert final.step == 3 and not final.parameters["value"].requires_grad
    assert roll_out(case.problem, case.inner, final, meta, []) is final
    loss = outer_loss(case.problem, final, meta, 0.25)
    assert float(loss) == pytest.approx((theta - 0.25) ** 2 / 2, rel=1e-13)
    assert not loss.requires_grad
    for function in (outer_gradient, finite_outer_gradient):
        loss, adjoint, direct = function(case.problem, final, meta, 0.25)
        assert float(loss) == pytest.approx((theta - 0.25) ** 2 / 2, rel=1e-13)
        assert not loss.requires_grad and direct == [None]
        assert float(adjoint[0]) == pytest.approx(theta - 0.25, rel=1e-13)
    # All of them draw the same numbers.
    assert len(set(case.draws("valid"))) == 1


def test_slots_have_no_part_in_the_outer_gradient_and_meta_its_own():
    case = bank.inside_model()
    meta = case.problem.meta_leaves()
    _, adjoint, direct = outer_gradient(case.problem, case.state, meta, case.valid_batch)
    count = len(case.state.parameters)
    assert [a is None for a in adjoint] == [False] * count + [True] * count
    assert direct[0].shape == (5,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_names_its_parameter(value):
    case = bank.ridge()
    bad = (case.valid_batch[0] * value, case.valid_batch[1])
    with pytest.raises(NonFiniteError, match="the validation loss"):
        finite_outer_gradient(case.problem, case.state, case.problem.meta_leaves(), bad)
    # The root has an infinite slope at zero, where its value is finite.
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value(1.0),
        case.problem.train_loss,
        lambda model, meta, batch: model.value.sqrt(),
    )
    state = case.inner.init(problem)
    with pytest.raises(NonFiniteError, match="gradient of the validation loss in 'value'"):
        finite_outer_gradient(problem, state, problem.meta_leaves(), None)


@pytest.mark.parametrize("name", ["small_net", "learned_rates", "inside_model"])
def test_a_step_pulls_an_adjoint_back(name):
    case = bank.PROBLEMS[name]()
    meta = case.problem.meta_leaves()
    state = roll_out(case.problem, case.inner, case.state, meta, case.train_batches[:1])
    batch = case.train_batches[1]
    graph = StepGraph(case.problem, case.inner, state, meta, batch)
    generator = torch.Generator().manual_seed(2)

    def draw(tensor):
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    adjoint = [draw(tensor) for tensor in state.tensors()]
    along = [draw(tensor) for tensor in [*state.tensors(), *meta.values()]]
    radius, sides = 1e-6, []
    count = len(adjoint)
    for sign in (1, -1):
        moved = [t + sign * radius * d for t, d in zip(state.tensors(), along, strict=False)]
        pairs = zip(meta.items(), along[count:], strict=True)
        given = {n: t.detach() + sign * radius * d for (n, t), d in pairs}
        after, _ = case.inner.step(case.problem, state.with_tensors(moved), given, batch)
        sides.append(after.tensors())
    expected = sum(
        float((v * (one - two)).sum()) / (2 * radius)
        for v, one, two in zip(adjoint, *sides, strict=True)
    )
    before, direct = graph.pull_back(adjoint)
    pairs = zip([*before, *direct], along, strict=True)
    found = sum(float((g * d).sum()) for g, d in pairs if g is not None)
    assert found == pytest.approx(expected, rel=1e-6)
    last = StepGraph(case.problem, case.inner, state, meta, batch, False)
    before, alone = last.pull_back(adjoint)
    assert before == []
    for one, other in zip(alone, direct, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("learner", ["momentum", "Adam"])
@pytest.mark.parametrize("name", ["small_net", "inside_model", "tied"])
def test_graphs_that_go_on_from_one_another(name, learner):
    case = bank.PROBLEMS[name]()
    problem, meta, batches = case.problem, case.problem.meta_leaves(), case.batches(4)
    inner = mt.inner.SGD(0.1, momentum=0.9) if learner == "momentum" else mt.inner.Adam(0.05)
    start = inner.init(problem)
    together = StepGraph(problem, inner, start, meta, batches[0])
    assert together.extend(batches[1:]) == 3
    _, adjoint, direct = outer_gradient(problem, together.after.detach(), meta, case.valid_batch)
    states = [start]
    for batch in batches[:-1]:
        states.append(inner.step(problem, states[-1], meta, batch)[0])
    apart = [StepGraph(problem, inner, s, meta, b) for s, b in zip(states, batches, strict=True)]
    for one, other in zip(together.after.tensors(), apart[-1].after.tensors(), strict=True):
        assert torch.equal(one, other)
    before, total = adjoint, direct
    for graph in reversed(apart):
        before, total = graph.pull_back(before, total)
    found = together.pull_back(adjoint, direct)
    for one, other in zip([*found[0], *found[1]], [*before, *total], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_a_graph_ends_where_a_backward_pass_needs_the_modules():
    def train_loss(model, meta, batch):
        return meta.value * Square.apply(model.value - batch)

    problem = mt.BilevelProblem(bank.Value(0.5), bank.Value(2.0), train_loss, train_loss)
    inner = mt.inner.SGD(0.1)
    graph = StepGraph(problem, inner, inner.init(problem), problem.meta_leaves(), 1.0)
    assert graph.extend([2.0, 3.0]) == 0
    assert graph.after.step == 1


def test_the_number_of_levels():
    assert [tree_depth(steps, 2) for steps in (0, 1, 2, 3, 4, 7, 8)] == [0, 1, 2, 2, 3, 3, 4]
    assert [tree_depth(steps, 10) for steps in (9, 10, 99, 100)] == [1, 2, 2, 3]


@pytest.mark.parametrize("arity", [2, 3, 4])
def test_gradients_come_from_the_very_state_that_is_yielded(arity):
    def advance(point, index):
        return Point(index + 1), (index, point)

    for point, gradient in states_backward(advance, Point(0), 20, arity):
        if gradient is not None:
            assert gradient[0] == point.index and gradient[1] is point


def test_single_steps_have_their_gradients():
    def advance(point, index):
        return Point(index + 1), index

    # 5 states in 5 parts of one; 6 in 3 of two, of which the second states come from their first.
    found = [gradient for _, gradient in states_backward(advance, Point(0), 4, 5)]
    assert found == [None, 3, 2, 1, 0]
    found = [gradient for _, gradient in states_backward(advance, Point(0), 5, 3)]
    assert found == [None, 4, None, 2, None, 0]


def test_indices_of_steps_begin_where_they_are_told_to():
    seen = []

    def advance(point, index):
        seen.append(index)
        return Point(point.index + 1), None

    list(states_backward(advance, Point(0), 4, 5, start=7))
    assert seen == [7, 8, 9, 10]


def test_a_state_with_a_graph_is_differentiated_at_its_value():
    # A caller's graph does not grow, and no tensor of the state is made a leaf.
    case = bank.ridge()
    state, meta = case.state, case.problem.meta_leaves()
    before = [tensor.requires_grad for tensor in state.tensors()]
    loss, adjoint, _ = outer_gradient(case.problem, state, meta, case.valid_batch)
    StepGraph(case.problem, case.inner, state, meta, case.train_batches[0])
    assert [tensor.requires_grad for tensor in state.tensors()] == before == [False, False]
    assert not loss.requires_grad and not any(a is not None and a.requires_grad for a in adjoint)
    loss, _, _ = finite_outer_gradient(case.problem, state, meta, case.valid_batch)
    assert not loss.requires_grad
    # Evaluations work where gradients are off, too.
    with torch.no_grad():
        _, again, _ = outer_gradient(case.problem, state, meta, case.valid_batch)
    assert torch.equal(again[0], adjoint[0])
