"""Schedules: values by hand, hypergradients by three ways, and what is refused."""

import math

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import EvolutionStrategies, ForwardMode, Unrolled
from metatoolkit.metaparameters import Schedule

F64 = torch.float64
HORIZON = 11


def values(*arguments, **options):
    return Schedule(*arguments, **options).double().values()


def test_steps_of_a_share_have_its_value():
    # ⌊3 t / 7⌋ = 0 0 0 1 1 2 2.
    expected = [1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert values([1.0, 2.0, 3.0], 7, 3).tolist() == expected
    assert values(0.5, 3).tolist() == [0.5] * 3
    assert values([4.0, 5.0], 2, 2).tolist() == [4.0, 5.0]


@pytest.mark.parametrize(("horizon", "shares"), [(7, 3), (10, 10), (100, 7), (9250, 5)])
def test_shares_are_contiguous_and_of_even_length(horizon, shares):
    found = values([float(share) for share in range(shares)], horizon, shares)
    lengths = torch.bincount(found.long()).tolist()
    assert len(lengths) == shares and max(lengths) - min(lengths) <= 1
    assert bool((found.diff() >= 0).all())


def test_knots_are_interpolated():
    straight = values([1.0, 3.0, 0.0], 6, 3, "linear")
    torch.testing.assert_close(straight, torch.tensor([1, 1.8, 2.6, 2.4, 1.2, 0]).double())
    wave = values([1.0, 3.0], 5, 2, "cosine")
    expected = [2.0 - math.cos(math.pi * step / 4) for step in range(5)]
    torch.testing.assert_close(wave, torch.tensor(expected, dtype=F64))
    # On the log scale a straight line is a geometric series; raw is the logarithm.
    assert values([0.1, 0.001], 3, 2, "linear", "log").tolist() == pytest.approx(
        [0.1, 0.01, 0.001], rel=1e-6
    )


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("interpolation", ["constant", "linear", "cosine"])
def test_bounds_hold_wherever_an_optimizer_goes(scale, interpolation):
    schedule = Schedule([0.1, 0.3], 4, 2, interpolation, scale, bounds=(0.01, 0.5)).double()
    assert schedule.values()[[0, -1]].tolist() == pytest.approx([0.1, 0.3], rel=1e-6)
    with torch.no_grad():
        schedule.raw.copy_(torch.tensor([-1e3, 1e3]))
    found = schedule.values()
    assert found[0].item() == pytest.approx(0.01) and found[-1].item() == pytest.approx(0.5)
    assert 0.01 * (1 - 1e-12) <= float(found.min()) and float(found.max()) <= 0.5 * (1 + 1e-12)


def small_net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batches = [(torch.randn(8, 3, dtype=F64), torch.randn(8, 2, dtype=F64)) for _ in range(12)]
    return model, batches[:HORIZON], batches[-1]


def loss(model, meta, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def scheduled(shares=4, **options):
    """A schedule of each hyper-parameter of SGD, and one of its own for biases."""
    model, batches, valid = small_net()
    meta = nn.ModuleDict(
        {
            "lr": Schedule(0.1, HORIZON, shares, **options),
            "momentum": Schedule(0.8, HORIZON, 2, **options),
            "weight_decay": Schedule(0.05, HORIZON, 3, **options),
            "bias_lr": Schedule(0.2, HORIZON, 2, **options),
        }
    ).double()
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.add_(torch.linspace(-0.02, 0.03, len(parameter)))

    def of(name):
        return lambda meta, step: meta[name].at(step)

    names = ("lr", "momentum", "weight_decay")
    groups = [{"params": ["*.bias"], "lr": of("bias_lr")}]
    inner = mt.inner.SGD(**{name: of(name) for name in names}, groups=groups)
    problem = mt.BilevelProblem(model, meta, loss, loss)
    return problem, inner, inner.init(problem), batches, valid


def flat(result):
    return torch.cat(list(result.gradient.values()))


def error(one, other):
    return float((one - other).norm() / other.norm())


def differences(problem, inner, state, batches, valid, radius=1e-5):
    """Central differences of the outer loss in each entry of λ, the steps taken anew."""
    meta = problem.meta_parameters()
    start = {name: tensor.detach().clone() for name, tensor in meta.items()}
    found = []
    for name, tensor in start.items():
        for entry in range(len(tensor)):
            sides = []
            for sign in (1, -1):
                moved = start | {name: tensor.clone()}
                moved[name][entry] += sign * radius
                after = state
                for batch in batches:
                    after, _ = inner.step(problem, after, moved, batch)
                with torch.no_grad():
                    outer = torch.func.functional_call(problem.model, after.parameters, valid[0])
                    sides.append(float((outer - valid[1]).square().mean()))
            found.append((sides[0] - sides[1]) / (2 * radius))
    return torch.tensor(found, dtype=F64)


@pytest.mark.parametrize("interpolation", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("how", [{}, {"scale": "log"}, {"scale": "log", "bounds": (1e-3, 1.0)}])
def test_hypergradients_agree(interpolation, how):
    problem, inner, state, batches, valid = scheduled(interpolation=interpolation, **how)
    reverse, forward = (
        flat(estimator(problem, inner, state, batches, valid))
        for estimator in (Unrolled(HORIZON), ForwardMode(HORIZON))
    )
    assert len(forward) == 11 and bool((forward != 0).all())
    assert error(forward, reverse) < 1e-8
    assert error(forward, differences(problem, inner, state, batches, valid)) < 1e-7


def test_evolution_strategies_see_schedules():
    problem, inner, state, batches, valid = scheduled()
    exact = flat(Unrolled(HORIZON)(problem, inner, state, batches, valid))
    estimator = EvolutionStrategies(HORIZON, pairs=60, sigma=1e-3)
    found = flat(estimator(problem, inner, state, batches, valid))
    assert float(torch.cosine_similarity(found, exact, dim=0)) > 0.9


def test_the_derivative_of_a_share_is_the_sum_of_those_of_its_steps():
    def found(shares):
        problem, inner, state, batches, valid = scheduled(shares)
        with torch.no_grad():
            problem.meta["lr"].raw.fill_(0.1)
        return Unrolled(HORIZON)(problem, inner, state, batches, valid).gradient["lr.raw"]

    shared, each = found(4), found(HORIZON)
    share_of = [4 * step // HORIZON for step in range(HORIZON)]
    summed = torch.zeros(4, dtype=F64).index_add(0, torch.tensor(share_of), each)
    assert error(summed, shared) < 1e-10


def test_steps_are_those_of_torch_with_its_settings_changed():
    problem, inner, state, batches, _ = scheduled(interpolation="linear")
    meta, model = problem.meta, problem.model
    for batch in batches:
        state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
    named = dict(model.named_parameters())
    biases = [named[name] for name in named if name.endswith("bias")]
    weights = [named[name] for name in named if name.endswith("weight")]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": biases}], lr=1.0)
    of_weights, of_biases = optimizer.param_groups
    settings = {name: schedule.values().tolist() for name, schedule in meta.items()}
    for step, batch in enumerate(batches):
        for group, rate in ((of_weights, "lr"), (of_biases, "bias_lr")):
            group["lr"] = settings[rate][step]
            group["momentum"] = settings["momentum"][step]
            group["weight_decay"] = settings["weight_decay"][step]
        optimizer.zero_grad()
        loss(model, meta, batch).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(state.parameters[name], parameter.data, rtol=1e-12, atol=1e-14)


def test_alone_it_is_the_whole_of_meta():
    model, batches, valid = small_net()
    problem = mt.BilevelProblem(model, Schedule(0.1, HORIZON, 3).double(), loss, loss)
    inner = mt.inner.Adam(lr=Schedule.at)
    check = mt.check_hypergradient(problem, inner, ForwardMode(HORIZON), batches, valid)
    assert check.relative_error < 1e-5 and check.reference.numel() == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon is 0; at least 1"),
        ({"shares": 0}, "shares is 0 .* from 1 to horizon=5"),
        ({"shares": 6}, "shares is 6 .* from 1 to horizon=5"),
        ({"interpolation": "linear"}, "shares is 1 with interpolation='linear'; a number from 2"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; accepted: 'constant', 'linear'"),
        ({"scale": "square"}, "scale is 'square'; accepted: 'linear', 'log'"),
        ({"value": [0.1, 0.2], "shares": 3}, "value has 2 numbers; one is needed, or shares=3"),
        ({"value": math.nan}, "value is nan"),
        ({"value": 0.0, "scale": "log"}, "value is 0.0 with scale='log'; .* above 0"),
        ({"bounds": (1.0, 0.0)}, r"bounds is \(1.0, 0.0\); .* the lower one first"),
        ({"bounds": (0.5, 0.5)}, "the lower one first"),
        ({"bounds": (0.0, math.inf)}, "two finite numbers"),
        ({"bounds": (0.0, 1.0, 2.0)}, "two finite numbers"),
        ({"bounds": (0.0, 1.0), "scale": "log"}, "bounds above 0 are needed"),
        ({"bounds": (0.1, 1.0)}, "value is 0.1; a number between the bounds"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Schedule(**{"value": 0.1, "horizon": 5} | options)


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_beyond_the_horizon_is_an_error(step):
    with pytest.raises(ConfigurationError, match=f"inner step {step + 1} .* horizon=5 steps"):
        Schedule(0.1, 5).at(step)


@pytest.mark.parametrize(("drift", "expected"), [(0.0, 0.0015625), (0.08, 0.85436)])
def test_what_sharing_does_to_the_error_of_noisy_derivatives(drift, expected):
    # Derivatives of single steps are N(μ_t, σ²), and μ_t drifts: theorem 4.1 of the paper has
    # σ² / W + ε² (W² − 1) / 12 for the means over shares of W steps, and σ² without sharing.
    horizon, width, deviation = 400, 40, 0.25
    means = drift * torch.arange(horizon, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(10_000, horizon, generator=generator, dtype=torch.float64)
    single = means + deviation * noise

    def error(shares):
        schedule = Schedule(0.1, horizon, shares).double()
        rows = [torch.autograd.grad(schedule.at(n), schedule.raw)[0] for n in range(horizon)]
        shared = torch.stack(rows)
        # The derivative of a share is the sum over its steps.
        found = single @ shared / shared.sum(0)
        return float((found @ shared.T - means).square().mean())

    formula = deviation**2 / width + drift**2 * (width**2 - 1) / 12
    assert formula == pytest.approx(expected, rel=1e-4)
    assert error(horizon // width) == pytest.approx(expected, rel=0.02)
    assert error(horizon) == pytest.approx(deviation**2, rel=0.02)
