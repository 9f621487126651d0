"""Compiled hypergradients in a training and over batches of tasks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import EvoGrad, OneStep, Unrolled
from tests.hypergradients.compiled_calls import Calls


@pytest.mark.parametrize("estimator", [OneStep(), EvoGrad(sigma=0.1)], ids=["OneStep", "EvoGrad"])
def test_a_training_is_the_same(estimator):
    metrics, moved = [], []
    for compile in (False, "graph"):
        calls = Calls(copy.deepcopy(estimator), mt.inner.Adam(lr=0.02), compile=False)
        batches = [calls.batch() for _ in range(5)]
        trainer = mt.MetaTrainer(
            calls.problem,
            calls.inner,
            calls.estimator,
            torch.optim.Adam(calls.meta.parameters(), lr=0.05),
            compile=compile,
        )
        trainer.fit(batches, batches[::-1], steps=7, progress=False)
        metrics.append([value for _, value, _ in trainer.history])
        moved.append(calls.meta.logits.detach().clone())
        assert calls.estimator.compile == compile
        if compile:
            (program,) = calls.programs
            assert program.calls == 6
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-9)
    torch.testing.assert_close(*moved, rtol=1e-9, atol=1e-12)


def squared_error(model, meta, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def few_shot(draws=False):
    torch.manual_seed(0)
    parts = [nn.Linear(2, 4), nn.Tanh(), *([nn.Dropout(0.5)] if draws else []), nn.Linear(4, 1)]
    model = nn.Sequential(*parts).double()
    meta = mt.metaparameters.Initialization(model)
    return mt.BilevelProblem(model, meta, squared_error, squared_error, initial=type(meta).values)


def tasks(count, shots=3):
    support = torch.randn(count, shots, 2).double(), torch.randn(count, shots, 1).double()
    query = torch.randn(count, 4, 2).double(), torch.randn(count, 4, 1).double()
    return support, query


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("inner", [mt.inner.Adam(lr=0.1)], ids=["Adam"])
def test_tasks_give_the_same_numbers(batching, inner):
    problem, estimator, plain = few_shot(), Unrolled(2), Unrolled(2)
    estimator.compile = "graph"
    for _ in range(4):
        given = tasks(3)
        found, expected = (
            mt.over_tasks(problem, inner, e, given, batching, keep_states=True)
            for e in (estimator, plain)
        )
        torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-10, atol=1e-12)
        losses = [r.details["task_losses"] for r in (found, expected)]
        torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
        for one, other in zip(found.details["states"], expected.details["states"], strict=True):
            torch.testing.assert_close(one.parameters, other.parameters, rtol=1e-10, atol=1e-12)
            assert one.key == other.key
        with torch.no_grad():
            for parameter in problem.meta.parameters():
                parameter.add_(0.1)
    # Those that are compared once, two at a time and one by one, are not worth a program.
    kinds = [p for found in estimator._compiler.programs.values() for p in found]
    assert len(kinds) == 1


def test_tasks_that_draw_side_by_side_are_not_compiled():
    problem, estimator = few_shot(draws=True), Unrolled(1)
    estimator.compile = "graph"
    inner = mt.inner.SGD(lr=0.1)
    with pytest.warns(mt.errors.CompilationWarning, match="random numbers are drawn"):
        results = [
            float(mt.over_tasks(problem, inner, estimator, tasks(3), "vmap").valid_loss)
            for _ in range(3)
        ]
    assert all(map(math.isfinite, results))
