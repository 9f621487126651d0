"""Passes of losses as pure functions, alone, nested and under the transforms of torch.func."""

import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

import metatoolkit as mt
from metatoolkit.errors import ReplayError, ShapeError
from metatoolkit.hypergradients import EvolutionStrategies, Unrolled
from metatoolkit.randomness import seeded
from metatoolkit.stateless import passes
from metatoolkit.stateless.exchange import within
from metatoolkit.stateless.in_place import Untouched
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS


def noisy_case(seen=None):
    def train_loss(model, meta, batch):
        if seen is not None:
            seen.append(isinstance(_get_current_dispatch_mode(), Untouched))
        return (model.value * batch - meta.value).square().mean()

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), train_loss, train_loss)
    batch = torch.tensor([1.0, 2.0], dtype=torch.float64)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)


def test_only_the_first_pass_of_a_loss_is_watched_over():
    seen = []
    case = noisy_case(seen)
    state = case.state
    for _ in range(3):
        case.inner.step(case.problem, state, case.problem.meta_parameters(), case.valid_batch)
    arguments = (state.parameters, case.problem.meta_parameters(), {}, case.valid_batch, 0)
    for _ in range(2):
        case.problem.evaluate_valid(*arguments)
    assert seen == [True, False, False, True, False]


def test_graphs_are_looked_at_once_in_a_call(monkeypatch):
    counts = {"graph": 0, "second": 0}

    def counted(name, function):
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        return call

    inspect, watch = passes.inspect_graph, passes.watch_second_derivatives
    monkeypatch.setattr(passes, "inspect_graph", counted("graph", inspect))
    monkeypatch.setattr(passes, "watch_second_derivatives", counted("second", watch))
    case = noisy_case()
    case.call(Unrolled(5))
    assert counts == {"graph": 2, "second": 1}  # one of each loss, and one of the training loss
    case.call(Unrolled(5))
    assert counts == {"graph": 4, "second": 2}


@pytest.mark.parametrize("warm", [False, True])
def test_a_loss_that_differentiates_inside_itself_needs_no_graph_around(warm):
    def penalized(model, meta, batch):
        output = (model.value * batch).sin().sum()
        (slope,) = torch.autograd.grad(output, model.value, create_graph=True)
        return output + meta.value * slope.square()

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), penalized, penalized)
    batch = torch.tensor(1.3, dtype=torch.float64)
    arguments = (problem.parameters(), problem.meta_parameters(), {}, batch, 0)
    x = torch.tensor(0.7 * 1.3, dtype=torch.float64)
    right = x.sin() + 0.2 * (1.3 * x.cos()).square()
    with torch.no_grad():
        for _ in range(2 if warm else 1):
            value = problem.evaluate_valid(*arguments)
            assert not value.requires_grad
            torch.testing.assert_close(value, right)


@pytest.mark.parametrize("warm", [False, True])
def test_passes_can_be_transformed(warm):
    case = noisy_case()
    problem, batch = case.problem, case.valid_batch
    meta = {"value": torch.tensor(0.2, dtype=torch.float64)}
    if warm:
        problem.evaluate_train(problem.parameters(), meta, {}, batch, 0)

    def loss(value):
        return problem.evaluate_train({"value": value}, meta, {}, batch, 0)[0]

    values = torch.tensor([0.1, 0.7, -2.0], dtype=torch.float64)
    right = (values[:, None] * batch - 0.2).square().mean(1)
    torch.testing.assert_close(torch.func.vmap(loss)(values), right)
    slopes = torch.func.vmap(torch.func.grad(loss))(values)
    torch.testing.assert_close(slopes, (2 * batch * (values[:, None] * batch - 0.2)).mean(1))


def test_hooks_on_frozen_parameters_are_nobodys_business():
    model = nn.Linear(2, 1).double()
    model.bias.register_hook(lambda gradient: gradient)
    model.bias.requires_grad_(False)

    def train_loss(model, meta, batch):
        return model(batch).square().mean() * meta.value

    problem = mt.BilevelProblem(model, bank.Value(1.0), train_loss, train_loss)
    batch = torch.ones(3, 2, dtype=torch.float64)
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)
    assert case.call(Unrolled(1)).gradient["value"].isfinite()
    case.call(EvolutionStrategies())


