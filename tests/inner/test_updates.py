"""Parameters that move alike are updated at once, with the values that each would have alone."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.inner import SGD, Adam, AdamW, updates
from metatoolkit.testing import bank

LEARNERS = {
    "plain": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9, weight_decay=0.1),
    "dampened": lambda: SGD(0.1, momentum=0.9, dampening=0.3, maximize=True),
    "Nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "groups": lambda: SGD(0.1, momentum=0.9, groups=[{"params": ["*bias"], "lr": 0.3}]),
    "Adam": lambda: Adam(0.05, weight_decay=0.1),
    "amsgrad": lambda: Adam(0.05, amsgrad=True),
    "AdamW": lambda: AdamW(0.05, maximize=True),
}


@pytest.fixture
def together(monkeypatch):
    """Count the parameters that are updated at once, by calls."""
    counts = []
    real = updates._update_together

    def counted(update, parameters, *rest):
        counts.append(len(parameters))
        return real(update, parameters, *rest)

    monkeypatch.setattr(updates, "_update_together", counted)
    return counts


def moved(case, inner, steps=3):
    """Return the states after some steps, and the derivative of the last in λ."""
    meta, state = case.problem.meta_leaves(), inner.init(case.problem)
    for batch in case.batches(steps):
        state, _ = inner.step(case.problem, state, meta, batch, create_graph=True)
    total = sum(tensor.sum() for tensor in state.tensors())
    return [*state.tensors(), *torch.autograd.grad(total, list(meta.values()), allow_unused=True)]


@pytest.mark.parametrize("learner", LEARNERS)
def test_as_if_one_by_one(learner, together, monkeypatch):
    case, inner = bank.small_net(), LEARNERS[learner]()
    found = moved(case, inner)
    if learner == "amsgrad":
        assert together == []
    else:
        parts = 2 if learner == "groups" else 1
        assert len(together) == 3 * parts
        assert sum(together) == 3 * len(case.problem.parameter_names)
    monkeypatch.setattr(updates, "_can_be_bundled", lambda *given: False)
    for one, other in zip(found, moved(case, inner), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


class Own(SGD):
    """Overrides the update, and says nothing of bundles."""

    def update(self, parameter, gradient, slots, hyperparameters, step):
        assert isinstance(parameter, torch.Tensor)
        return super().update(parameter, gradient, slots, hyperparameters, step)


def test_what_is_updated_one_by_one(together):
    case = bank.small_net()
    moved(case, Own(0.1))
    # A hyper-parameter that is no number.
    moved(case, SGD(torch.tensor(0.1, dtype=torch.float64)))
    moved(case, SGD(lambda meta, step: torch.tensor(0.1, dtype=torch.float64)))
    # One parameter alone.
    moved(bank.ridge(), SGD(0.1))
    assert together == []
    moved(case, SGD(lambda meta, step: 0.1 / (step + 1)))
    assert len(together) == 3


def test_within_a_transform(together):
    case, inner = bank.small_net(), SGD(0.1)
    state = inner.init(case.problem)
    names = list(state.parameters)
    gradients = [torch.randn(2, *p.shape).to(p) for p in state.parameters.values()]

    def after(*given):
        result = inner.apply(case.problem, state, {}, dict(zip(names, given, strict=True)))
        return list(result.parameters.values())

    found = torch.vmap(after)(*gradients)
    assert together == []
    for index in range(2):
        for one, other in zip(found, after(*(g[index] for g in gradients)), strict=True):
            torch.testing.assert_close(one[index], other)
    assert len(together) == 2


def test_parameters_that_missed_a_step_move_by_their_own_count(together):
    case, inner = bank.small_net(), Adam(0.05)
    state = inner.init(case.problem)
    names = list(state.parameters)
    gradients = {name: torch.ones_like(p) for name, p in state.parameters.items()}
    first = {name: gradients[name] for name in names[:2]}
    middle = inner.apply(case.problem, state, {}, first)
    assert set(middle.missed) == set(names[2:])
    last = inner.apply(case.problem, middle, {}, gradients)
    once = inner.apply(case.problem, state, {}, gradients)
    for name in names[2:]:
        assert torch.equal(last.parameters[name], once.parameters[name])
        assert not torch.equal(last.parameters[names[0]], once.parameters[names[0]])


def test_large_parameters_are_cut_in_parts(together, monkeypatch):
    case = bank.small_net()
    expected = moved(case, Adam(0.05))
    monkeypatch.setattr(updates, "LARGEST_WITH_GRAPH", 1)
    together.clear()
    for one, other in zip(expected, moved(case, Adam(0.05)), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert together == []
    sizes = {"empty": 0, "a": 40, "b": 20, "c": 5, "d": 70, "e": 1, "f": 59}
    monkeypatch.setattr(updates, "LARGEST_BUNDLE", 60)
    tensors = {n: torch.zeros(size) for n, size in sizes.items()}
    with torch.no_grad():
        parts = updates._parts(list(sizes), tensors)
    # One that is larger than all that may be is a part of its own.
    assert parts == [["empty", "a", "b"], ["c"], ["d"], ["e", "f"]]
    monkeypatch.setattr(updates, "LARGEST_WITH_GRAPH", sum(sizes.values()))
    assert updates._parts(list(sizes), tensors) == [list(sizes)]
    monkeypatch.setattr(updates, "LARGEST_WITH_GRAPH", sum(sizes.values()) - 1)
    assert updates._parts(list(sizes), tensors) == [[name] for name in sizes]
    with torch.no_grad():
        assert updates._parts([], {}) == []


def test_memory_of_an_update_is_that_of_one_large_parameter_beyond_the_state():
    layers = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(12)))
    problem = mt.BilevelProblem(
        layers, bank.Value(0.0), lambda m, meta, x: m(x).sum(), lambda m, meta, x: m(x).sum()
    )
    inner = Adam(0.05)
    state = inner.init(problem)
    gradients = {name: torch.ones_like(t) for name, t in state.parameters.items()}

    def call():
        with torch.no_grad():
            inner.apply(problem, state, problem.meta_parameters(), gradients)

    one = 4 * 256 * 256
    assert peak_memory(call) < 3 * 12 * one + 6 * one


def test_the_graph_of_an_update_keeps_no_more_than_of_one_parameter_after_the_other(monkeypatch):
    layers = torch.nn.Sequential(*(torch.nn.Linear(128, 128, bias=False) for _ in range(12)))
    problem = mt.BilevelProblem(
        layers, bank.Value(0.0), lambda m, meta, x: m(x).sum(), lambda m, meta, x: m(x).sum()
    )
    inner = SGD(0.1, momentum=0.9, weight_decay=0.1)
    state = inner.init(problem)

    leaves = state.map(lambda tensor: tensor.clone().requires_grad_())
    gradients = {n: t.clone() for n, t in leaves.parameters.items()}
    meta = problem.meta_parameters()

    def peak():
        return peak_memory(lambda: inner.apply(problem, leaves, meta, gradients))

    found = peak()
    monkeypatch.setattr(updates, "_can_be_bundled", lambda *given: False)
    assert found == peak()
