"""The states of a trajectory, last first: their order, their number and the steps they take."""

import dataclasses
import weakref

import pytest

from metatoolkit.hypergradients.trajectory import states_backward, tree_depth


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