def test_a_loss_that_differentiates_inside_itself_fails_once():
    runs = []

    def penalized(model, meta, batch):
        runs.append(model.value.requires_grad)
        (slope,) = torch.autograd.grad(model.value.sin(), model.value, create_graph=True)
        return slope * meta.value

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), penalized, penalized)
    arguments = ({"value": torch.tensor(0.7)}, {"value": torch.tensor(2.0)}, {}, None, 0)
    problem.evaluate_train(*arguments)
    assert runs == [False, True]
    for _ in range(2):
        problem.evaluate_train(*arguments)
    # It is known by now what the training loss needs; the outer loss may be another.
    assert runs == [False, True, True, True]
    problem.evaluate_valid(*arguments)
    assert runs[4:] == [False, True]


def test_an_error_of_a_loss_that_has_all_it_asks_for_is_its_own():
    def broken(model, meta, batch):
        raise RuntimeError("it does not require grad, says the loss")

    runs = []
    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), broken, broken)
    grown = {"value": torch.tensor(0.7, requires_grad=True)}
    problem.watch = lambda *_: runs.append(1)
    with pytest.raises(RuntimeError, match="says the loss") as told:
        problem.evaluate_train(grown, grown, {}, None, 0)
    assert len(told.value.__notes__) == 1 and told.value.__context__ is None and not runs


def test_a_second_run_for_the_generators_names_the_loss():
    def listed(model, meta, batch):
        return [model.value * random.random()]

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), listed, listed)
    arguments = (problem.parameters(), problem.meta_parameters(), {}, None, 0)
    with pytest.raises(ShapeError, match="train_loss returned a list"):
        problem.evaluate_train(*arguments)
    with pytest.raises(ShapeError, match="valid_loss returned a list"):
        problem.evaluate_valid(*arguments)
    assert problem._passes.draws_globally == {"train_loss"}


def test_the_generators_of_all_devices_that_a_pass_may_read_are_seeded(monkeypatch):
    asked = []

    def noted(key, devices, *which):
        asked.append((key, devices))
        return seeded(key, (), *which)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(0.5))

    monkeypatch.setattr(passes, "_has_accelerator", lambda: True)
    monkeypatch.setattr(passes, "seeded", noted)
    for part in ("buffer", "frozen", "nothing"):
        model = Net()
        if part == "buffer":
            model.register_buffer("far", torch.ones(2, device="meta"))
        if part == "frozen":
            model.far = nn.Parameter(torch.ones(2, device="meta"), requires_grad=False)
        problem = mt.BilevelProblem(model, bank.Value(0.2), _product, _product)
        problem.evaluate_train(
            problem.parameters(), problem.meta_parameters(), problem.buffers(), None, 9
        )
    far = {torch.device("cpu"), torch.device("meta")}
    assert asked == [(9, far), (9, far), (9, {torch.device("cpu")})]


def _product(model, meta, batch):
    return model.value * meta.value


class Recomputed(torch.autograd.Function):
    """w · x², whose backward pass reads w from the module again."""

    @staticmethod
    def forward(ctx, module, x):
        ctx.module = module
        ctx.save_for_backward(x)
        return module.value.detach() * x**2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return None, gradient * 2 * ctx.module.value * x


@pytest.mark.parametrize("watched", [1, 3])
def test_a_backward_pass_that_reads_the_module_finds_what_the_pass_found(watched):
    def loss(model, meta, batch):
        return Recomputed.apply(model, meta.value)

    problem = mt.BilevelProblem(bank.Value(5.0), bank.Value(0.2), loss, loss)
    given = {"value": torch.tensor(3.0, dtype=torch.float64)}
    arguments = (given, problem.meta_leaves(), {}, None, 0)
    for _ in range(watched):
        value, _ = problem.evaluate_train(*arguments)
        with within(value):
            (slope,) = torch.autograd.grad(value, arguments[1]["value"])
        assert float(slope) == pytest.approx(3 * 2 * 0.2)


@pytest.mark.parametrize(
    ("error", "noted"), [(RuntimeError, True), (IndexError, True), (ValueError, False)]
)
def test_an_error_of_a_loss_is_told_once_with_the_batch(error, noted):
    runs = []

    def broken(model, meta, batch):
        runs.append(1)
        raise error("of the loss")

    problem = mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), broken, broken)
    arguments = ({"value": torch.tensor(0.7)}, {"value": torch.tensor(2.0)}, {}, torch.ones(2), 0)
    with pytest.raises(error, match="of the loss") as told:
        problem.evaluate_valid(*arguments)
    note = "while valid_loss was evaluated on a batch of: (2,) float32"
    assert getattr(told.value, "__notes__", []) == ([note] if noted else [])
    assert len(runs) == 1


