"""Rates of ARUBA: hand-worked tasks, a family with two spreads, resume, and what is refused."""

import math

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.metaparameters import AdaptiveRates
from tests.training.across_tasks import largest_difference, listed, sinusoids, squared_error


class Point(nn.Module):
    def __init__(self, size, dtype=torch.float64):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(size, dtype=dtype))


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def linear(model, meta, batch):
    return (model.place * batch).sum()


def quadratic(model, meta, batch):
    optimum, noise = batch
    return (model.place - optimum).square().sum() / 2 + (model.place * noise).sum()


def trainer_of(algorithm, step, **options):
    optimizer = torch.optim.SGD(algorithm.meta.parameters(), lr=step)
    parts = (algorithm.problem, algorithm.inner, algorithm.estimator, optimizer)
    return mt.MetaTrainer(*parts, tasks="loop", **options)


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("zeta", [1.0, 0.3, 7.0])
def test_the_first_rates_are_the_given_one_exactly(zeta, isotropic):
    for lr in (0.1, 0.03, 1e-3, 1 / 3):
        rates = AdaptiveRates(Point(3), lr, zeta, isotropic=isotropic)
        assert bool((rates.at(step=0)["place"] == lr).all())


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("isotropic", [False, True])
def test_three_tasks_by_hand(isotropic, power):
    lr, zeta, step = 0.2, 0.5, 0.3
    gradients = [[[1.0, -2.0], [0.5, 0.0]], [[0.0, 1.0], [3.0, 1.0]], [[-1.0, 0.2], [0.1, 0.1]]]
    options = {"lr": lr, "steps": 2, "zeta": zeta, "power": power, "isotropic": isotropic}
    algorithm = mt.algorithms.build("aruba", Point(2), linear, linear, **options)
    trainer, rates = trainer_of(algorithm, step), algorithm.meta["rates"]
    eps = lr * zeta
    start, b, g = [0.0, 0.0], [eps**2] * 2, [zeta**2] * 2
    for number, (first, second) in enumerate(gradients, start=1):
        eta = [math.sqrt(x / y) for x, y in zip(b, g, strict=True)]
        if isotropic:
            eta = [math.sqrt(sum(b) / sum(g))] * 2
        ways = [-e * (x + y) for e, x, y in zip(eta, first, second, strict=True)]
        fading = (number + 1) ** -power
        b = [x + way**2 / 2 + eps**2 * fading for x, way in zip(b, ways, strict=True)]
        squares = [x**2 + y**2 for x, y in zip(first, second, strict=True)]
        g = [x + square + zeta**2 * fading for x, square in zip(g, squares, strict=True)]
        start = [x + step * way for x, way in zip(start, ways, strict=True)]
        task = [double(first), double(second)]
        trainer.meta_step([(task, task[0])])
        spread, energy = (next(iter(part.values())) for part in rates.statistics())
        one = (lambda values: [sum(values) / 2]) if isotropic else list
        assert torch.allclose(spread, double(one(b)), rtol=1e-12, atol=0)
        assert torch.allclose(energy, double(one(g)), rtol=1e-12, atol=0)
        eta = [math.sqrt(x / y) for x, y in zip(one(b), one(g), strict=True)]
        found = rates.at(step=0)["place"].reshape(-1)
        assert torch.allclose(found, double(eta), rtol=1e-12, atol=0)
        place = algorithm.meta["initialization"].place.detach()
        assert torch.allclose(place, double(start), rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_rates_tell_coordinates_that_move_from_those_that_do_not(seed):
    # 20 coordinates, of which tasks differ by 1 in ten and by 0.02 in ten; 10 noisy steps each.
    generator, tasks, steps = torch.Generator().manual_seed(seed), 200, 10
    spread = torch.tensor([1.0] * 10 + [0.02] * 10).double()
    optima = torch.randn(tasks, 20, generator=generator).double() * spread
    noise = 0.5 * torch.randn(tasks, steps, 20, generator=generator).double()

    def with_one_rate(rate):
        start, losses = torch.zeros(20).double(), []
        for optimum, each in zip(optima, noise, strict=True):
            place = start
            for one in each:
                place = place - rate * (place - optimum + one)
            losses.append(float((place - optimum).square().sum()) / 2)
            start = start + 0.1 * (place - start)
        return sum(losses[-50:]) / 50

    def distance(model, meta, batch):
        return (model.place - batch).square().sum() / 2

    algorithm = mt.algorithms.build("aruba", Point(20), quadratic, distance, lr=0.1, steps=steps)
    trainer, losses = trainer_of(algorithm, 0.1), []
    for optimum, each in zip(optima, noise, strict=True):
        batch = [([(optimum, one) for one in each], optimum)]
        losses.append(float(trainer.meta_step(batch)["valid_loss"]))
    rates = algorithm.meta["rates"].at(step=0)["place"]
    assert rates[:10].mean() > 2 * rates[10:].mean()
    assert sum(losses[-50:]) / 50 <= min(map(with_one_rate, (0.01, 0.1, 0.3, 1.0)))


def build(refinement=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    options = {"lr": 0.05, "steps": 2, "refinement": refinement}
    return mt.algorithms.build("aruba", model, squared_error, squared_error, **options)


def test_tasks_at_once_see_the_same_rates_and_count_as_many():
    algorithm, batch = build(), sinusoids(3)
    rates, parts = algorithm.meta["rates"], (algorithm.problem, algorithm.inner)
    observed = []
    for task in listed(batch):
        result = mt.over_tasks(*parts, algorithm.estimator, [task], "loop")
        observed.append(result.details["observed"]["rates"])
    trainer_of(algorithm, 0.5).meta_step(batch)
    fading = 1 / 2 + 1 / 3 + 1 / 4
    b, g = rates.statistics()
    for name in b:
        total = {n: sum(one[f"{n}.{name}"] for one in observed) for n in "bg"}
        assert bool((total["g"] > 0).all())
        assert torch.allclose(b[name], total["b"] + 0.05**2 * (1 + fading), rtol=1e-12, atol=0)
        assert torch.allclose(g[name], total["g"] + 1 + fading, rtol=1e-12, atol=0)
    assert int(rates.tasks) == 3


def test_refined_rates_read_the_gradients_of_the_steps_before():
    algorithm, ((inputs, targets), _) = build(refinement=3.0), sinusoids(1)
    trainer_of(algorithm, 0.5).meta_step(sinusoids(4))
    problem, inner = algorithm.problem, algorithm.refined
    b, g = algorithm.meta["rates"].statistics()
    place = {n: p.detach() for n, p in algorithm.meta["initialization"].named_parameters()}
    state, batch = inner.init(problem), (inputs[0], targets[0])
    for _ in range(3):
        leaves = {n: p.requires_grad_() for n, p in place.items()}
        outputs = torch.func.functional_call(problem.model, leaves, (batch[0],))
        loss = (outputs - batch[1]).square().mean()
        slopes = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        place = {n: (p - (b[n] / g[n]).sqrt() * slopes[n]).detach() for n, p in leaves.items()}
        g = {n: value + 3.0 * slopes[n].square() for n, value in g.items()}
        state, _ = inner.step(problem, state, problem.meta_parameters(), batch)
        assert largest_difference(state.parameters, place) < 1e-13


def test_a_resumed_training_is_the_same_bitwise_and_the_best_rates_are_kept(tmp_path):
    batches, path = [sinusoids(2, seed=seed) for seed in range(4)], tmp_path / "c.pt"

    def fit(trainer, steps, **options):
        trainer.fit(batches, steps=steps, progress=False, **options)

    whole, resumed, other = build(), build(), build()
    fit(trainer_of(whole, 0.5), 4)
    fit(trainer_of(build(), 0.5), 2, checkpoint=path)
    fit(trainer_of(resumed, 0.5), 4, checkpoint=path, resume=True)
    expected = whole.meta.state_dict()
    assert int(expected["rates.tasks"]) == 8
    for name, tensor in resumed.meta.state_dict().items():
        assert torch.equal(tensor, expected[name])
    values, rates = iter([3.0, 1.0, 2.0, 2.0]), []

    def evaluate(trainer):
        rates.append(other.meta["rates"].at(step=0)["0.bias"])
        return {"score": next(values)}

    stopping = mt.EarlyStopping("score", patience=9)
    fit(trainer_of(other, 0.5), 4, evaluate=evaluate, evaluate_every=1, early_stopping=stopping)
    assert torch.equal(other.meta["rates"].at(step=0)["0.bias"], rates[1])
    assert not torch.equal(rates[1], rates[3])


def test_what_it_refuses():
    algorithm = build()
    optimizer = torch.optim.SGD(algorithm.meta.parameters(), lr=0.1)
    parts = algorithm.problem, mt.inner.SGD(lr=0.1), algorithm.estimator
    with pytest.raises(UnsupportedError, match=r"use mt\.inner\.ARUBA"):
        mt.over_tasks(*parts, sinusoids(2))
    with pytest.raises(ConfigurationError, match=r"rates\.spread.*pass tasks='auto'"):
        mt.MetaTrainer(*parts, optimizer, reset_every=2)
    with pytest.raises(UnsupportedError, match="isotropic rates cannot be refined"):
        AdaptiveRates(Point(2), 0.1, isotropic=True).refinement(1.0)
    for options in ({"lr": 0.0}, {"lr": 0.1, "zeta": -1.0}, {"lr": 0.1, "power": -1.0}):
        with pytest.raises(ConfigurationError, match="is needed"):
            AdaptiveRates(Point(2), **options)
    with pytest.raises(ConfigurationError, match="refinement is -1"):
        build(refinement=-1.0)


def test_complex_and_narrow_parameters():
    rates = AdaptiveRates(Point(2, torch.bfloat16), 0.1)
    assert rates.at(0)["place"].dtype == torch.bfloat16
    assert rates.spread.place.dtype == torch.float32

    def loss(model, meta, batch):
        return (model.place * batch).real.sum() + meta.weight.sum()

    model, factor = Point(1, torch.complex128), torch.tensor(3.0 + 4.0j, dtype=torch.complex128)
    problem = mt.BilevelProblem(model, nn.Linear(1, 1), loss, loss)
    inner = mt.inner.ARUBA(lr=0.1)
    start = inner.init(problem)
    final, _ = inner.step(problem, start, problem.meta_parameters(), factor)
    observed = AdaptiveRates(model, 0.1).observe(start, final)
    assert float(observed["g.place"]) == pytest.approx(25.0, rel=1e-12)
    assert float(observed["b.place"]) == pytest.approx(0.125, rel=1e-12)
