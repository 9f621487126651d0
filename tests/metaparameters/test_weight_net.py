from __future__ import annotations

import pytest
import torch
from torch import nn

from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.metaparameters import WeightNet, normalize_weights


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_of_the_published_network() -> None:
    assert count(WeightNet()) == 301
    for factor in (10, 100):
        assert count(WeightNet(100 * factor)) == 300 * factor + 1


def test_it_is_a_sigmoid_of_a_perceptron() -> None:
    network = WeightNet(hidden=7).double()
    losses = torch.rand(5, dtype=torch.float64) * 3
    first, last = (module for module in network.modules() if isinstance(module, nn.Linear))
    hidden = (losses[:, None] @ first.weight.T + first.bias).relu()
    expected = torch.sigmoid(hidden @ last.weight.T + last.bias)[:, 0]
    torch.testing.assert_close(network(losses), expected)


def test_weights_lie_between_0_and_1_for_any_loss() -> None:
    weights = WeightNet()(torch.tensor([0.0, 1e-8, 1.0, 5.0, 20.0]))
    assert weights.shape == (5,)
    assert ((weights > 0) & (weights < 1)).all()


def test_layers_and_widths_say_the_same() -> None:
    torch.manual_seed(0)
    first = WeightNet(hidden=8, layers=3)
    torch.manual_seed(0)
    second = WeightNet(hidden=(8, 8, 8))
    losses = torch.rand(4)
    assert torch.equal(first(losses), second(losses))
    assert count(first) == 16 + 72 + 72 + 9


def test_several_inputs_and_outputs() -> None:
    assert WeightNet(inputs=2)(torch.rand(4, 2)).shape == (4,)
    assert WeightNet(outputs=3)(torch.rand(4)).shape == (4, 3)
    assert torch.equal((network := WeightNet())(torch.ones(4)), network(torch.ones(4).unsqueeze(1)))


def test_every_meta_parameter_gets_a_gradient() -> None:
    network = WeightNet()
    (normalize_weights(network(torch.rand(20))) * torch.rand(20)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_losses_in_another_precision(dtype: torch.dtype) -> None:
    network = WeightNet()
    losses = torch.rand(4)
    torch.testing.assert_close(network(losses.to(dtype)), network(losses), atol=1e-2, rtol=0)
    assert WeightNet().to(dtype)(losses.to(dtype)).dtype == dtype


def test_vmap_over_stacked_meta_parameters() -> None:
    networks = [WeightNet(5) for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(networks)
    losses = torch.rand(4)
    together = torch.func.vmap(
        lambda values: torch.func.functional_call(networks[0], values, (losses,))
    )(parameters)
    torch.testing.assert_close(together, torch.stack([network(losses) for network in networks]))


def test_normalized_weights_sum_to_one() -> None:
    weights = torch.tensor([0.2, 0.3, 0.5, 1.0])
    torch.testing.assert_close(normalize_weights(weights), weights / 2)


def test_weights_whose_sum_is_zero_stay_zero_with_finite_gradients() -> None:
    weights = torch.zeros(4, requires_grad=True)
    normalized = normalize_weights(weights)
    assert torch.equal(normalized, torch.zeros(4))
    (normalized * torch.rand(4)).sum().backward()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


def test_normalizing_is_differentiated_through() -> None:
    weights = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize_weights, (weights,))
    assert torch.autograd.gradgradcheck(normalize_weights, (weights,))


def test_errors_name_the_argument() -> None:
    with pytest.raises(ConfigurationError, match="hidden is 0"):
        WeightNet(0)
    with pytest.raises(ConfigurationError, match="layers is 0"):
        WeightNet(layers=0)
    with pytest.raises(ConfigurationError, match="layers is 0"):
        WeightNet(())
    with pytest.raises(ConfigurationError, match="names 2 layers, but layers is 3"):
        WeightNet((4, 5), layers=3)
    assert count(WeightNet((4, 5), layers=2)) == 8 + 25 + 6
    with pytest.raises(ConfigurationError, match="outputs is 0"):
        WeightNet(outputs=0)
    with pytest.raises(ShapeError, match=r"\(4, 1, 1\); this WeightNet takes \(batch,\)"):
        WeightNet()(torch.rand(4, 1, 1))
    with pytest.raises(ConfigurationError, match="inputs is 0"):
        WeightNet(inputs=0)
    with pytest.raises(ShapeError, match=r"\(4, 2\); this WeightNet takes \(batch,\)"):
        WeightNet()(torch.rand(4, 2))
    with pytest.raises(ShapeError, match=r"\(4,\); this WeightNet takes \(batch, 2\)"):
        WeightNet(inputs=2)(torch.rand(4))
