"""The replay buffer: every iterate once, in any mini-batches the same mean."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, UnsupportedError
from metatoolkit.hypergradients import SOBA, Unrolled, WarpGrad
from metatoolkit.metaparameters import insert_warp_layers
from metatoolkit.training import ReplayBuffer
from tests.training.across_tasks import (
    TASKS,
    largest_difference,
    regression,
    sinusoids,
    squared_error,
)

INNER, STEPS = mt.inner.SGD(lr=0.05), 5


def problem(*middle):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), *middle, nn.Tanh(), nn.Linear(6, 1)).double()
    meta = insert_warp_layers(model, ["0"], identity=False)
    return mt.BilevelProblem(model, meta, squared_error, squared_error)


@pytest.mark.parametrize("first_order", [False, True])
def test_mini_batches_of_any_size_have_the_mean_of_adaptation(first_order):
    given = problem(nn.Dropout(0.3))
    estimator = WarpGrad(first_order=first_order)
    means = []
    for size in (1, 3, 7, None):
        buffer = ReplayBuffer(given, INNER, STEPS)
        buffer.fill(sinusoids())
        assert len(buffer) == TASKS * STEPS
        sums = {name: torch.zeros_like(p) for name, p in given.meta_parameters().items()}
        for iterates in buffer.mini_batches(size):
            found = buffer.hypergradient(estimator, iterates)
            assert found.details["task_losses"].shape == (len(iterates),)
            for name, gradient in found.gradient.items():
                sums[name] = sums[name] + len(iterates) * gradient
        assert len(buffer) == 0
        means.append({name: total / (TASKS * STEPS) for name, total in sums.items()})
    assert all(largest_difference(means[0], mean) < 1e-12 for mean in means[1:])
    # What is added up while tasks are adapted to, without dropout whose keys are the tasks'.
    given = problem()
    buffer = ReplayBuffer(given, INNER, STEPS)
    buffer.fill(sinusoids())
    offline = buffer.hypergradient(estimator, next(buffer.mini_batches()))
    online = mt.over_tasks(given, INNER, WarpGrad(STEPS, first_order=first_order), sinusoids())
    assert largest_difference(offline.gradient, online.gradient) < 1e-12
    assert offline.cost.hvp == online.cost.hvp


def test_each_iterate_comes_once_in_an_order_of_the_seed():
    def order(seed, fillings=1):
        buffer = ReplayBuffer(problem(), INNER, STEPS, seed)
        for _ in range(fillings):
            buffer.fill(sinusoids())
            found = [(one.task, one.state.step) for part in buffer.mini_batches(7) for one in part]
        return found

    every = [(task, step) for task in range(TASKS) for step in range(STEPS)]
    assert sorted(order(0)) == every != order(0)
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, fillings=2)


@pytest.mark.parametrize("filled", [False, True])
def test_a_stored_buffer_goes_on_bitwise(filled, tmp_path):
    given = problem(nn.Dropout(0.3))

    def advance(buffer, fill=True):
        if fill:
            buffer.fill(sinusoids())
        order = list(buffer.mini_batches(4))
        losses = [buffer.hypergradient(WarpGrad(), i).details["task_losses"] for i in order]
        return [(one.task, one.state.key) for part in order for one in part], torch.cat(losses)

    buffer = ReplayBuffer(given, INNER, STEPS, seed=3)
    advance(buffer)
    if filled:
        buffer.fill(sinusoids())
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    resumed = ReplayBuffer(given, INNER, STEPS, seed=3)
    resumed.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    assert len(resumed) == (TASKS * STEPS if filled else 0)
    for fill in (not filled, True):
        (order, losses), (again, found) = advance(buffer, fill), advance(resumed, fill)
        assert order == again and torch.equal(losses, found)


def test_what_is_refused():
    emptied = ReplayBuffer(problem(), INNER, STEPS)
    emptied.fill(sinusoids())
    for _ in emptied.mini_batches(4):
        with pytest.raises(UnsupportedError, match="being emptied in mini-batches"):
            emptied.state_dict()
        break
    assert len(emptied.state_dict()["iterates"]) == TASKS * STEPS - 4
    buffer = ReplayBuffer(problem(), INNER, STEPS)
    with pytest.raises(DataError, match="fill the buffer"):
        buffer.hypergradient(WarpGrad(), [])
    buffer.fill(sinusoids())
    with pytest.raises(ConfigurationError, match="size is 0"):
        next(buffer.mini_batches(0))
    iterates = next(buffer.mini_batches())
    with pytest.raises(ConfigurationError, match="Unrolled takes 2 inner steps"):
        buffer.hypergradient(Unrolled(2), iterates)
    with pytest.raises(UnsupportedError, match="SOBA goes on"):
        buffer.hypergradient(SOBA(), iterates)
    with pytest.raises(UnsupportedError, match="λ sets the initial state"):
        ReplayBuffer(regression(), INNER, STEPS)
    with pytest.raises(ConfigurationError, match="steps"):
        ReplayBuffer(problem(), INNER, 0)
