"""Gradients and products with Jacobians against matrices, and ``None`` where nothing flows."""

import pytest
import torch

from metatoolkit.hypergradients.products import (
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
