"""Estimators of this toolkit as contenders."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import metatoolkit as mt
from benchmarks.harness.declared import Call, Contender, Setup
from metatoolkit.hypergradients import Estimator, Hypergradient
from metatoolkit.hypergradients.compilation import Compile
from metatoolkit.randomness import fold_in
from metatoolkit.training.task_batching import Mode

# The first two calls, and some that are compared, run without a program.
_BEFORE_COMPILED = 9


def ours(estimator: Estimator, compile: Compile = False) -> Contender:
    """Call an estimator on as many batches as it looks ahead.

    Args:
        estimator: The estimator, of which each setup gets a copy.
        compile: Whether its calls are compiled, which is done before any is timed.
    """

    def build(setup: Setup) -> Call:
        ((batches, valid),) = setup.tasks
        own, state = estimator.duplicate(), setup.state
        arguments = setup.problem, setup.inner
        train = list(batches[: own.horizon])

        def call(draw: int = 0) -> Hypergradient:
            drawn = dataclasses.replace(state, key=fold_in(state.key, draw)) if draw else state
            return own(*arguments, drawn, train, valid)

        own.compile = compile
        for _ in range(_BEFORE_COMPILED if compile else 0):
            call()
        return call

    return Contender(build, random=estimator.traits.kind == "stochastic")


def ours_over_tasks(estimator: Estimator, batching: Mode) -> Contender:
    """Take the mean over tasks by :func:`metatoolkit.over_tasks`.

    Args:
        estimator: The estimator.
        batching: How tasks run.
    """

    def build(setup: Setup) -> Call:
        pairs = [(batches[0], valid) for batches, valid in setup.tasks]
        stacked: Any = torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *pairs)
        own = estimator.duplicate()
        return lambda: mt.over_tasks(setup.problem, setup.inner, own, stacked, batching)

    return Contender(build)