def test_a_pass_under_a_transform_is_not_the_first():
    seen = []
    case = noisy_case(seen)
    problem, meta = case.problem, case.problem.meta_parameters()

    def loss(value):
        return problem.evaluate_train({"value": value}, meta, {}, case.valid_batch, 0)[0]

    torch.func.vmap(loss)(torch.ones(2, dtype=torch.float64))
    for _ in range(2):
        loss(torch.ones((), dtype=torch.float64))
    assert seen == [False, True, False]


def test_second_derivatives_are_looked_at_once_for_each_kind_of_tensor(monkeypatch):
    looked_at = []
    monkeypatch.setattr(
        passes, "watch_second_derivatives", lambda loss, tensors: looked_at.append((loss, tensors))
    )
    problem = noisy_case().problem
    one, other = [torch.ones(1)], [torch.ones(2)]
    for _ in range(2):
        problem.watch_second_derivatives("loss", one)
        problem.watch_second_derivatives("loss", other, "λ")
        problem.watch_second_derivatives("loss", one, "θ")
    assert looked_at == [("loss", one), ("loss", other)]
    problem.check_structure()
    problem.watch_second_derivatives("loss", one)
    assert len(looked_at) == 3


class Caches(torch.nn.Module):
    """Keeps the norm of its weight from the first pass, with or without its graph."""

    def __init__(self, graph):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.6, -0.8], dtype=torch.float64))
        self.norm = None
        self.graph = graph

    def forward(self, x):
        if self.norm is None or not self.graph:
            self.norm = self.weight.norm()
        return (self.weight * x).sum() * self.norm


@pytest.mark.parametrize("name", ["Unrolled(1)", "Unrolled(3)", "FiniteDifference"])
def test_a_graph_that_is_kept_from_an_earlier_evaluation_is_refused(name):
    def call(graph):
        problem = mt.BilevelProblem(
            Caches(graph),
            bank.Value(0.5),
            lambda model, meta, batch: meta.value * model(batch) ** 2,
            lambda model, meta, batch: ((model.weight - batch) ** 2).sum(),
        )
        batch = torch.tensor([1.0, 2.0], dtype=torch.float64)
        case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [batch], batch)
        return case.call(ESTIMATORS[name]())

    assert bool(call(False).gradient["value"])
    with pytest.raises(ReplayError, match="through a tensor that is kept from it"):
        call(True)


def test_a_loss_may_make_tensors_where_the_leaves_of_another_evaluation_lay():
    meta = bank.Value(1.0)

    def loss(model, meta, batch):
        own = [nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(8)]
        return model.value * meta.value + sum(own)

    for _ in range(20):
        problem = mt.BilevelProblem(bank.Value(1.0), meta, loss, loss)
        for _ in range(3):
            # The next leaf is made while the former one lives, whose place is then free.
            leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
            given = {"value": leaf}, problem.meta_leaves()
            value = float(problem.evaluate_valid(*given, {}, None, 0).detach())
            assert value == 9.0


def test_only_the_first_pass_without_a_graph_is_given_one():
    recorded = []

    def loss(model, meta, batch):
        recorded.append(torch.is_grad_enabled())
        return (model.value * batch - meta.value).square().mean()

    def problem():
        recorded.clear()
        return mt.BilevelProblem(bank.Value(0.7), bank.Value(0.2), loss, loss)

    made, theta = problem(), torch.tensor([0.1, 0.2], dtype=torch.float64)
    with torch.no_grad():
        for _ in range(3):
            made.evaluate_train({"value": theta[0]}, made.meta_parameters(), {}, 1.0, 0)
    assert recorded == [True, False, False]
    # A transform of torch.func keeps its own record.
    made = problem()
    with torch.no_grad():
        values = torch.func.vmap(
            lambda one: made.evaluate_train({"value": one}, made.meta_parameters(), {}, 1.0, 0)[0]
        )(theta)
    assert recorded == [False]
    torch.testing.assert_close(values, (theta - 0.2).square())
