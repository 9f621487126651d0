"""Tangents that SGD moves in closed form are those of its update, differentiated."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients import ForwardMode, Unrolled, tangents
from metatoolkit.hypergradients.tangent_updates import ClosedUpdate, DifferentiatedUpdate
from metatoolkit.inner import SGD
from metatoolkit.metaparameters import LearningRates, Schedule
from metatoolkit.testing import bank
from tests.hypergradients.test_unrolled import error, flat

F64 = torch.float64
STEPS = 6


class Differentiated(SGD):
    """SGD by an update of its own, of which no closed form is told."""

    def update(self, parameter, gradient, slots, hyperparameters, step):
        return super().update(parameter, gradient, slots, hyperparameters, step)


@pytest.fixture
def taken(monkeypatch):
    """The kinds of updates that tangents went through."""
    found = set()
    for kind in (ClosedUpdate, DifferentiatedUpdate):

        def push(self, *arguments, kind=kind, real=kind.push):
            found.add(kind)
            return real(self, *arguments)

        monkeypatch.setattr(kind, "push", push)
    return found


def scheduled(learner, **options):
    """A network whose hyper-parameters are schedules, some with a shape of their own."""
    given = bank.small_net()
    first = {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.02, "dampening": 0.3, "bias_lr": 0.2}
    nesterov = options.get("nesterov", False)
    names = [name for name in first if not (nesterov and name == "dampening")]
    meta = nn.ModuleDict({name: Schedule(first[name], STEPS, 3) for name in names}).double()

    def of(name):
        return lambda module, step: module[name].at(step)

    own = {name: of(name) for name in names if name != "bias_lr"}
    groups = [{"params": ["*.bias"], "lr": of("bias_lr")}]
    loss = given.problem.valid_loss
    problem = mt.BilevelProblem(given.problem.model, meta, loss, loss)
    inner = learner(**own, groups=groups, **options)
    return bank.ProblemInstance(problem, inner, given.train_batches, given.valid_batch)


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True}, {"maximize": True}], ids=["plain", "nesterov", "maximize"]
)
@pytest.mark.parametrize("chunk", [64, 4, 1])
def test_schedules_of_all_hyperparameters(options, chunk, taken):
    closed = scheduled(SGD, **options).call(ForwardMode(STEPS, chunk=chunk))
    assert taken == {ClosedUpdate}
    generic = scheduled(Differentiated, **options).call(ForwardMode(STEPS, chunk=chunk))
    assert taken == {ClosedUpdate, DifferentiatedUpdate}
    exact = scheduled(SGD, **options).call(Unrolled(STEPS))
    assert error(flat(closed), flat(exact)) < 1e-12
    assert error(flat(closed), flat(generic)) < 1e-12
    assert closed.cost == generic.cost
    for one, other in zip(closed.state.tensors(), exact.state.tensors(), strict=True):
        assert torch.equal(one, other)


def test_a_value_that_two_hyperparameters_share(taken):
    given = bank.small_net()
    loss = given.problem.valid_loss
    meta = bank.Value([0.1, 0.5])
    inner = SGD(
        lr=lambda module, step: module.value[0] * module.value[1],
        momentum=lambda module, step: module.value[1],
        weight_decay=lambda module, step: module.value.sum() / 10,
    )
    problem = mt.BilevelProblem(given.problem.model, meta, loss, loss)
    case = bank.ProblemInstance(problem, inner, given.train_batches, given.valid_batch)
    found, exact = case.call(ForwardMode(4)), case.call(Unrolled(4))
    assert taken == {ClosedUpdate}
    assert error(flat(found), flat(exact)) < 1e-12


@pytest.mark.parametrize("level", ["layer", "tensor", "coordinate"])
def test_rates_of_layers_are_numbers_and_those_of_entries_are_not(level, taken):
    given = bank.small_net()
    meta = LearningRates(given.problem.model, 0.1, level)
    loss = given.problem.valid_loss
    problem = mt.BilevelProblem(given.problem.model, meta, loss, loss)
    inner = SGD(lr=LearningRates.at, momentum=0.9)
    case = bank.ProblemInstance(problem, inner, given.train_batches, given.valid_batch)
    found, exact = case.call(ForwardMode(3)), case.call(Unrolled(3))
    assert taken == {DifferentiatedUpdate if level == "coordinate" else ClosedUpdate}
    assert error(flat(found), flat(exact)) < 1e-12


def test_parameters_that_a_batch_does_not_reach_stay(taken):
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)]).double()
    meta = bank.Value([0.2, 0.6])

    def loss(modules, meta, batch):
        inputs, skip = batch
        hidden = modules[0](inputs).tanh()
        hidden = hidden if skip else modules[1](hidden).tanh()
        return modules[2](hidden).square().mean()

    def train_loss(modules, meta, batch):
        return meta.value[1] * loss(modules, meta, batch)

    problem = mt.BilevelProblem(model, meta, train_loss, loss)
    inner = SGD(lr=lambda module, step: module.value[0], momentum=0.8)
    batches = [(torch.randn(4, 3, dtype=F64), step in (0, 2)) for step in range(5)]
    case = bank.ProblemInstance(problem, inner, batches, (torch.randn(4, 3, dtype=F64), False))
    found, exact = case.call(ForwardMode(5)), case.call(Unrolled(5))
    assert taken == {ClosedUpdate}
    assert error(flat(found), flat(exact)) < 1e-12


def test_a_learner_whose_step_is_changed_is_differentiated(taken):
    case = bank.ridge()
    case.inner = mt.inner.Clipped(SGD(lr=0.1, momentum=0.5), max_norm=0.5)
    found, exact = case.call(ForwardMode(3)), case.call(Unrolled(3))
    assert taken == {DifferentiatedUpdate}
    assert error(flat(found), flat(exact)) < 1e-12


def test_a_dampening_that_no_step_reads_is_an_error_as_elsewhere():
    given = bank.small_net()
    loss = given.problem.valid_loss
    meta = bank.Value([0.3])
    inner = SGD(0.1, 0.9, dampening=lambda module, step: module.value[0])
    problem = mt.BilevelProblem(given.problem.model, meta, loss, loss)
    case = bank.ProblemInstance(problem, inner, given.train_batches, given.valid_batch)
    with pytest.raises(mt.errors.UnusedMetaParameterError):
        case.call(ForwardMode(1))
    assert error(flat(case.call(ForwardMode(2))), flat(case.call(Unrolled(2)))) < 1e-12


def test_tangents_share_the_memory_that_a_learner_moves():
    case = bank.small_net()
    meta = case.problem.meta_leaves()
    count = sum(tensor.numel() for tensor in meta.values())
    probes = ForwardMode(1)._probes(case.problem, case.state)
    bundle = tangents.TangentBundle(
        case.problem, case.inner, case.state, meta, probes.directions, count, 64
    )
    before = [tangent.data_ptr() for tangent in bundle.tangents]
    bundle.step(case.train_batches[0])
    assert [tangent.data_ptr() for tangent in bundle.tangents] == before
    assert any(bool(tangent.any()) for tangent in bundle.tangents)


class Sum(nn.Module):
    """Two parameters whose gradients are one tensor."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.tensor([0.3, -0.7], dtype=F64))
        self.other = nn.Parameter(torch.tensor([0.5, 0.2], dtype=F64))

    def forward(self, batch):
        return self.one + self.other - batch


def test_parameters_that_share_a_gradient_move_by_their_own(taken):
    model = Sum()
    meta = LearningRates(model, 0.1, "tensor").double()
    with torch.no_grad():
        next(meta.parameters()).mul_(1.5)

    def loss(model, meta, batch):
        return model(batch).pow(3).sum()

    problem = mt.BilevelProblem(model, meta, loss, loss)
    inner = SGD(lr=lambda module, step: module.at(step), weight_decay=0.3)
    batches = [torch.tensor([0.1, 0.4], dtype=F64)] * 3
    found = [
        flat(estimator(problem, inner, inner.init(problem), batches, batches[0]))
        for estimator in (ForwardMode(3), Unrolled(3))
    ]
    assert taken == {ClosedUpdate}
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
