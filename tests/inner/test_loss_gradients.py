"""Gradients in θ and λ of one pass are those of two."""

import pytest
import torch

from metatoolkit.diagnostics.measure import count_flops
from metatoolkit.hypergradients.products import loss_gradient
from metatoolkit.inner.loss_gradients import loss_gradients
from metatoolkit.state import with_leaves
from metatoolkit.testing import bank


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", ["small_net", "learned_rates", "tied"])
def test_one_pass_equals_two(name, create_graph):
    case = getattr(bank, name)()
    meta, batch = case.problem.meta_leaves(), case.train_batches[0]
    state = with_leaves(case.state, False)
    loss, gradients, direct, buffers = loss_gradients(
        case.problem, state, meta, batch, create_graph, direct=True
    )
    alone = loss_gradients(case.problem, state, meta, batch, True)
    assert torch.equal(loss, alone[0]) and len(alone[2]) == 0
    assert list(gradients) == list(alone[1]) and list(buffers) == list(alone[3])
    for key, gradient in gradients.items():
        assert gradient.requires_grad == create_graph
        torch.testing.assert_close(gradient, alone[1][key], rtol=1e-14, atol=1e-16)
    expected = loss_gradient(alone[0], list(meta.values()), create_graph=True)
    for one, other in zip(direct, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-16)


def test_one_pass_costs_less_than_two():
    case = bank.small_net()
    meta, batch = case.problem.meta_leaves(), case.train_batches[0]
    state = with_leaves(case.state, False)

    def cost(direct, again):
        def take():
            loss, *_ = loss_gradients(case.problem, state, meta, batch, True, direct=direct)
            if again:
                loss_gradient(loss, list(meta.values()), create_graph=True)

        return count_flops(take)

    alone = cost(False, False)
    # λ weights the examples by a small network, which takes a part of its own.
    assert alone < cost(True, False) < 1.05 * alone
    assert cost(False, True) > 1.05 * alone
