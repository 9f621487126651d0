"""Two heads of which each batch reaches one, beside torch.optim in a loop of its own."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.inner import ASGD, SGD, Adadelta, Adam, Adamax, AdamW, NAdam, RMSprop, Rprop
from tests.inner import reference

F64 = torch.float64


class Heads(nn.Module):
    """A trunk, two heads with a 0-d parameter each, and one that no batch reaches."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Parameter(torch.tensor([[0.5, -0.3], [0.2, 0.8]], dtype=F64))
        for name, values in (("a", [0.7, -0.4]), ("b", [-0.2, 0.6])):
            self.register_parameter(name, nn.Parameter(torch.tensor(values, dtype=F64)))
            self.register_parameter(f"bias_{name}", nn.Parameter(torch.tensor(0.1, dtype=F64)))
        self.never = nn.Parameter(torch.tensor([0.9, -0.9], dtype=F64))
        # The loss reaches it, and its gradient is zero: it decays.
        self.still = nn.Parameter(torch.tensor([0.5, 0.4], dtype=F64))

    def forward(self, inputs, head):
        hidden = torch.tanh(inputs @ self.trunk)
        unseen = self.never.detach().sum() + 0.0 * self.still.sum()
        return hidden @ getattr(self, head) + getattr(self, f"bias_{head}") + unseen


class Weights(nn.Module):
    """λ: one weight for each of two examples."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.5], dtype=F64))


def train_loss(model, meta, batch):
    head, inputs, targets = batch
    return (torch.sigmoid(meta.logits) * (model(inputs, head) - targets).square()).sum()


def valid_loss(model, meta, batch):
    inputs, targets = batch
    every = model(inputs, "a") + 0.5 * model(inputs, "b") + model.never.sum() * model.still.sum()
    return (every - targets).square().mean()


def make_problem(initial=None, meta=None):
    return mt.BilevelProblem(Heads(), meta or Weights(), train_loss, valid_loss, initial=initial)


def make_batches(heads):
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    return [(head, draw(2, 2), draw(2)) for head in heads], (draw(3, 2), draw(3))


def run_torch(optimizer, options, batches, logits=None):
    """Return the model after the steps of a torch optimizer, under the λ given."""
    model, meta = Heads(), Weights()
    if logits is not None:
        with torch.no_grad():
            meta.logits.copy_(logits)
    stepper = optimizer(model.parameters(), **options)
    for batch in batches:
        stepper.zero_grad()
        train_loss(model, meta, batch).backward()
        with reference.float64_by_default():
            stepper.step()
    return model


def differences(function, shift=1e-6):
    """Return the central differences of a function of λ's logits."""
    at = Weights().logits.detach()
    rows = torch.eye(2, dtype=F64) * shift
    return torch.stack([(function(at + row) - function(at - row)) / (2 * shift) for row in rows])


class Two(nn.Module):
    """Two parameters, of which a batch reaches the one that it names."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.tensor(1.0, dtype=F64))
        self.two = nn.Parameter(torch.tensor(1.0, dtype=F64))


SETTINGS = {
    "SGD": (SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "momentum": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "dampening": (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    "nesterov": (
        SGD,
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "Adam": (Adam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
    "AdamW": (AdamW, torch.optim.AdamW, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1}),
    "RMSprop": (RMSprop, torch.optim.RMSprop, {"lr": 0.02, "weight_decay": 0.1}),
    "centered": (
        RMSprop,
        torch.optim.RMSprop,
        {"lr": 0.02, "centered": True, "momentum": 0.7, "alpha": 0.9},
    ),
    "NAdam": (NAdam, torch.optim.NAdam, {"lr": 0.05, "momentum_decay": 0.3, "weight_decay": 0.1}),
    "Adamax": (Adamax, torch.optim.Adamax, {"lr": 0.05, "weight_decay": 0.1}),
    "Adadelta": (Adadelta, torch.optim.Adadelta, {"lr": 0.5, "eps": 1e-3, "weight_decay": 0.1}),
    "ASGD": (ASGD, torch.optim.ASGD, {"lr": 0.05, "lambd": 0.3, "weight_decay": 0.1}),
    "Rprop": (Rprop, torch.optim.Rprop, {"lr": 0.05}),
}


def settings(*names):
    chosen = names or tuple(SETTINGS)
    return pytest.mark.parametrize(
        ("ours", "theirs", "options"), [SETTINGS[n] for n in chosen], ids=chosen
    )


def run(inner, problem, state, batches):
    meta = problem.meta_parameters()
    for batch in batches:
        state, _ = inner.step(problem, state, meta, batch)
    return state


def assert_equal(state, model):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            state.parameters[name], parameter.detach(), rtol=1e-12, atol=1e-14
        )
