"""Gradients and products with Jacobians against matrices, and ``None`` where nothing flows."""

import pytest
import torch

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.products import (
    as_vector,
    batched_products,
    loss_gradient,
    vector_jacobian_product,
)

MATRIX = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], dtype=torch.float64)


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_the_gradient_of_a_loss():
    x, y = leaf(1.0, -2.0, 3.0), leaf(5.0)
    gradient, nothing = loss_gradient(x.square().sum(), [x, y])
    torch.testing.assert_close(gradient, 2 * x.detach(), rtol=0, atol=0)
    assert nothing is None and not gradient.requires_grad
    assert loss_gradient(torch.ones(()), [x, y]) == [None, None]
    (gradient,) = loss_gradient(x.pow(3).sum(), [x], create_graph=True)
    (second,) = loss_gradient(gradient.sum(), [x])
    torch.testing.assert_close(second, 6 * x.detach(), rtol=0, atol=0)


def test_a_product_with_a_jacobian():
    x, y = leaf(1.0, -2.0, 3.0), leaf(5.0)
    u = torch.tensor([2.0, -1.0], dtype=torch.float64)
    outputs = [MATRIX @ x, y * x[0], torch.ones(2, dtype=torch.float64)]
    product, nothing = vector_jacobian_product(outputs, [x, y], [u, None, u], retain_graph=True)
    torch.testing.assert_close(product, MATRIX.T @ u, rtol=0, atol=0)
    # Without a cotangent the second output counts for nothing, nor does a constant.
    assert nothing is None
    assert vector_jacobian_product(outputs, [x, y], [None, None, u]) == [None, None]
    one = torch.ones(1, dtype=torch.float64)
    product, other = vector_jacobian_product(outputs, [x, y], [u, one, None])
    expected = MATRIX.T @ u + torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(product, expected, rtol=0, atol=0)
    assert float(other) == 1.0
    with pytest.raises(RuntimeError, match="second time"):
        vector_jacobian_product([outputs[1]], [x], [one])


@pytest.mark.parametrize("count", [1, 3])
def test_several_products_at_a_time(count):
    x, y = leaf(1.0, -2.0, 3.0), leaf(5.0)
    rows = torch.arange(2.0 * count, dtype=torch.float64).view(count, 2)
    products, zeros = batched_products([MATRIX @ x, None], [x, y], [rows, rows])
    torch.testing.assert_close(products, rows @ MATRIX, rtol=0, atol=0)
    assert zeros.shape == (count, 1) and not zeros.any()


class Told(torch.autograd.Function):
    """The identity, whose backward pass raises what it was told to."""

    @staticmethod
    def forward(ctx, inputs, message):
        ctx.message = message
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError(ctx.message)


