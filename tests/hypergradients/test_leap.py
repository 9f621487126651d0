"""Leap against the pull-forward objective of the paper, written out with autograd."""

import itertools

import pytest
import torch
from torch.func import functional_call, grad

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import Leap, Reptile
from metatoolkit.hypergradients.replay_check import unchecked
from metatoolkit.inner import SGD
from metatoolkit.testing import bank
from tests.training.across_tasks import largest_difference, listed, regression, sinusoids

STEPS = 4
CALM, WILD = 0.03, 0.4
"""Learning rates at which each step descends, and at which some step ascends."""


def dense(problem, task, lr, norm, loss, stabilizer):
    """The objective Σ ‖γ̄_{i+1} − γ_i‖^p, and its gradient in a move common to all θ_i."""
    (inputs, targets), _ = task
    names = problem.parameter_names
    shapes = {name: tensor.shape for name, tensor in problem.parameters().items()}

    def value(vector):
        parts = vector.split([shapes[name].numel() for name in names])
        values = {n: part.view(shapes[n]) for n, part in zip(names, parts, strict=True)}
        return (functional_call(problem.model, values, (inputs,)) - targets).square().mean()

    start = torch.cat([problem.parameters()[name].reshape(-1) for name in names])
    points = [start]
    for _ in range(STEPS):
        points.append(points[-1] - lr * grad(value)(points[-1]))
    rises = [bool(value(b) > value(a)) for a, b in itertools.pairwise(points)]

    def objective(move):
        total = torch.zeros(())
        for here, ahead in itertools.pairwise(points):
            square = (ahead - here - move).square().sum()
            fall = value(ahead) - value(here + move)
            if loss:
                square = square + fall.square()
            total = total + (square.sqrt() if norm else square)
            # The paper's regularizer, for the energy.
            if loss and stabilizer and fall > 0:
                total = total - 2 * fall.square()
        return total

    gradient = grad(objective)(torch.zeros_like(start))
    parts = gradient.split([shapes[name].numel() for name in names])
    named = {n: part.view(shapes[n]) for n, part in zip(names, parts, strict=True)}
    return float(objective(torch.zeros_like(start))), named, rises


@pytest.mark.parametrize(
    ("lr", "norm", "loss", "stabilizer"),
    [
        (CALM, True, True, True),
        (CALM, True, False, True),
        (CALM, False, False, False),
        (WILD, True, True, False),
        (WILD, False, True, False),
        (WILD, False, True, True),
    ],
)
def test_the_gradient_is_that_of_the_pull_forward_objective(lr, norm, loss, stabilizer):
    problem, tasks = regression(), listed(sinusoids())
    estimator, inner = Leap(STEPS, norm, loss, stabilizer), SGD(lr=lr)
    found = mt.over_tasks(problem, inner, estimator, sinusoids(), "loop").gradient
    each = [dense(problem, task, lr, norm, loss, stabilizer) for task in tasks]
    assert any(any(rises) for *_, rises in each) == (lr == WILD)
    mean = {name: torch.stack([g[name] for _, g, _ in each]).mean(0) for name in found}
    scale = max(float(part.abs().max()) for part in mean.values())
    assert scale > 1e-3
    assert largest_difference(found, mean) < 1e-12 * max(scale, 1.0)
    support, query = tasks[0]
    result = estimator(problem, inner, inner.init(problem), [support] * STEPS, query)
    if not stabilizer or lr == CALM:
        assert float(result.details["length"]) == pytest.approx(each[0][0], rel=1e-12)


def test_a_length_with_stabilizer_turns_the_rise_of_the_loss_around():
    problem, (support, query) = regression(), listed(sinusoids())[0]
    inner = SGD(lr=3.0)
    found, turned, way = (
        estimator(problem, inner, inner.init(problem), [support], query)
        for estimator in (Leap(1, stabilizer=False), Leap(1), Reptile(1))
    )
    found, turned, length = found.gradient, turned.gradient, turned.details["length"]
    # Half of their sum is the way in θ alone, over the length.
    half = {name: (found[name] + turned[name]) / 2 for name in found}
    assert largest_difference(half, {n: w / length for n, w in way.gradient.items()}) < 1e-12
    assert largest_difference(found, turned) > 1e-3


def test_the_energy_without_loss_is_twice_reptiles():
    case = bank.initialized()
    energy = case.call(Leap(3, norm=False, loss=False)).gradient
    way = {name: 2 * part for name, part in case.call(Reptile(3)).gradient.items()}
    assert largest_difference(energy, way) < 1e-14


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("lr", [CALM, WILD])
def test_finite_differences_of_the_objective_agree(norm, lr):
    problem, (support, query) = regression(), listed(sinusoids())[0]
    arguments = (Leap(2, norm), [support] * 2, query)
    check = mt.check_hypergradient(problem, SGD(lr=lr, momentum=0.5), *arguments, coordinates=4)
    assert check.verdict == "agrees"


def test_where_nothing_moves_there_is_no_pull():
    problem, (support, query) = regression(), listed(sinusoids())[0]
    inner = SGD(lr=0.0)
    result = Leap(2)(problem, inner, inner.init(problem), [support] * 2, query)
    assert all(bool((part == 0).all()) for part in result.gradient.values())
    assert float(result.details["length"]) == 0


@pytest.mark.parametrize(("loss", "passes"), [(True, 4 * 3 + 1), (False, 3 * 3 + 1)])
def test_passes(loss, passes):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(12)))
    meta = mt.metaparameters.Initialization(model)
    square = lambda model, meta, batch: model(batch).square().mean()  # noqa: E731
    problem = mt.BilevelProblem(model, meta, square, square, initial=type(meta).values)
    inner, batch = SGD(lr=0.1), torch.randn(16, 64)
    forward = count_flops(lambda: model(batch))
    with unchecked():
        call = lambda: Leap(3, loss=loss)(problem, inner, inner.init(problem), [batch] * 3, batch)  # noqa: E731
        assert count_flops(call) / forward == pytest.approx(passes, rel=0.03)
    assert (call().cost.forward, call().cost.backward) == (7 if loss else 4, 3)


def test_what_is_refused():
    with pytest.raises(UnsupportedError, match="Leap moves an initial state that λ sets"):
        bank.ridge().call(Leap(2))
    with pytest.raises(UnsupportedError, match="act where Leap does not differentiate"):
        bank.adapted().call(Leap(2))
    with pytest.raises(UnsupportedError, match="Leap does not say"):
        mt.over_tasks(regression(), SGD(lr=CALM), Leap(2), sinusoids(), "vmap")
    with pytest.raises(ConfigurationError, match="at least 1 inner step"):
        Leap(0)

    class Own(SGD):
        def step(self, *args, **kwargs):
            return super().step(*args, **kwargs)

    case = bank.initialized()
    case.inner = Own(lr=0.1)
    with pytest.raises(UnsupportedError, match="that of Own is another map; use Reptile"):
        case.call(Leap(2))
