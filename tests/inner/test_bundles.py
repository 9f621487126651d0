"""Bundles compute what their tensors would compute one by one."""

import pytest
import torch

from metatoolkit.inner.bundles import Bundle, takes_bundles

OPERATIONS = {
    "sum": lambda x, y: x + y,
    "sum with a number": lambda x, y: x + 0.3,
    "scaled sum": lambda x, y: x.add(y, alpha=-0.7),
    "scaled sum with a number": lambda x, y: x.add(2.0, alpha=-0.7),
    "product": lambda x, y: x * y,
    "product with a number": lambda x, y: 0.3 * x * 1.7,
    "quotient": lambda x, y: x / (y * y).add(1.0),
    "quotient with a number": lambda x, y: x / 0.3,
    "negative": lambda x, y: -x,
    "square": lambda x, y: x.square(),
    "root": lambda x, y: x.square().add(1.0).sqrt(),
    "masked": lambda x, y: (x * y).masked_fill(y.eq(0), 5.0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_and_their_derivatives(name, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (), (4,)]

    def draw():
        made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        made[2][1] = 0
        return [tensor.requires_grad_() for tensor in made]

    xs, ys, operation = draw(), draw(), OPERATIONS[name]
    found = operation(Bundle(xs), Bundle(ys)).tensors
    expected = [operation(x, y) for x, y in zip(xs, ys, strict=True)]
    gradients = [
        torch.autograd.grad(outputs, xs, [torch.ones_like(x) for x in xs], create_graph=True)
        for outputs in (found, expected)
    ]
    second = [
        torch.autograd.grad([(g * g).sum() for g in first], [*xs, *ys], allow_unused=True)
        if any(g.requires_grad for g in first)
        else ()
        for first in gradients
    ]
    pairs = [*zip(found, expected, strict=True), *zip(*gradients, strict=True)]
    for one, other in [*pairs, *zip(*second, strict=True)]:
        assert (one is None and other is None) or torch.equal(one, other)


def test_what_says_that_it_takes_bundles():
    @takes_bundles
    def update(parameter):
        return parameter

    assert update.takes_bundles and update(3) == 3
