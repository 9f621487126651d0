"""Float64 for a while: what is computed in it, and that everything is put back."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.hypergradients.double_precision import (
    DoubleArithmetic,
    double_precision,
    to_double,
)
from metatoolkit.testing import bank
from tests.diagnostics.checked import build, images, network

WAYS = {
    "float": lambda x: x.float().sin(),
    "half and back": lambda x: x.half().to(torch.float32),
    "to": lambda x: x.to(torch.bfloat16) * 2,
    "to, by keyword": lambda x: x.to(dtype=torch.float32),
    "type": lambda x: x.type(torch.float32),
    "softmax": lambda x: F.softmax(x, dim=0, dtype=torch.float32),
    "new tensors": lambda x: x @ torch.eye(4, dtype=torch.float32),
    "an argument in float32": lambda x: F.linear(x, torch.ones(3, 4, dtype=torch.float32)),
    "a list of tensors": lambda x: torch.cat([x, torch.ones(2, dtype=torch.float16)]),
    "integers": lambda x: torch.arange(4).float() @ x,
    "in place": lambda x: x.clone().mul_(torch.ones(4, dtype=torch.float32)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_what_asks_for_less_gets_float64(way):
    x = torch.linspace(0.1, 0.7, 4, dtype=torch.float64, requires_grad=True)
    with DoubleArithmetic():
        value = way(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    assert value.dtype == gradient.dtype == torch.float64


def test_what_is_written_in_place_stays_the_same_tensor():
    kept = torch.zeros(3, dtype=torch.float32)
    leaf = torch.ones(3, dtype=torch.float32)
    with DoubleArithmetic():
        kept.add_(torch.full((3,), 0.5, dtype=torch.float64))
        kept[0] = 7.0
        leaf.requires_grad_()
        (leaf.square().sum()).backward()
    assert kept.tolist() == [7.0, 0.5, 0.5] and kept.dtype == torch.float32
    assert leaf.grad.tolist() == [2.0, 2.0, 2.0]


def test_to_double():
    assert to_double(torch.ones(1, dtype=torch.complex64)).dtype == torch.complex128
    assert to_double(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float64
    integers = torch.ones(1, dtype=torch.int32)
    assert to_double(integers) is integers


def test_modules_are_put_back_even_after_an_error():
    model = nn.Sequential(network(), nn.BatchNorm1d(3))
    problem = build(model=model)
    weight = model[0][0].weight
    weight.grad = grad = torch.ones_like(weight)
    place, value = weight.data_ptr(), weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), double_precision(problem):
        assert model[0][0].weight is weight and weight.dtype == torch.float64
        assert model[1].running_mean.dtype == torch.float64
        assert model[1].num_batches_tracked.dtype == torch.int64
        assert model(images()[0]).dtype == torch.float64
        assert torch.ones(1).dtype == torch.float64
        raise KeyboardInterrupt
    assert weight.data_ptr() == place and torch.equal(weight, value) and weight.grad is grad
    assert model[1].running_mean.dtype == torch.float32
    assert torch.ones(1).dtype == torch.float32


def test_what_a_tensor_is_told_of_stays_as_it_is():
    x = torch.ones(2, dtype=torch.float32, requires_grad=True)
    gradient = torch.full((2,), 2.0, dtype=torch.float32)
    with DoubleArithmetic():
        assert x.dtype == x.data.dtype == torch.float32
        x.grad = gradient
        assert x.grad.dtype == torch.float32
    assert x.grad.tolist() == [2.0, 2.0]


def test_lists_of_tensors_and_others():
    def function(values, *, others):
        kinds = (torch.float64, 1.5, None)
        assert (values[0].dtype, *values[1:]) == kinds and type(values) is list
        assert type(others) is tuple and others[1].dtype == torch.float64 and others[0] == 2
        return "done"

    one = torch.ones(1, dtype=torch.float32)
    found = DoubleArithmetic().__torch_function__(
        function, (), ([one, 1.5, None],), {"others": (2, one)}
    )
    assert found == "done"
    # Others are handed on as they are.
    names = ["a", "b"]
    assert DoubleArithmetic().__torch_function__(lambda given: given, (), (names,)) is names


def test_a_tensor_that_is_given_for_the_result():
    out = torch.empty(2, dtype=torch.float32)
    with DoubleArithmetic():
        found = torch.add(torch.ones(2, dtype=torch.float64), 0.5, out=out)
    assert found is out and out.tolist() == [1.5, 1.5]


def test_again_is_the_same_mode():
    with DoubleArithmetic() as mode:
        make = mode.again()
    with make():
        assert torch.ones(2, dtype=torch.float16).add(1).dtype == torch.float64


def test_gradients_are_put_aside():
    model = network()
    problem = build(model=model)
    (weight, *_), grad = list(model.parameters()), torch.ones_like(next(model.parameters()))
    weight.grad = grad
    with double_precision(problem):
        assert weight.grad is None
        model(images()[0]).sum().backward()
        assert weight.grad.dtype == torch.float64
    assert weight.grad is grad and weight.dtype == torch.float32


def test_what_is_in_float64_stays_and_shared_tensors_are_converted_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    model.append(nn.Linear(2, 2))
    model[2].weight = model[0].weight
    wide = model[1].weight
    places = {name: (p, p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    loss = mt.losses.cross_entropy
    problem = mt.BilevelProblem(model, bank.Value(1.0), loss, loss)
    with double_precision(problem):
        assert wide.data_ptr() == places["1.weight"][1]
        assert all(p.dtype == torch.float64 for p in model.parameters())
    for name, parameter in model.named_parameters():
        assert (parameter, parameter.data_ptr(), parameter.dtype) == places[name]
    assert model[2].weight is model[0].weight


def test_types_that_are_wide_or_of_integers_are_what_was_asked_for():
    x = torch.linspace(0.0, 2.0, 3, dtype=torch.float64)
    with DoubleArithmetic():
        kinds = [x.to(kind).dtype for kind in (torch.int64, torch.bool, torch.float64)]
        assert torch.arange(3, dtype=torch.int32).dtype == torch.int32
        assert x.to(torch.complex64).dtype == torch.complex128
    assert kinds == [torch.int64, torch.bool, torch.float64]
