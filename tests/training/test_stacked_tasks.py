"""The problem of several tasks side by side, as estimators see it."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ShapeError, UnsupportedError
from metatoolkit.hypergradients import Adjoint, Unrolled
from metatoolkit.metaparameters import Initialization
from metatoolkit.randomness import Keys, Stream, fold_in, has_moved, place
from metatoolkit.testing import bank
from metatoolkit.training.stacked_tasks import StackedTasks
from tests.training.across_tasks import (
    TASKS,
    largest_difference,
    listed,
    regression,
    sinusoids,
    squared_error,
)

SGD = mt.inner.SGD(lr=0.05)
KEYS = [3, 1, 4, 1 << 40]


def stacked(problem, inner=SGD):
    side_by_side = StackedTasks(problem, TASKS, {})
    return side_by_side, side_by_side.begin(inner, inner.init(problem), KEYS)


def test_losses_are_the_sum_and_the_mean_and_gradients_are_those_of_each_task():
    problem, (support, query) = regression(nn.Dropout(0.5)), sinusoids()
    many, state = stacked(problem)
    meta = problem.meta_leaves()
    parameters = {n: t.requires_grad_() for n, t in state.parameters.items()}
    key = fold_in(state.key, 0)
    loss, _ = many.evaluate_train(parameters, meta, state.buffers, support, key)
    found = torch.autograd.grad(loss, list(parameters.values()))
    valid = many.evaluate_valid(parameters, meta, state.buffers, query, key)
    losses, valid_losses = [], []
    for task, (inputs, queries) in enumerate(listed((support, query))):
        own = {n: t.requires_grad_() for n, t in problem.parameters().items()}
        alone, own_key = SGD.init(problem), fold_in(KEYS[task], 0)
        value, _ = problem.evaluate_train(own, meta, alone.buffers, inputs, own_key)
        for whole, part in zip(found, torch.autograd.grad(value, list(own.values())), strict=True):
            assert torch.allclose(whole[task], part, rtol=0, atol=1e-12)
        losses.append(value.detach())
        valid_losses.append(problem.evaluate_valid(own, meta, alone.buffers, queries, own_key))
    assert torch.allclose(loss, torch.stack(losses).sum(), rtol=0, atol=1e-12)
    assert torch.allclose(valid, torch.stack(valid_losses).mean(), rtol=0, atol=1e-12)
    assert torch.allclose(many.task_losses, torch.stack(valid_losses), rtol=0, atol=1e-12)


def test_nothing_of_the_problem_changes():
    problem = regression(nn.Dropout(0.5), nn.BatchNorm1d(8).double())
    before = {n: t.clone() for n, t in problem.model.state_dict().items()}
    many, state = stacked(problem)
    drawn = place()
    estimator, (support, query) = Unrolled(2), sinusoids()
    estimator(many, SGD, state, [support] * 2, query)
    assert not has_moved(drawn) and problem.watch is None
    assert all(torch.equal(before[n], t) for n, t in problem.model.state_dict().items())
    assert all(p.grad is None for p in (*problem.model.parameters(), *problem.meta.parameters()))


def test_states_are_put_together_and_taken_apart():
    problem = regression(nn.BatchNorm1d(8).double())
    # NAdam has numbers that all tasks share, beside slots of the shape of the parameters.
    inner = mt.inner.NAdam(lr=0.01)
    start = inner.init(problem)
    many, state = stacked(problem, inner)
    assert isinstance(state.key, Keys) and state.step == 0
    for task, own in enumerate(many.apart(state, start)):
        assert own.key == KEYS[task]
        assert largest_difference(own.parameters, start.parameters) == 0
        assert own.buffers.keys() == start.buffers.keys()
        for slot, values in own.optimizer.items():
            assert {n: t.shape for n, t in values.items()} == {
                n: t.shape for n, t in start.optimizer[slot].items()
            }


def both_ways(problem, inner, estimator, tasks):
    loop = mt.over_tasks(problem, inner, estimator, tasks, "loop")
    found = mt.over_tasks(problem, inner, estimator, tasks, "vmap")
    assert found.details["batching"] == "vmap"
    return found.gradient, loop.gradient


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("estimator", [Adjoint(), Adjoint(steps=2), Unrolled(1)])
def test_gradient_flows(solver, estimator):
    flow = mt.inner.GradientFlow(time=0.3, steps=6, solver=solver)
    (support, query) = sinusoids()
    problem = regression(nn.Dropout(0.5))
    found, loop = both_ways(problem, flow, estimator, (support, query))
    assert largest_difference(found, loop) < 1e-12
    # Euler's steps are those of gradient descent.
    if solver == "euler" and estimator.horizon == 1:
        plain, problem = Unrolled(6), regression()
        one = mt.over_tasks(problem, SGD, plain, (support, query), "vmap")
        other = mt.over_tasks(problem, flow, estimator, (support, query), "vmap")
        assert largest_difference(one.gradient, other.gradient) < 1e-12


def test_how_stiff_each_flow_is_would_be_hidden_side_by_side():
    flow, estimator = mt.inner.GradientFlow(time=0.6, steps=6), Adjoint(method="continuous")
    with pytest.raises(UnsupportedError, match="Adjoint does not say of itself"):
        mt.over_tasks(regression(), flow, estimator, sinusoids(), "vmap")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_mode_of_the_outer_loss(mode):
    layers = nn.Dropout(0.5), nn.BatchNorm1d(8).double()
    model = regression(*layers).model
    problem = mt.BilevelProblem(
        model,
        Initialization(model),
        squared_error,
        squared_error,
        valid_mode=mode,
        initial=Initialization.values,
    )
    assert largest_difference(*both_ways(problem, SGD, Unrolled(2), sinusoids())) < 1e-10
    assert all(module.training for module in model.modules())


def test_learning_rates_of_each_entry_are_learned_beside_the_initial_state():
    class InitialValuesAndRates(nn.Module):
        """λ of Meta-SGD (Li et al. 2017, arXiv 1707.09835)."""

        def __init__(self, model):
            super().__init__()
            self.start = Initialization(model)
            named = model.named_parameters()
            self.rates = nn.ParameterList([torch.full_like(p, 0.05) for _, p in named])

    model = regression().model
    meta = InitialValuesAndRates(model).double()
    names = [name for name, _ in model.named_parameters()]
    groups = [{"params": [n], "lr": r} for n, r in zip(names, meta.rates, strict=True)]
    inner = mt.inner.SGD(lr=0.1, groups=groups)
    problem = mt.BilevelProblem(
        model, meta, squared_error, squared_error, initial=lambda meta: meta.start.values()
    )
    found, loop = both_ways(problem, inner, Unrolled(3), sinusoids())
    assert largest_difference(found, loop) < 1e-10
    assert all(found[f"rates.{n}"].abs().max() > 0 for n in range(len(names)))


def test_a_learning_rate_that_fits_no_parameter_does_not_pass_for_one_of_each_task():
    problem = regression()
    mt.over_tasks(problem, SGD, Unrolled(2), sinusoids(), "vmap")
    rates = mt.inner.SGD(lr=torch.full((TASKS, 1, 1), 0.05))
    for batching in ("vmap", "loop", "auto"):
        with pytest.raises(ShapeError, match="a hyper-parameter that is a tensor must"):
            mt.over_tasks(problem, rates, Unrolled(2), sinusoids(), batching)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    model = regression().model.to(dtype)
    meta = Initialization(model)
    problem = mt.BilevelProblem(
        model, meta, squared_error, squared_error, initial=Initialization.values
    )
    (a, b), (c, d) = sinusoids()
    tasks = (a.to(dtype), b.to(dtype)), (c.to(dtype), d.to(dtype))
    found, loop = both_ways(problem, SGD, Unrolled(2), tasks)
    scale = max(float(gradient.abs().max()) for gradient in loop.values())
    assert largest_difference(found, loop) < 8 * torch.finfo(dtype).eps * scale


def test_complex_parameters_and_meta_parameters():
    class Phase(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.5 + 0.2j, -0.3j], dtype=torch.complex128))

        def forward(self, inputs):
            return (inputs * self.weight).sum(-1).real

    model = Phase()
    meta = Initialization(model)
    problem = mt.BilevelProblem(
        model, meta, squared_error, squared_error, initial=Initialization.values
    )
    torch.manual_seed(0)
    inputs = torch.randn(3, 6, 2, dtype=torch.complex128)
    targets = torch.randn(3, 6, dtype=torch.float64)
    tasks = (inputs[:, :3], targets[:, :3]), (inputs[:, 3:], targets[:, 3:])
    assert largest_difference(*both_ways(problem, SGD, Unrolled(2), tasks)) < 1e-10


def test_parameters_that_a_task_does_not_reach_are_skipped():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()

        def forward(self, inputs):
            return self.used(inputs)

    model = Heads()
    problem = mt.BilevelProblem(
        model,
        Initialization(model, ["used.*"]),
        squared_error,
        squared_error,
        initial=Initialization.values,
    )
    loop, found = (
        mt.over_tasks(problem, SGD, Unrolled(2), sinusoids(), way, keep_states=True)
        for way in ("loop", "vmap")
    )
    assert largest_difference(found.gradient, loop.gradient) < 1e-10
    missed = {"idle.weight": 2, "idle.bias": 2}
    assert [state.missed for state in found.details["states"]] == [missed] * TASKS


def test_an_estimator_checks_the_stacked_problem_as_any_other():
    case = bank.small_net()
    keys = [fold_in(7, Stream.TASK, task) for task in range(2)]
    many = StackedTasks(case.problem, 2, {})
    state = many.begin(case.inner, case.state, keys)
    batch = tuple(torch.stack([part, part]) for part in case.train_batches[0])
    with pytest.raises(mt.errors.ConfigurationError, match="takes a list of 2"):
        Unrolled(2)(many, case.inner, state, [batch], batch)
