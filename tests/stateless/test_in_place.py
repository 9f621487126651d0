"""A forward pass that changes a parameter is refused, and has changed nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import EvolutionStrategies, Unrolled
from metatoolkit.testing import bank


class Changing(nn.Module):
    """Changes its weight by ``change`` before it uses it."""

    def __init__(self, change):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
        self.change = change

    def forward(self, x):
        self.change(self.weight)
        return (self.weight * x).sum()


class Limited(nn.Module):
    """An embedding that keeps its rows short."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(3, 2, max_norm=0.5, dtype=torch.float64)

    def forward(self, x):
        return self.rows(torch.tensor([0, 2])).sum() * x.sum()


def clamp(weight):
    with torch.no_grad():
        weight.clamp_(-1, 1)


def clamp_data(weight):
    weight.data.clamp_(-1, 1)


def fill_a_row(weight):
    with torch.no_grad():
        weight[1:].zero_()


def scale_all(weight):
    with torch.no_grad():
        torch._foreach_mul_([weight], 0.5)


def normalize(weight):
    with torch.no_grad():
        torch.div(weight, weight.norm(), out=weight)


CHANGING = {
    change.__name__: lambda change=change: Changing(change)
    for change in (clamp, clamp_data, fill_a_row, scale_all, normalize)
} | {"max_norm": Limited}
changing = pytest.mark.parametrize("make", CHANGING.values(), ids=CHANGING.keys())


def changing_case(model):
    def train_loss(model, meta, batch):
        return (model(batch) - meta.value) ** 2

    problem = mt.BilevelProblem(model, bank.Value(0.5), train_loss, train_loss)
    batch = torch.ones(2, dtype=torch.float64)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)


@changing
def test_it_is_refused_and_nothing_has_changed(make):
    torch.manual_seed(0)
    case = changing_case(make())
    state = case.state
    given = {name: tensor.clone() for name, tensor in state.parameters.items()}
    live = case.problem.parameters()

    def attempts():
        meta, batch = case.problem.meta_parameters(), case.valid_batch
        yield lambda: case.inner.step(case.problem, state, meta, batch)
        yield lambda: case.call(Unrolled(2), state)
        yield lambda: case.call(EvolutionStrategies(), state)

    for attempt in attempts():
        fresh = changing_case(case.problem.model)
        case.problem._passes = fresh.problem._passes
        with pytest.raises(UnsupportedError, match=r"changes the parameter 'model\.\w+.*in place"):
            attempt()
        torch.testing.assert_close(state.parameters, given, rtol=0, atol=0)
        torch.testing.assert_close(case.problem.parameters(), live, rtol=0, atol=0)


def test_what_begins_later_is_refused_too():
    counts = iter(range(10))
    case = changing_case(Changing(lambda weight: clamp(weight) if next(counts) > 2 else None))
    with pytest.raises(UnsupportedError, match=r"'model\.weight'.*max_norm"):
        case.call(Unrolled(4))


def test_the_way_that_the_error_tells_is_right():
    class Renormed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))

        def forward(self, x):
            rows = F.embedding(torch.tensor([0, 2]), self.weight.renorm(2, 0, 0.5))
            return rows.sum() * x.sum()

    case = changing_case(Renormed())
    check = mt.check_hypergradient(
        case.problem, case.inner, Unrolled(2), case.batches(2), case.valid_batch
    )
    assert check.relative_error < 1e-7


def test_the_first_pass_is_like_any_other():
    def train_loss(model, meta, batch):
        return (model(batch.float()) * meta.value).sum(dtype=torch.float32)

    model = nn.Linear(2, 1)
    problem = mt.BilevelProblem(model, bank.Value(0.5, torch.float32), train_loss, train_loss)
    arguments = (problem.parameters(), problem.meta_parameters(), {}, torch.ones(3, 2), 0)
    first, second = (problem.evaluate_train(*arguments)[0] for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.float32
    rounded = mt.BilevelProblem(
        model,
        bank.Value(0.5, torch.float32),
        lambda model, meta, batch: model(batch).sum(dtype=torch.float64) * meta.value,
        train_loss,
    )
    assert rounded.evaluate_train(*arguments)[0].dtype == torch.float64


def test_buffers_and_activations_may_be_changed_in_place():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            self.count += 1
            return (self.weight * x).relu_().sum() + self.count

    case = changing_case(Counting())
    result = case.call(Unrolled(3))
    assert float(result.state.buffers["model.count"]) == 3
    assert float(case.problem.model.count) == 0
