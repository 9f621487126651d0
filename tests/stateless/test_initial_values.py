"""What may be given as the initial state that λ sets."""

import functools

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, ShapeError, UnknownNameError
from metatoolkit.metaparameters import Initialization
from metatoolkit.stateless.initial_values import check_takes_meta


def problem_of(initial):
    model = nn.Linear(2, 1)
    meta = Initialization(model)

    def loss(model, meta, batch):
        return model(torch.ones(1, 2)).square().mean()

    return mt.BilevelProblem(model, meta, loss, loss, initial=initial(meta))


class Start:
    """Somebody's own object that knows how to begin."""

    def values(self, meta):
        return dict(meta.named_parameters())

    def __call__(self, meta):
        return self.values(meta)


@pytest.mark.parametrize(
    "initial",
    [
        lambda meta: Initialization.values,
        lambda meta: lambda module: module.values(),
        lambda meta: lambda module: module.named_parameters(),
        lambda meta: Start().values,
        lambda meta: Start(),
        lambda meta: functools.partial(lambda scale, module: module.values(), 2.0),
    ],
)
def test_functions_of_meta_are_taken(initial):
    problem = problem_of(initial)
    given = problem.initial_parameters(problem.meta_leaves())
    assert set(given) == {"weight", "bias"}
    assert all(tensor.requires_grad for tensor in given.values())


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (
            lambda meta: meta.values,
            r"bound already, to an instance of Initialization; .*Initialization\.values,",
        ),
        (lambda meta: Initialization(nn.Linear(2, 1)).values, r"instance of Initialization"),
        (lambda meta: lambda: meta.values(), r"give it the one argument meta"),
        (lambda meta: lambda meta, step: meta.values(), r"missing .*'step'.*one argument meta"),
        (lambda meta: meta, r"initial is a module, Initialization.*initial=Initialization\.values"),
        (lambda meta: nn.Module(), r"initial is a module, Module.*a function of it"),
        (lambda meta: meta.values(), r"initial is a dict; accepted: None, or a function \(meta\)"),
        (lambda meta: 3, r"initial is a int; accepted"),
    ],
)
def test_what_cannot_be_called_with_meta_is_refused_at_once(initial, message):
    with pytest.raises(ConfigurationError, match=message):
        problem_of(initial)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, ConfigurationError, r"returned a NoneType; a mapping"),
        (torch.ones(0), ConfigurationError, r"returned a Tensor; a mapping"),
        (torch.ones(2), ConfigurationError, r"returned a Tensor; a mapping"),
        ([1, 2], ConfigurationError, r"returned a list; a mapping .*named_parameters"),
        ({"weight": 1.0}, ConfigurationError, r"'weight' a float; a tensor is needed"),
        ({"wieght": torch.ones(1, 2)}, UnknownNameError, r"'wieght'.*Did you mean 'weight'"),
        ({"weight": torch.ones(2)}, ShapeError, r"'weight' the shape \(2,\).*has \(1, 2\)"),
    ],
)
def test_what_it_returns_is_checked(returned, error, message):
    problem = problem_of(lambda meta: lambda module: returned)
    with pytest.raises(error, match=message):
        problem.initial_parameters(problem.meta_leaves())


def test_values_take_the_types_of_the_parameters():
    problem = problem_of(lambda meta: lambda m: {"weight": m.weight.double()})
    given = problem.initial_parameters(problem.meta_leaves())
    assert given["weight"].dtype == torch.float32 and set(given) == {"weight"}


def test_functions_without_a_signature_and_modules_that_are_called_are_taken():
    class Called(nn.Module):
        def forward(self, meta):
            return meta.values()

    check_takes_meta(dict)
    check_takes_meta(Called())
    problem = problem_of(lambda meta: Called())
    assert set(problem.initial_parameters(problem.meta_leaves())) == {"weight", "bias"}
