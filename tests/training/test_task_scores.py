"""Scores after adaptation: the same as by hand, however tasks run, and nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, NonFiniteError


def squared_error(model: Any, meta: Any, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def within(model: Any, meta: Any, batch: Any) -> Tensor:
    return ((model(batch[0]) - batch[1]).abs() < 1).double().mean()


def network(normalize: bool) -> torch.nn.Module:
    layers = [torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)]
    layers[1:1] = [torch.nn.BatchNorm1d(6)] if normalize else []
    return torch.nn.Sequential(*layers).double()


def problem(normalize: bool = False) -> mt.BilevelProblem:
    torch.manual_seed(0)
    model = network(normalize)
    meta = mt.metaparameters.Initialization(model)
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.add_(0.1)
    return mt.BilevelProblem(model, meta, squared_error, squared_error, initial=type(meta).values)


def batch(tasks: int = 6) -> Any:
    source = mt.tasks.FunctionTasks(shots=5, queries=40, tasks=tasks)
    return tuple(tuple(part.double() for part in pair) for pair in next(source))


def by_hand(start: mt.BilevelProblem, tasks: Any, steps: int, score: Any) -> Tensor:
    """Adapt with torch.optim from the initial values that λ holds, task after task."""
    support, query = tasks
    found = []
    for task in range(len(support[0])):
        model = network(normalize=False)
        model.load_state_dict({n: p.detach() for n, p in start.meta.named_parameters()})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            squared_error(model, None, (support[0][task], support[1][task])).backward()
            optimizer.step()
        with torch.no_grad():
            found.append(score(model, None, (query[0][task], query[1][task])))
    return torch.stack(found)


@pytest.mark.parametrize("batching", ["loop", "vmap", mt.TaskBatching("vmap", chunk=4), "auto"])
@pytest.mark.parametrize("score", [None, within], ids=["loss", "share"])
def test_scores_are_those_of_torchs_own_optimizer(batching: Any, score: Any) -> None:
    start, tasks = problem(), batch()
    scores = mt.TaskScores(start, mt.inner.SGD(lr=0.05), 3, score, batching)(tasks)
    expected = by_hand(start, tasks, 3, score or squared_error)
    assert len(expected.unique()) > 1
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=0)


def test_neither_model_nor_meta_moves_and_a_changed_meta_is_seen() -> None:
    start, tasks = problem(normalize=True), batch()
    before = [t.clone() for t in (*start.model.state_dict().values(), *start.meta.parameters())]
    scores = mt.TaskScores(start, mt.inner.SGD(lr=0.05), 2)
    first = scores(tasks)
    after = [*start.model.state_dict().values(), *start.meta.parameters()]
    assert all(map(torch.equal, before, after))
    with torch.no_grad():
        next(iter(start.meta.parameters())).add_(0.5)
    assert (scores(tasks) - first).abs().min() > 0


def test_a_task_that_diverges_is_named_and_steps_are_checked() -> None:
    start = problem()
    support, query = batch()
    support[1][3] = torch.nan
    with pytest.raises(NonFiniteError, match="task 3"):
        mt.TaskScores(start, mt.inner.SGD(lr=0.05), 2)((support, query))
    with pytest.raises(ConfigurationError, match="steps is 0"):
        mt.TaskScores(start, mt.inner.SGD(lr=0.05), 0)
