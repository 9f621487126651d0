"""Losses that draw from the global generators of torch, Python and NumPy follow the key."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import metatoolkit as mt
from metatoolkit.randomness import go_to, place
from metatoolkit.testing import bank


def python_number(tensor):
    return tensor * random.random()


def python_normal(tensor):
    return tensor * random.gauss(0, 1)


def numpy_number(tensor):
    return tensor * float(np.random.rand())


def numpy_normal(tensor):
    return tensor * float(np.random.standard_normal())


def numpy_mask(tensor):
    return tensor * torch.from_numpy(np.random.permutation(4) < 2)


def all_of_them(tensor):
    return python_normal(numpy_mask(tensor)) * torch.rand(())


def torch_number(tensor):
    return tensor * torch.rand(())


def torch_normal(tensor):
    return tensor * torch.randn(())


def torch_mask(tensor):
    return F.dropout(tensor, 0.5)


DRAWS = [
    *(python_number, python_normal, numpy_number, numpy_normal, numpy_mask),
    *(torch_number, torch_normal, torch_mask, all_of_them),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_every_global_generator_follows_the_key(draw):
    def loss(model, meta, batch):
        return draw(model.value[:4]).sum()

    problem = mt.BilevelProblem(bank.Value([1.0, -2.0, 4.0, 8.0]), bank.Value(1.0), loss, loss)
    arguments = (problem.parameters(), problem.meta_parameters(), {}, None)
    random.seed(1)
    np.random.seed(2)
    random.gauss(0, 1), np.random.randn()
    start = place()
    expected = random.gauss(0, 1), np.random.randn(), torch.rand(()).item()
    go_to(start)
    # The very first evaluation, before it is known what the loss draws.
    first, other, again = (float(problem.evaluate_train(*arguments, key)[0]) for key in (3, 4, 3))
    assert first == again != other
    assert (random.gauss(0, 1), np.random.randn(), torch.rand(()).item()) == expected
    random.seed(5), np.random.seed(6)
    assert float(problem.evaluate_valid(*arguments, 3)) == first


@pytest.mark.parametrize("draw", DRAWS)
def test_a_loss_that_draws_late_or_for_some_batches_follows_the_key(draw):
    def loss(model, meta, batch):
        return (draw(model.value) if batch else model.value).sum()

    values = bank.Value([1.0, -2.0, 4.0, 8.0])
    problem = mt.BilevelProblem(values, bank.Value(1.0), loss, loss)
    arguments = (problem.parameters(), problem.meta_parameters(), {})
    for _ in range(3):
        assert float(problem.evaluate_train(*arguments, False, 3)[0]) == 11
    start = place()
    expected = random.random(), np.random.randn(), torch.randn(()).item()
    go_to(start)
    found = [float(problem.evaluate_train(*arguments, True, key)[0]) for key in (3, 4, 3)]
    assert found[0] == found[2] != found[1]
    assert (random.random(), np.random.randn(), torch.randn(()).item()) == expected
    # As if it had drawn from the start.
    other = mt.BilevelProblem(values, bank.Value(1.0), loss, loss)
    assert float(other.evaluate_train(*arguments, True, 3)[0]) == found[0]


class Counting(TorchDispatchMode):
    """Counts the numbers that are drawn."""

    def __init__(self):
        super().__init__()
        self.drawn = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.drawn += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def test_what_a_mode_of_operators_sees_is_run_once():
    def loss(model, meta, batch):
        return model.value * (torch.rand(()) if batch else 1.0)

    problem = mt.BilevelProblem(bank.Value(1.0), bank.Value(1.0), loss, loss)
    arguments = (problem.parameters(), problem.meta_parameters(), {})
    problem.evaluate_train(*arguments, False, 3)
    with Counting() as mode:
        problem.evaluate_train(*arguments, True, 3)
    assert mode.drawn == 1


class Watching(TorchFunctionMode):
    """Keeps the functions that are called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.called.append(func)
        return func(*args, **(kwargs or {}))


def test_what_is_watched_is_run_once():
    runs = []

    def loss(model, meta, batch):
        runs.append(np.random.rand())
        return model.value.detach() * runs[-1] + model.value

    problem = mt.BilevelProblem(bank.Value(1.0), bank.Value(1.0), loss, loss)
    arguments = (problem.parameters(), problem.meta_parameters(), {}, None)
    with Watching() as watching:
        first = problem.evaluate_train(*arguments, 3)[0]
    assert len(runs) == 1 and torch.Tensor.mul in watching.called
    assert problem.evaluate_train(*arguments, 3)[0] == first


def test_buffers_that_move_are_not_moved_twice_by_a_second_run():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    def loss(model, meta, batch):
        return model(batch + random.random()).mean()

    problem = mt.BilevelProblem(model, bank.Value(2.0, torch.float32), loss, loss)
    state = (problem.parameters(), problem.meta_parameters(), problem.buffers())
    _, buffers = problem.evaluate_train(*state, torch.ones(4, 3), 3)
    assert int(buffers["model.0.num_batches_tracked"]) == 1
