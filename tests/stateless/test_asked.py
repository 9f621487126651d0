"""Losses that choose parameters by what else than values tensors tell."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.stateless.asked import Asked
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS

FILTERS = {
    "those that learn": lambda tensor: tensor.requires_grad,
    "those that are parameters": lambda tensor: isinstance(tensor, nn.Parameter),
}


def penalized(chosen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    model[0].bias.requires_grad_(False)
    batches = [(torch.randn(6, 3).double(), torch.randn(6, 1).double()) for _ in range(3)]

    def train_loss(model, meta, batch):
        size = sum((p**2).sum() for p in model.parameters() if chosen(p))
        scale = sum((p.exp()).sum() for p in meta.parameters() if chosen(p))
        return F.mse_loss(model(batch[0] * meta.value[0]), batch[1]) + scale * size

    def valid_loss(model, meta, batch):
        return F.mse_loss(model(batch[0]), batch[1])

    problem = mt.BilevelProblem(model, bank.Value([0.7, -1.5]), train_loss, valid_loss)
    return bank.ProblemInstance(problem, mt.inner.SGD(lr=0.05), batches[:2], batches[2])


@pytest.mark.parametrize("question", FILTERS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_penalty_on_chosen_parameters_is_seen_in_every_pass(name, question):
    # The frozen bias, of four entries, is a parameter, too.
    every = question == "those that are parameters"
    plain = penalized(lambda tensor: every or tensor.shape != (4,))
    asking = penalized(FILTERS[question])
    try:
        right = plain.call(ESTIMATORS[name]())
    except (UnsupportedError, mt.errors.UnusedMetaParameterError) as error:
        with pytest.raises(type(error)):
            asking.call(ESTIMATORS[name]())
        return
    found = asking.call(ESTIMATORS[name]())
    assert name == "SOBA" or bool(right.gradient["value"].all())
    torch.testing.assert_close(found.gradient, right.gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.valid_loss, right.valid_loss)


def test_base_steps_are_those_of_torch_optim():
    case = penalized(FILTERS["those that learn"])
    model, meta = case.problem.model, case.problem.meta
    state, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    case.problem.train_loss(model, meta, case.train_batches[0]).backward()
    optimizer.step()
    torch.testing.assert_close(state.parameters, case.problem.parameters())


def test_what_is_asked_is_noted_and_who_asks():
    given, other = torch.ones(2), torch.ones(2, requires_grad=True)

    def asked(function):
        with Asked({"given": given}) as seen:
            function()
        return seen.requires_grad, seen.nodes

    assert asked(lambda: given.requires_grad) == (True, False)
    assert asked(lambda: other.requires_grad) == (False, False)
    assert asked(lambda: (other * 2).grad_fn) == (False, True)
    layer = nn.TransformerEncoderLayer(2, 1, 2, dropout=0.0).eval()
    assert asked(lambda: layer(given.view(1, 1, 2))) == (False, False)


def test_code_of_torch_registers_nothing_that_is_exchanged():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            self.last = self.weight
            return (self.last * x).sum()

    problem = mt.BilevelProblem(
        Keeps(),
        bank.Value([1.0, 2.0]),
        lambda model, meta, batch: model(meta.value) ** 2,
        lambda model, meta, batch: model(batch) ** 2,
    )
    inner, x = mt.inner.SGD(lr=0.1), torch.ones(2, dtype=torch.float64)
    estimator = mt.hypergradients.Unrolled(1)
    for _ in range(2):
        estimator(problem, inner, inner.init(problem), [x], x)
    assert list(dict(problem.model.named_parameters())) == ["weight"]
    assert not isinstance(torch.ones(2), nn.Parameter)


def _read_without_a_gradient(weights):
    with torch.no_grad():
        return weights[0].norm()


READS = {
    "detached": lambda weights: weights[0].detach().norm(),
    "data": lambda weights: weights[0].data.norm(),
    "no_grad": _read_without_a_gradient,
    "a number": lambda weights: weights[0].norm().item(),
    "a view": lambda weights: weights[0].view(-1)[0].detach(),
    "as an array": lambda weights: float(weights[0].detach().numpy()[0, 0]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_values_of_parameters_that_were_taken_before_are_refused(read):
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    weights = [model.weight]

    def train_loss(model, meta, batch):
        return (meta.value * model(batch) * read(weights)).square().mean()

    def valid_loss(model, meta, batch):
        return model(batch).square().mean()

    problem = mt.BilevelProblem(model, bank.Value(1.0), train_loss, valid_loss)
    inner, batch = mt.inner.SGD(lr=0.1), torch.ones(3, 2, dtype=torch.float64)
    arguments = (problem, inner, inner.init(problem), [batch], batch)
    with pytest.raises(mt.errors.ConfigurationError, match=r"'model.weight'.*\.detach\(\)\.clone"):
        mt.hypergradients.Unrolled(1)(*arguments)
    weights[0] = model.weight.detach().clone()
    assert bool(mt.hypergradients.Unrolled(1)(*arguments).gradient["value"])
    # Shapes are no values.
    weights[0], shape = model.weight, model.weight.shape
    problem.train_loss = lambda model, meta, batch: (
        meta.value * model(batch) * weights[0].shape[1] * len(shape)
    ).mean()
    assert bool(mt.hypergradients.Unrolled(1)(*arguments).gradient["value"])
