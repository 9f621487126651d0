"""A training of a hundred steps, whose schedules all exact estimators differentiate alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.hypergradients import ForwardMode, Reversible, Unrolled
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out
from metatoolkit.inner import SGD, ReversibleMomentum
from metatoolkit.metaparameters import Schedule
from metatoolkit.testing import bank

STEPS = 100
ESTIMATORS = {
    "forward": ForwardMode(STEPS),
    "reverse": Unrolled(STEPS),
    "replay tree": Unrolled(STEPS, checkpoint="tree"),
    "reversible": Reversible(STEPS),
}


def of(name):
    return lambda meta, step: meta[name].at(step)


def digits(learner, steps, dtype=torch.float64, hidden=(16,)):
    """A perceptron on handwritten digits with schedules of a learner's hyper-parameters."""
    data = mt.tasks.load_dataset("digits")
    first = {"lr": (0.1, 4), "momentum": (0.6, 2), "weight_decay": (1e-3, 2)}
    if learner is ReversibleMomentum:
        del first["weight_decay"]
    meta = nn.ModuleDict({n: Schedule(value, steps, n_) for n, (value, n_) in first.items()})
    torch.manual_seed(0)
    model = mt.networks.MLP(64, hidden, 10, activation="tanh").to(dtype)
    loss = mt.losses.cross_entropy
    problem = mt.BilevelProblem(model, meta.to(dtype), loss, loss)
    batches = mt.tasks.Batches(data.train_images.to(dtype), data.train_labels, batch_size=64)
    train = [next(batches) for _ in range(steps)]
    valid = (data.test_images.to(dtype), data.test_labels)
    inner = learner(**{name: of(name) for name in first})
    return bank.ProblemInstance(problem, inner, train, valid)


def flat(gradients):
    return torch.cat([gradient.reshape(-1) for gradient in gradients.values()])


def error(one, other):
    return float((one - other).norm() / other.norm())


def differences(case, radius):
    """Central differences of the outer loss in all of λ."""
    problem, state = case.problem, case.state
    start = {n: tensor.detach().clone() for n, tensor in problem.meta_parameters().items()}
    found = []
    for name, tensor in start.items():
        for entry in range(len(tensor)):
            sides = []
            for sign in (1, -1):
                meta = start | {name: tensor.clone()}
                meta[name][entry] += sign * radius
                final = roll_out(problem, case.inner, state, meta, case.train_batches)
                sides.append(outer_loss(problem, final, meta, case.valid_batch))
            found.append((sides[0] - sides[1]) / (2 * radius))
    return torch.stack(found)


@pytest.mark.slow
def test_forward_reverse_replayed_and_reversible_are_one():
    case = digits(ReversibleMomentum, STEPS)
    found = {name: case.call(estimator) for name, estimator in ESTIMATORS.items()}
    wanted = flat(found["reverse"].gradient)
    assert bool((wanted != 0).all()) and len(wanted) == 6
    for name, result in found.items():
        assert error(flat(result.gradient), wanted) < 1e-8, name
        torch.testing.assert_close(result.valid_loss, found["reverse"].valid_loss)
    assert error(wanted, differences(case, 1e-5)) < 1e-5


def test_differences_tend_to_the_hypergradient_of_sgd_with_the_square_of_the_radius():
    case = digits(SGD, 60)
    wanted = flat(case.call(ForwardMode(60)).gradient)
    assert error(flat(case.call(Unrolled(60)).gradient), wanted) < 1e-10
    coarse, fine = (error(differences(case, radius), wanted) for radius in (1e-3, 1e-4))
    assert fine < 1e-6
    assert 50 < coarse / fine < 200


@pytest.mark.slow
def test_ten_thousand_steps_hold_what_a_hundred_do():
    def peak(steps):
        case = digits(SGD, steps, torch.float32)
        return peak_memory(lambda: case.call(ForwardMode(steps)))

    assert peak(10_000) <= 1.05 * peak(100)
