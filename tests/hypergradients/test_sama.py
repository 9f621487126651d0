"""SAMA against its formula with the optimizers of torch; what it shares is tested with DARTS."""

import dataclasses

import pytest
import torch

import metatoolkit as mt
from metatoolkit.hypergradients import SAMA
from metatoolkit.testing import bank

F64 = torch.float64
PAIRS = {
    "SGD": (
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda: mt.inner.SGD(lr=0.1),
    ),
    "momentum": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda: mt.inner.SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
    ),
    "Adam": (
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda: mt.inner.Adam(lr=0.01),
    ),
    "AdamW": (
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda: mt.inner.AdamW(lr=0.01, weight_decay=0.1),
    ),
    "RMSprop": (
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
        lambda: mt.inner.RMSprop(lr=0.01, momentum=0.5),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_formula_with_the_optimizer_of_torch(name):
    make_optimizer, make_inner = PAIRS[name]
    case = bank.ridge()
    case = dataclasses.replace(case, inner=make_inner())
    meta = case.problem.meta
    state = case.state
    gradients = []
    for _ in range(3):
        gradients.append(train_gradient(case, state.parameters["value"]).detach())
        state, _ = case.inner.step(
            case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
        )
    theta = state.parameters["value"].detach().requires_grad_()
    present = train_gradient(case, theta)

    def after(shift):
        """The parameters that torch's optimizer reaches when the last gradient is shifted."""
        parameter = torch.nn.Parameter(case.state.parameters["value"].clone())
        optimizer = make_optimizer([parameter])
        for gradient in [*gradients, present.detach() + shift]:
            parameter.grad = gradient.clone()
            optimizer.step()
        return parameter.detach()

    # The update is elementwise, so that one shift of all entries gives the diagonal.
    diagonal = (after(1e-6) - after(-1e-6)) / 2e-6
    inputs, targets = case.valid_batch
    outer = 2 * inputs.T @ (inputs @ theta.detach() - targets) / len(inputs)
    (expected,) = torch.autograd.grad(present, meta.value, diagonal * outer)
    gradient = case.call(SAMA(), state).gradient["value"]
    assert float((gradient - expected).norm() / expected.norm()) < 1e-6


def train_gradient(case, theta):
    """The gradient of the ridge loss, in closed form."""
    inputs, targets = case.train_batches[0]
    penalty = case.problem.meta.value.exp()
    return 2 * inputs.T @ (inputs @ theta - targets) / len(inputs) + 2 * penalty * theta
