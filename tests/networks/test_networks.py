from __future__ import annotations

import pytest
import torch
from torch import nn

from metatoolkit.errors import ConfigurationError, ShapeError, UnknownNameError
from metatoolkit.networks import (
    MLP,
    NETWORKS,
    Conv4,
    LeNet,
    ResNet32,
    SmallCNN,
    WideResNet,
    build_network,
)

# torch scripts its forward-mode formulas when the first one is used.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(build: type[nn.Module], **options: int) -> nn.Module:
    """Build without memory: the wide ones are large."""
    with torch.device("meta"):
        return build(**options)


NETWORK_CASES = {
    "lenet": ({}, (1, 12, 12)),
    "mlp": ({"hidden": (7, 5)}, (1, 4, 4)),
    "resnet32": ({}, (3, 8, 8)),
    "small_cnn": ({"width": 4}, (1, 8, 8)),
    "wide_resnet": ({"depth": 10, "width": 1, "dropout": 0.2}, (3, 8, 8)),
}


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    options, shape = NETWORK_CASES[name]
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    return build_network(name, 3, shape, **options), torch.randn(6, *shape, generator=generator)


@pytest.mark.parametrize(
    ("network", "side", "least"), [(SmallCNN(1, 3, 2), 1, 2), (Conv4(1, 2, 4), 15, 16)]
)
def test_images_that_poolings_would_swallow_are_refused(network, side, least) -> None:
    with pytest.raises(ShapeError, match=f"sides of at least {least} pixels"):
        network(torch.zeros(2, 1, 20, side))
    assert network(torch.zeros(2, 1, least, least)).isfinite().all()


@pytest.mark.parametrize(
    ("width", "parameters"),
    [
        (1, 464_154),
        (2, 1_849_898),
        (3, 4_157_242),
        (4, 7_386_186),
        (5, 11_536_730),
        (6, 16_608_874),
    ],
)
def test_parameters_of_resnet32_by_width(width: int, parameters: int) -> None:
    assert count(on_meta(ResNet32, classes=10, width=width)) == parameters


def test_parameters_of_published_networks() -> None:
    assert count(LeNet(classes=10)) == 61_706
    assert count(on_meta(WideResNet, classes=10)) == 36_479_194
    assert count(MLP(4, (3,), 2)) == 4 * 3 + 3 + 3 * 2 + 2


def test_resnet32_halves_the_image_twice_and_pads_channels_on_both_sides() -> None:
    network = ResNet32(classes=10)
    seen = []
    for stage in (network.stage1, network.stage2, network.stage3):
        stage.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[1:])))
    network(torch.randn(2, 3, 32, 32))
    assert seen == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    block = network.stage2[0].eval()
    nn.init.zeros_(block.bn2.weight)
    inputs = torch.rand(1, 16, 4, 4)
    shortcut = block(inputs)
    assert torch.equal(shortcut[:, 8:24], inputs[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()


def test_every_registered_network_has_a_case() -> None:
    assert set(NETWORK_CASES) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    network, inputs = make(name)
    logits = network(inputs)
    assert logits.shape == (6, 3)
    logits.logsumexp(1).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NETWORKS)
def test_functional_call_agrees_with_the_module(name: str) -> None:
    network, inputs = make(name)
    network.eval()
    tensors = {k: v.detach().clone() for k, v in network.state_dict().items()}
    expected = network(inputs)
    fresh, _ = make(name)
    fresh.eval()
    assert torch.equal(torch.func.functional_call(fresh, tensors, (inputs,)), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_vmap_over_stacked_networks_agrees_with_a_loop(name: str) -> None:
    network, inputs = make(name)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    parameters = dict(network.named_parameters())
    copies = [{k: v.detach() + 0.01 * number for k, v in parameters.items()} for number in range(3)]
    buffers = dict(network.named_buffers())

    def call(values: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> torch.Tensor:
        fresh = {k: v.clone() for k, v in state.items()}
        return torch.func.functional_call(network, {**values, **fresh}, (inputs,))

    stacked = {k: torch.stack([copy[k] for copy in copies]) for k in parameters}
    states = {k: torch.stack([v] * 3) for k, v in buffers.items()}
    together = torch.func.vmap(call, randomness="different")(stacked, states)
    one_by_one = torch.stack([call(copy, buffers) for copy in copies])
    torch.testing.assert_close(together, one_by_one, rtol=1e-3, atol=1e-4)


@FORWARD_MODE
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_and_reverse_mode_agree_in_float64(name: str) -> None:
    network, inputs = make(name)
    network = network.double().eval()
    inputs = inputs.double()
    parameters = {k: v.detach() for k, v in network.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    tangents = {
        k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in parameters.items()
    }

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(network, values, (inputs,)).logsumexp(1).sum()

    _, forward = torch.func.jvp(loss, (parameters,), (tangents,))
    gradient = torch.func.grad(loss)(parameters)
    reverse = torch.stack([(gradient[k] * tangents[k]).sum() for k in parameters]).sum()
    torch.testing.assert_close(forward, reverse, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_global_seed_decides_the_initialization(name: str) -> None:
    first, _ = make(name)
    second, _ = make(name)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_wide_resnet_dropout_acts_in_train_mode_only() -> None:
    network, inputs = make("wide_resnet")
    assert not torch.equal(network(inputs), network(inputs))
    network.eval()
    assert torch.equal(network(inputs), network(inputs))


def test_small_cnn_learns_in_few_steps() -> None:
    torch.manual_seed(0)
    network = SmallCNN(1, 2, width=4)
    images = torch.randn(64, 1, 8, 8)
    labels = (images.mean(dim=(1, 2, 3)) > 0).long()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2


def test_mlp_flattens_and_has_the_activation_asked_for() -> None:
    network = MLP(12, (5,), 2, activation="tanh")
    expected = network.layers[2](network.layers[0](torch.ones(3, 12)).tanh())
    assert torch.equal(network(torch.ones(3, 3, 4)), expected)
    assert isinstance(MLP(12, (), 2).layers[0], nn.Linear)
    with pytest.raises(ShapeError, match="11 values per example; this MLP takes 12"):
        network(torch.ones(3, 11))


def test_unknown_names_and_options_get_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'resnet32'\?"):
        build_network("resnet23", 10, (3, 32, 32))
    with pytest.raises(UnknownNameError, match=r"option of network 'resnet32'.*mean 'width'\?"):
        build_network("resnet32", 10, (3, 32, 32), widht=2)
    with pytest.raises(UnknownNameError, match=r"Accepted: depth, dropout, width\."):
        build_network("wide_resnet", 10, (3, 32, 32), channels=3)
    with pytest.raises(UnknownNameError, match=r"activation 'rellu'.*'relu'"):
        MLP(2, activation="rellu")


def test_arguments_out_of_range() -> None:
    with pytest.raises(ConfigurationError, match="width is 0"):
        build_network("resnet32", 10, (3, 32, 32), width=0)
    with pytest.raises(ConfigurationError, match="classes is 0"):
        build_network("mlp", 0, (4,))
    with pytest.raises(ConfigurationError, match="hidden is 0"):
        MLP(2, (3, 0))
    with pytest.raises(ConfigurationError, match="depth is 29"):
        WideResNet(depth=29)
    with pytest.raises(ConfigurationError, match="dropout is 1"):
        WideResNet(dropout=1.0)
    with pytest.raises(ShapeError, match="at least 12×12"):
        LeNet(size=11)
    with pytest.raises(ShapeError, match="28×30"):
        build_network("lenet", 10, (1, 28, 30))
    with pytest.raises(ShapeError, match="channels, height, width"):
        build_network("small_cnn", 10, (64,))
