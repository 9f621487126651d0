"""Hyper-parameters over several steps: values and derivatives are those of each step by itself."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import ForwardMode, Unrolled, course
from metatoolkit.hypergradients.course import AHEAD, Course
from metatoolkit.hypergradients.tangent_rows import Rows
from metatoolkit.inner import SGD
from metatoolkit.inner.hyperparameters import hyperparameters_at
from metatoolkit.metaparameters import LearningRates, Schedule
from metatoolkit.testing import bank
from tests.hypergradients.test_unrolled import error, flat

F64 = torch.float64


def problem_of(meta):
    given = bank.small_net().problem
    return mt.BilevelProblem(given.model, meta, given.valid_loss, given.valid_loss)


def schedules(steps):
    options = {
        "lr": Schedule([0.1, 0.3, 0.2], steps, 3, "cosine", "log", (0.01, 1.0)),
        "momentum": Schedule([0.5, 0.9], steps, 2, "linear"),
        "weight_decay": Schedule(0.01, steps),
    }
    return problem_of(nn.ModuleDict(options).double()), SGD(
        **{name: lambda meta, step, name=name: meta[name].at(step) for name in options},
        groups=[{"params": ["*.bias"], "lr": lambda meta, step: 2 * meta["lr"].at(step)}],
    )


def shared(steps):
    """Hyper-parameters that read the same entries of λ."""
    return problem_of(bank.Value([0.2, 0.6])), SGD(
        lr=lambda meta, step: meta.value.prod() / (step + 1),
        momentum=lambda meta, step: meta.value[1],
        weight_decay=torch.tensor(0.03, dtype=F64),
    )


def layered(steps):
    """One rate for each layer, by the names of parameters."""
    meta = LearningRates(bank.small_net().problem.model, 0.1, "layer", steps=steps).double()
    return problem_of(meta), SGD(lr=LearningRates.at, momentum=0.9)


@pytest.mark.parametrize("make", [schedules, shared, layered])
@pytest.mark.parametrize("entries", [2**16, 1])
def test_values_and_slopes_are_those_of_each_step(make, entries, monkeypatch):
    monkeypatch.setattr(course, "ENTRIES", entries)
    steps = 20
    problem, inner = make(steps)
    meta = problem.meta_leaves()
    found = Course(problem, inner, meta, steps)
    sizes = [leaf.numel() for leaf in meta.values()]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4, sum(sizes), generator=generator, dtype=F64)
    along = [
        p.view(4, *t.shape) for p, t in zip(directions.split(sizes, 1), meta.values(), strict=True)
    ]
    rows = Rows(0, 4)
    rows.order, rows._sorted = [2, 0, 3, 1], False
    for step in range(steps):
        present = found.at(step)
        exact = hyperparameters_at(inner.hyperparameters, inner.groups, problem, meta, step)
        for name in problem.parameter_names:
            own = present.resolved(name)
            for key, value in exact(name).items():
                if not isinstance(value, torch.Tensor):
                    assert own[key] == value
                    continue
                assert not own[key].requires_grad and torch.equal(own[key], value.detach())
                if not value.requires_grad:
                    assert id(own[key]) not in present.places
                    continue
                place = present.places[id(own[key])]
                gradients = torch.autograd.grad(
                    value, list(meta.values()), retain_graph=True, allow_unused=True
                )
                names = {n for n, g in zip(meta, gradients, strict=True) if g is not None}
                assert present.piece.reached[place] == names
                slopes, turns = present.piece.along(
                    rows, list(meta), lambda: along, torch.zeros((), dtype=F64)
                )
                expected = sum(
                    (p.reshape(4, -1) @ g.reshape(-1))[rows.order]
                    for p, g in zip(along, gradients, strict=True)
                    if g is not None
                )
                assert turns[place] == expected.nonzero().flatten().tolist()
                whole = torch.zeros(4, dtype=F64)
                if slopes[place] is not None:
                    begin, values = slopes[place].begin, slopes[place].values
                    whole[begin : begin + len(values)] = values
                torch.testing.assert_close(whole, expected, rtol=1e-13, atol=1e-15)


def test_each_step_is_evaluated_once_and_none_after_the_last():
    asked = []

    def rate(meta, step):
        asked.append(step)
        return meta.value[0] * 0.9**step

    given = bank.small_net()
    loss = given.problem.valid_loss
    problem = mt.BilevelProblem(given.problem.model, bank.Value([0.1]), loss, loss)
    inner = SGD(lr=rate)
    case = bank.ProblemInstance(problem, inner, given.train_batches, given.valid_batch)
    state = case.state
    asked.clear()
    case.call(ForwardMode(AHEAD + 3), state)
    assert asked == list(range(AHEAD + 3))
    asked.clear()
    case.call(ForwardMode(AHEAD + 3, truncation=2), state)
    assert sorted(set(asked)) == list(range(AHEAD + 3)) and len(asked) == AHEAD + 3


def test_a_value_of_several_entries_ends_what_is_known():
    meta = bank.Value([0.1, 0.2])
    problem = problem_of(meta)
    found = Course(
        problem,
        SGD(lr=lambda meta, step: meta.value[0] if step < 3 else meta.value[:1]),
        problem.meta_leaves(),
        9,
    )
    assert [found.at(step).resolved is None for step in range(5)] == [False] * 3 + [True] * 2


def test_a_tensor_that_is_kept_from_another_step_is_foreign():
    kept = []

    def rate(meta, step):
        kept.append(meta.value[0] * 1.0)
        return kept[0]

    problem = problem_of(bank.Value([0.1]))
    found = Course(problem, SGD(lr=rate), problem.meta_leaves(), 2)
    with pytest.raises(ConfigurationError, match="lr depends on a tensor that requires a gradient"):
        found.at(0)


def test_a_function_that_is_custom_is_differentiated_by_its_own_backward_pass():
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs * 0.5

        @staticmethod
        def backward(ctx, gradient):
            # A number that is read would stop a batched pass.
            return gradient * (0.5 if gradient.item() else 0.0)

    given = bank.small_net()
    loss = given.problem.valid_loss
    problem = mt.BilevelProblem(given.problem.model, bank.Value([0.1, 0.4]), loss, loss)
    inner = SGD(lr=lambda meta, step: Scaled.apply(meta.value[step % 2]))
    case = bank.ProblemInstance(problem, inner, given.train_batches, given.valid_batch)
    assert error(flat(case.call(ForwardMode(5))), flat(case.call(Unrolled(5)))) < 1e-12
