"""Float64 for a while: what is computed in it, and that everything is put back."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metatoolkit.hypergradients.double_precision import (
    DoubleArithmetic,
    double_precision,
    to_double,
)
from tests.hypergradients.checked import build, images, network

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
