"""Complex parameters: as torch.optim moves them, with the right hypergradient, or refused."""

import functools

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit import hypergradients as hg
from metatoolkit.errors import ShapeError, UnsupportedError
from metatoolkit.inner import ASGD, SGD, Adadelta, Adam, Adamax, AdamW, NAdam, RMSprop, Rprop
from metatoolkit.inner.slots import slots_of, update_parameter, zero_slots
from metatoolkit.testing import bank
from tests.inner import reference

F64, C128 = torch.float64, torch.complex128


class Spectrum(nn.Module):
    """A complex parameter, a complex 0-d one and a real one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3 + 0.4j, -0.5 + 0.2j], dtype=C128))
        self.phase = nn.Parameter(torch.tensor(0.8 - 0.6j, dtype=C128))
        self.gain = nn.Parameter(torch.tensor(0.7, dtype=F64))


MIXING = torch.tensor([[1.0 + 0.5j, 0.3], [0.2j, 0.8]], dtype=C128)
TARGET = torch.tensor([0.5 + 1j, -1.0], dtype=C128)


def train_loss(model, meta, batch):
    error = MIXING @ (model.weight * torch.exp(1j * meta.value)) * model.phase.conj() - TARGET
    pull = model.weight.abs().square().sum() + (model.phase - 1.0).abs().square()
    return error.abs().square().sum() * model.gain.square() + 0.3 * pull + (model.gain - 1) ** 2


def valid_loss(model, meta, batch):
    return (model.weight - 1j).abs().square().sum() + (model.phase * model.gain).imag


def make_problem():
    return mt.BilevelProblem(Spectrum(), bank.Value([0.1, -0.6]), train_loss, valid_loss)


SETTINGS = [
    (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (Adam, torch.optim.Adam, {"lr": 0.05, "weight_decay": 0.1}),
    (AdamW, torch.optim.AdamW, {"lr": 0.05, "amsgrad": True, "maximize": True}),
    (RMSprop, torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
    (NAdam, torch.optim.NAdam, {"lr": 0.05, "weight_decay": 0.1}),
    (Adamax, torch.optim.Adamax, {"lr": 0.05, "betas": (0.7, 0.8)}),
    (Adadelta, torch.optim.Adadelta, {"lr": 1.0, "eps": 1e-3}),
    (ASGD, torch.optim.ASGD, {"lr": 0.02, "lambd": 0.3, "t0": 1}),
    (Rprop, torch.optim.Rprop, {"lr": 0.05}),
]
settings = pytest.mark.parametrize(
    ("ours", "theirs", "options"), SETTINGS, ids=[ours.__name__ for ours, _, _ in SETTINGS]
)


def run_torch(optimizer, options, steps, angles):
    model, meta = Spectrum(), bank.Value(angles.tolist())
    stepper = optimizer(model.parameters(), **options)
    for _ in range(steps):
        stepper.zero_grad()
        train_loss(model, meta, None).backward()
        with reference.float64_by_default():
            stepper.step()
    return model


def differences(function, shift=1e-6):
    at = torch.tensor([0.1, -0.6], dtype=F64)
    rows = shift * torch.eye(2, dtype=F64)
    return torch.stack([(function(at + row) - function(at - row)) / (2 * shift) for row in rows])


@settings
def test_complex_parameters_move_as_in_torch(ours, theirs, options):
    problem, inner = make_problem(), ours(**options)
    state = inner.init(problem)
    for _ in range(20):
        state, _ = inner.step(problem, state, problem.meta_parameters(), None)
    model = run_torch(theirs, options, 20, problem.meta.value.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(state.parameters[name], parameter.detach(), rtol=1e-10, atol=0)
    assert float((model.weight - Spectrum().weight).detach().abs().max()) > 0.05
    assert {tensor.dtype for tensor in state.clone().to(torch.float32).tensors()} == {
        torch.complex64,
        torch.float32,
    }


@settings
@pytest.mark.parametrize(
    "estimator",
    [
        hg.Unrolled(3),
        hg.Unrolled(3, product="forward_over_reverse"),
        hg.ForwardMode(3),
        hg.ForwardMode(3, chunk=1),
    ],
    ids=["reverse", "mixed", "forward", "one by one"],
)
def test_exact_estimators_equal_differences_of_torch(ours, theirs, options, estimator):
    problem, inner = make_problem(), ours(**options)
    result = estimator(problem, inner, inner.init(problem), [None] * 3, None)

    def objective(angles):
        return valid_loss(run_torch(theirs, options, 3, angles), None, None).detach()

    expected = differences(objective)
    assert result.gradient["value"].dtype == F64
    torch.testing.assert_close(result.gradient["value"], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", [hg.GMRES(30), hg.NormalEquationCG(60), hg.FixedPoint(600)])
def test_implicit_at_a_complex_optimum(solver):
    problem, inner = make_problem(), SGD(lr=0.1)
    result = hg.Implicit(solver, steps=600)(problem, inner, inner.init(problem), [None] * 600, None)
    expected = differences_at_the_optimum()
    torch.testing.assert_close(result.gradient["value"], expected, rtol=1e-4, atol=1e-8)


@functools.cache
def differences_at_the_optimum():
    def objective(angles):
        model = run_torch(torch.optim.SGD, {"lr": 0.1}, 600, angles)
        return valid_loss(model, None, None).detach()

    return differences(objective, 1e-5)


@pytest.mark.parametrize(
    "make",
    [hg.OneStep, lambda: hg.Penalty(3.0, 1), lambda: hg.SOBA(0.2)],
    ids=["OneStep", "Penalty", "SOBA"],
)
def test_other_estimators_equal_differences_of_their_objectives(make):
    problem, inner, estimator = make_problem(), SGD(lr=0.02, momentum=0.5), make()
    state = inner.init(problem)
    calls = 2 if isinstance(estimator, hg.SOBA) else 1
    for _ in range(calls):
        result = estimator(problem, inner, state, [None], None)

    def objective(angles):
        fresh = estimator if isinstance(estimator, hg.SOBA) else make()
        return fresh.objective(problem, inner, state, [None], None, {"value": angles})

    torch.testing.assert_close(
        result.gradient["value"], differences(objective), rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize(
    "estimator",
    [hg.FiniteDifference(), hg.SAMA(), hg.EvoGrad(2, 0.1, 0.5), hg.Implicit(hg.MINRES(5))],
    ids=lambda estimator: type(estimator).__name__,
)
def test_estimators_of_real_parameters_refuse_complex_ones(estimator):
    problem, inner = make_problem(), SGD(lr=0.1)
    with pytest.raises(UnsupportedError, match=r"'weight' is complex.*Unrolled"):
        estimator(problem, inner, inner.init(problem), [None], None)


def complex_meta_problem():
    return mt.BilevelProblem(
        Spectrum(),
        bank.Value([0.3 + 0.1j, 0.2 - 0.4j], C128),
        lambda model, meta, batch: (model.weight * meta.value - 1).abs().square().sum(),
        valid_loss,
    )


@pytest.mark.parametrize(
    "estimator",
    [hg.ForwardMode(1), hg.EvolutionStrategies(1, 2, 0.1), hg.EvoGrad(2, 0.1, 0.5), hg.OneStep()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_estimators_of_real_meta_parameters_refuse_complex_ones(estimator):
    problem, inner = complex_meta_problem(), SGD(lr=0.1)
    with pytest.raises(UnsupportedError, match=r"'value' is complex"):
        estimator(problem, inner, inner.init(problem), [None], None)
    with pytest.raises(UnsupportedError, match="a meta-parameter is complex"):
        mt.check_hypergradient(problem, inner, hg.Unrolled(1), [None], None)


def test_unrolled_follows_complex_meta_parameters_as_autograd_does():
    problem, inner = complex_meta_problem(), SGD(lr=0.1)
    state = inner.init(problem)
    result = hg.Unrolled(2)(problem, inner, state, [None] * 2, None)
    meta = problem.meta_leaves()
    after = state
    for _ in range(2):
        after, _ = inner.step(problem, after, meta, None, create_graph=True)
    loss = problem.evaluate_valid(after.parameters, meta, state.buffers, None, 0)
    (expected,) = torch.autograd.grad(loss, list(meta.values()))
    torch.testing.assert_close(result.gradient["value"], expected)


def test_a_rate_for_each_entry_holds_for_both_parts():
    problem = make_problem()
    rates = torch.tensor([0.1, 0.02], dtype=F64)
    inner = SGD(lr=0.05, groups=[{"params": ["weight"], "lr": rates}])
    after, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), None)
    model = Spectrum()
    train_loss(model, problem.meta, None).backward()
    expected = model.weight - rates * model.weight.grad
    torch.testing.assert_close(after.parameters["weight"], expected.detach())


def test_a_complex_rate_is_an_error():
    problem = make_problem()
    inner = SGD(lr=torch.tensor(0.1 + 0.1j, dtype=C128))
    with pytest.raises(ShapeError, match=r"'weight' .*into complex values.*must be real"):
        inner.step(problem, inner.init(problem), problem.meta_parameters(), None)


def test_a_gradient_that_is_a_conjugate_view_moves_as_its_values():
    problem, inner = make_problem(), Adam(lr=0.1)
    state = inner.init(problem)
    view = torch.tensor([0.3 + 0.4j, -0.5 + 0.2j], dtype=C128).conj()
    assert view.is_conj()
    meta = problem.meta_parameters()
    one, other = (
        inner.apply(problem, state, meta, {"weight": g}) for g in (view, view.resolve_conj())
    )
    assert torch.equal(one.parameters["weight"], other.parameters["weight"])
    assert not torch.equal(one.parameters["weight"], state.parameters["weight"])


def test_slots_begin_as_zeros_and_are_those_of_a_parameter():
    parameters = {"a": torch.ones(2, dtype=C128), "b": torch.ones((), dtype=torch.bfloat16)}
    slots = zero_slots(parameters, "one", "two")
    assert list(slots) == ["one", "two"] and zero_slots(parameters) == {}
    for own in slots.values():
        for name, tensor in own.items():
            assert (tensor.dtype, tensor.shape) == (parameters[name].dtype, parameters[name].shape)
            assert not tensor.any()
    state = SGD(0.1).init(make_problem())
    kept = {"one": {"weight": torch.ones(1)}, "two": {"gain": torch.zeros(1)}}
    assert slots_of(state.replaced(optimizer=kept), "weight") == {"one": kept["one"]["weight"]}


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_complex_parameter_moves_part_by_part(shape):
    rates = 0.1 * torch.arange(1.0, 4.0, dtype=F64)[: 1 if shape == () else 3].squeeze()
    generator = torch.Generator().manual_seed(2)
    parameter, gradient, velocity = (
        torch.randn(shape, generator=generator, dtype=C128) for _ in range(3)
    )

    def update(p, g, slots, hyperparameters, step):
        assert not any(t.is_complex() for t in (p, g, slots["velocity"])) and step == 4
        # Not linear, so that parts and absolute values differ.
        moved = p - hyperparameters["lr"] * g.sign() * hyperparameters["scale"]
        return moved, {"velocity": slots["velocity"].square() + g}

    values = {"lr": rates, "scale": 2.0, "maximize": True}
    moved, slots = update_parameter(
        update, "p", parameter, gradient, {"velocity": velocity}, values, 4
    )
    signs = torch.complex(gradient.real.sign(), gradient.imag.sign())
    torch.testing.assert_close(moved, parameter + 2.0 * rates * signs)
    squares = torch.complex(velocity.real.square(), velocity.imag.square())
    torch.testing.assert_close(slots["velocity"], squares - gradient)


@pytest.mark.parametrize("state_type", [torch.float16, torch.float32, F64])
def test_types_stay_whatever_a_step_makes_of_them(state_type):
    parameter, velocity = torch.ones(2), torch.zeros(2, dtype=state_type)

    def update(p, g, slots, hyperparameters, step):
        return (p - g).double(), {"velocity": (p + g).double()}

    moved, slots = update_parameter(
        update, "p", parameter, 0.5 * parameter, {"velocity": velocity}, {}, 0
    )
    assert (moved.dtype, slots["velocity"].dtype) == (torch.float32, state_type)
    assert moved.tolist() == [0.5, 0.5] and slots["velocity"].tolist() == [1.5, 1.5]