@pytest.mark.parametrize(
    "message", ["vmap: not this one", "VMAP cannot", "Batching rule not implemented for aten::this"]
)
def test_what_cannot_be_batched_is_taken_one_by_one(message):
    x, rows = leaf(1.0, 2.0), torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=r"cannot be batched over directions .*use chunk=1"):
        batched_products([Told.apply(x, message)], [x], [rows])
    # One product is taken without vmap, so that its error is another one.
    with pytest.raises(RuntimeError, match=message) as caught:
        batched_products([Told.apply(x, message)], [x], [rows[:1]])
    assert not isinstance(caught.value, UnsupportedError)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_other_errors_of_a_backward_pass_stay_as_they_are(count):
    x, rows = leaf(1.0, 2.0), torch.ones(count, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        batched_products([Told.apply(x, "out of memory")], [x], [rows])
    assert type(caught.value) is RuntimeError


class Counted(torch.autograd.Function):
    """x³, whose backward pass reads a number, which vmap cannot."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs**3

    @staticmethod
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        assert gradient.sum().item() == gradient.sum().item()
        return 3 * inputs.square() * gradient


def test_one_direction_needs_no_batching():
    x = leaf(1.0, -2.0)
    row = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    (product,) = batched_products([Counted.apply(x)], [x], [row])
    assert product.tolist() == [[6.0, 36.0]]
    with pytest.raises(UnsupportedError, match="chunk=1"):
        batched_products([Counted.apply(x)], [x], [row.expand(2, 2)])


@pytest.mark.parametrize("count", [1, 3])
def test_products_are_taken_again_and_skip_what_is_constant(count):
    x, y = leaf(1.0, -2.0, 3.0), leaf(5.0)
    outputs = [MATRIX @ x, torch.ones(4, dtype=torch.float64), None]
    vectors = [
        torch.ones(count, size, dtype=torch.float64) * torch.arange(1.0, count + 1).unsqueeze(1)
        for size in (2, 4, 1)
    ]
    for _ in range(2):
        products, zeros = batched_products(outputs, [x, y], vectors)
        torch.testing.assert_close(products, vectors[0] @ MATRIX, rtol=0, atol=0)
        assert zeros.shape == (count, 1) and not zeros.any()
    nothing, zeros = batched_products(outputs[1:], [x, y], vectors[1:])
    assert nothing.shape == (count, 3) and zeros.shape == (count, 1)
    assert nothing.dtype == torch.float64 and not nothing.any() and not zeros.any()


def test_graphs_of_products_are_kept_and_built_where_that_is_asked():
    x = leaf(1.0, -2.0, 3.0)
    one = torch.ones(3, dtype=torch.float64)
    output = x.pow(3)
    (plain,) = vector_jacobian_product([output], [x], [one], retain_graph=True)
    assert not plain.requires_grad
    (product,) = vector_jacobian_product([output], [x], [one], create_graph=True)
    (second,) = vector_jacobian_product([product], [x], [one])
    torch.testing.assert_close(second, 6 * x.detach(), rtol=0, atol=0)
    (gradient,) = loss_gradient(x.pow(3).sum(), [x])
    assert not gradient.requires_grad


def test_a_sparse_gradient_is_refused():
    table = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    rows = torch.nn.functional.embedding(torch.tensor([0, 2]), table, sparse=True)
    with pytest.raises(UnsupportedError, match="sparse"):
        loss_gradient(rows.square().sum(), [table])


def test_tensors_as_one_vector():
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tensors = [matrix.T, torch.tensor(5.0, dtype=torch.float64), torch.zeros(0)]
    vector = as_vector(iter(tensors))
    assert vector.tolist() == [1.0, 3.0, 2.0, 4.0, 5.0] and vector.dtype == torch.float64
    assert as_vector(tensors, torch.float32).dtype == torch.float32
    assert as_vector([torch.tensor([1 + 2j, 3 - 4j])]).tolist() == [1.0, 2.0, 3.0, -4.0]
    assert as_vector([torch.tensor([1 + 2j]).conj()], torch.float64, "cpu").tolist() == [1.0, -2.0]


def test_the_vector_of_tensors_has_their_derivatives():
    point = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    vector = as_vector([point.square(), point.sum()])
    (slope,) = torch.autograd.grad(vector @ torch.tensor([1.0, 2.0, 5.0]).double(), point)
    assert slope.tolist() == [9.0, 17.0]


def test_products_by_the_engine_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    weight, bias = leaf(*torch.randn(6, generator=generator).tolist()), leaf(0.3, -0.2)
    inputs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    loss = (inputs @ weight.view(3, 2) + bias).tanh().pow(3).sum()
    unused = leaf(1.0)
    fields = torch.autograd.grad(loss, [weight, bias], create_graph=True)
    rows = [
        torch.randn(5, *field.shape, generator=generator, dtype=torch.float64) for field in fields
    ]
    # The graph is kept for another time.
    for _ in range(2):
        *found, zeros = batched_products(fields, [weight, bias, unused], rows)
    expected = torch.autograd.grad(fields, [weight, bias], rows, is_grads_batched=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) and not one.requires_grad
    assert zeros.shape == (5, 1) and not zeros.any()
    with pytest.raises(RuntimeError):
        batched_products(fields, [weight, bias], [row[:, :1] for row in rows])
