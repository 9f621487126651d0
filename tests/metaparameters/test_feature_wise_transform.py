from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.metaparameters import (
    FeatureWiseTransform,
    FeatureWiseTransforms,
    insert_feature_wise_transforms,
)
from metatoolkit.networks import FewShotNetwork, FewShotResNet
from metatoolkit.networks.metric_heads import PrototypicalHead


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    )


def test_features_are_scaled_and_shifted_by_one_draw_per_channel() -> None:
    layer = FeatureWiseTransform(3, scale=0.2, shift=0.4).double()
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([-0.1, 0.0, 0.2]))
    features = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    torch.manual_seed(3)
    transformed = layer(features)
    torch.manual_seed(3)
    noise = torch.randn(2, 3, dtype=torch.float64)

    def softplus(x: torch.Tensor) -> torch.Tensor:
        return torch.log1p(torch.exp(100 * x)) / 100

    for channel in range(3):
        gamma = 1 + softplus(layer.scale[channel]) * noise[0, channel]
        beta = softplus(layer.shift[channel]) * noise[1, channel]
        expected = gamma * features[:, channel] + beta
        torch.testing.assert_close(transformed[:, channel], expected, rtol=1e-9, atol=1e-9)


def test_moments_of_many_draws() -> None:
    layer = FeatureWiseTransform(20_000)
    torch.manual_seed(0)
    with torch.no_grad():
        at_zero = layer(torch.zeros(1, 20_000))
        at_one = layer(torch.ones(1, 20_000)) - 1
    assert abs(float(at_zero.mean())) < 0.02
    assert abs(float(at_zero.std()) - 0.5) < 0.02
    assert abs(float(at_one.std()) - (0.3**2 + 0.5**2) ** 0.5) < 0.02


def test_the_gradient_in_its_parameters() -> None:
    layer = FeatureWiseTransform(2, scale=0.01, shift=-0.005).double()
    features = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def call(features: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        values = {"scale": scale, "shift": shift}
        return torch.func.functional_call(layer, values, (features,))

    assert torch.autograd.gradcheck(call, (features, layer.scale, layer.shift))
    assert torch.autograd.gradgradcheck(call, (features, layer.scale, layer.shift))


def test_nothing_happens_in_eval_mode_and_where_it_is_switched_off() -> None:
    layer, features = FeatureWiseTransform(3), torch.randn(2, 3, 4)
    assert not torch.equal(layer(features), features)
    layer.enabled = False
    assert layer(features) is features
    layer.enabled = True
    assert layer.eval()(features) is features


@pytest.mark.parametrize(("depth", "size"), [(10, 3712), (18, 5632), (34, 9344)])
def test_number_of_meta_parameters_at_the_published_places(depth: int, size: int) -> None:
    with torch.device("meta"):
        network = FewShotResNet(depth)
    meta = insert_feature_wise_transforms(network, where=FewShotResNet.PLACEMENT)
    assert count(meta) == size
    blocks = {10: 4, 18: 8, 34: 16}[depth]
    assert len(meta.layers()) == blocks + 3


def test_every_batch_norm_is_followed_by_default() -> None:
    network = FewShotResNet(10, width=4)
    norms = [name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    meta = insert_feature_wise_transforms(network)
    assert list(meta.layers()) == norms
    assert count(meta) == 2 * (4 + 4 + 4 + 8 * 3 + 16 * 3 + 32 * 3)


def test_transforms_come_right_after_batch_norm() -> None:
    network = small()
    before = copy.deepcopy(network)
    meta = insert_feature_wise_transforms(network)
    images = torch.randn(5, 2, 8, 8)
    torch.manual_seed(7)
    given = network(images)
    torch.manual_seed(7)
    expected = before[1](before[0](images))
    expected = before[4](before[3](before[2](meta.after.get_submodule("1")(expected))))
    torch.testing.assert_close(given, meta.after.get_submodule("4")(expected))


def test_names_of_the_network_stay_and_those_of_the_transforms_tell_their_place() -> None:
    network, plain = small(), small()
    meta = insert_feature_wise_transforms(network, where=["4"])
    names = set(network.state_dict()) - set(plain.state_dict())
    assert names == {f"4.feature_wise_transform.{kind}" for kind in ("scale", "shift")}
    assert dict(meta.named_parameters()).keys() == {"after.4.scale", "after.4.shift"}
    network.load_state_dict(plain.state_dict() | {name: torch.ones(3) for name in names})
    assert meta.layers()["4"].scale.tolist() == [1.0, 1.0, 1.0]


def test_a_network_whose_parts_are_called_like_methods_of_the_transforms() -> None:
    network = nn.Module()
    network.layers = nn.Module()
    network.layers.after = nn.BatchNorm2d(2)
    network.switch = nn.BatchNorm2d(3)
    meta = insert_feature_wise_transforms(network)
    assert list(meta.layers()) == ["layers.after", "switch"]
    assert meta.switch(False) is meta


def test_a_copy_of_the_network_uses_its_own_transforms() -> None:
    network = small()
    meta = insert_feature_wise_transforms(network)
    copied, copied_meta = copy.deepcopy((network, meta))
    with torch.no_grad():
        for parameter in copied_meta.parameters():
            parameter.fill_(-1.0)
    images = torch.randn(5, 2, 8, 8)
    assert not torch.allclose(network(images), network(images), atol=1e-3)
    torch.testing.assert_close(copied(images), copied(images))


def test_switching_all_off_for_a_while() -> None:
    network, plain = small(), small()
    meta = insert_feature_wise_transforms(network)
    images = torch.randn(5, 2, 8, 8)
    meta.layers()["1"].enabled = False
    with meta.disabled():
        assert torch.equal(network(images), plain(images))
        assert [layer.enabled for layer in meta.layers().values()] == [False, False]
    assert [layer.enabled for layer in meta.layers().values()] == [False, True]
    meta.switch(False)
    assert torch.equal(network(images), plain(images))
    meta.switch(True)
    assert not torch.equal(network(images), plain(images))
    network.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(network.eval()(images), plain.eval()(images))


def test_other_dimensions_and_precisions() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    meta = insert_feature_wise_transforms(network, where=["1"])
    assert network(torch.randn(6, 3, dtype=torch.float64)).dtype == torch.float64
    assert meta.layers()["1"].scale.dtype == torch.float64
    assert FeatureWiseTransform(3)(torch.randn(2, 3, 4, 4, 4)).shape == (2, 3, 4, 4, 4)
    assert FeatureWiseTransform(3)(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def episodes(number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(number)

    def draw(images: int) -> torch.Tensor:
        return torch.randn(3, images, 1, 8, 8, generator=generator, dtype=torch.float64)

    return [(draw(2), draw(3)) for _ in range(2)]


def problem(per: str = "channel") -> mt.BilevelProblem:
    torch.manual_seed(1)
    # Without kinks, which finite differences would step over, and with constant running statistics,
    # since these count as constants of the derivative.
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    )
    for norm in (encoder[1], encoder[4]):
        norm.momentum = 0.0
    network = FewShotNetwork(encoder, PrototypicalHead()).double()
    meta = insert_feature_wise_transforms(network.encoder, per=per)
    loss = mt.losses.episode_cross_entropy
    return mt.BilevelProblem(network, meta, loss, loss, valid_mode="eval")


@pytest.mark.parametrize(
    "estimator",
    [
        mt.hypergradients.Unrolled(steps=1),
        mt.hypergradients.EvoGrad(sigma=0.01, temperature=0.05),
        mt.hypergradients.EvoGrad(sigma=0.01, temperature=0.05, candidates=3, streamed=True),
    ],
)
@pytest.mark.parametrize("per", ["channel", "layer"])
def test_hypergradient_agrees_with_finite_differences(estimator, per) -> None:
    train, valid = episodes(2)
    check = mt.check_hypergradient(
        problem(per),
        mt.inner.SGD(lr=0.1),
        estimator,
        [train],
        valid,
        coordinates=12 if per == "channel" else 4,
    )
    # Gradients of 1e-6 beside a loss of 1 leave differences five digits.
    assert check.relative_error < 1e-4, check


def test_inner_parameters_leave_the_transforms_out_and_the_outer_loss_is_without_noise() -> None:
    bilevel = problem()
    assert isinstance(bilevel.meta, FeatureWiseTransforms)
    assert not any("feature_wise" in name for name in bilevel.parameter_names)
    meta, buffers = bilevel.meta_parameters(), bilevel.buffers()
    values, (episode, _) = bilevel.parameters(), episodes(3)
    first, second = (bilevel.evaluate_valid(values, meta, buffers, episode, k) for k in (1, 2))
    assert torch.equal(first, second)
    first, second = (bilevel.evaluate_train(values, meta, buffers, episode, k)[0] for k in (1, 2))
    assert not torch.equal(first, second)


def test_copies_of_evograd_share_the_noise_of_the_transforms() -> None:
    train, valid = episodes(4)
    results = []
    for common in (True, False):
        bilevel, inner = problem(), mt.inner.SGD(lr=0.1)
        estimator = mt.hypergradients.EvoGrad(sigma=1e-7, common_random_numbers=common)
        losses = estimator(bilevel, inner, inner.init(bilevel), [train], valid).details
        results.append(float(losses["train_losses"].diff().abs()))
    common, fresh = results
    assert common < 1e-4
    assert fresh > 100 * common


def test_wrong_use_is_answered() -> None:
    network = small()
    insert_feature_wise_transforms(network)
    with pytest.raises(ConfigurationError, match="transforms already, after 1, 4;"):
        insert_feature_wise_transforms(network)
    with pytest.raises(ConfigurationError, match="transforms already"):
        insert_feature_wise_transforms(network, where=["4"])
    with pytest.raises(ConfigurationError, match=r"after encoder\.1, encoder\.4;"):
        insert_feature_wise_transforms(nn.ModuleDict({"encoder": network}))
    with pytest.raises(ConfigurationError, match=r"model \(Linear\) has no BatchNorm layer"):
        insert_feature_wise_transforms(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match=r"no BatchNorm2d.*in `where`: 0"):
        insert_feature_wise_transforms(nn.Sequential(nn.BatchNorm1d(2)))
    with pytest.raises(ConfigurationError, match=r"'\*.bn2' matches no BatchNorm.*there are 1, 4"):
        insert_feature_wise_transforms(small(), where=["*.bn2"])
    with pytest.raises(ConfigurationError, match="give a list"):
        insert_feature_wise_transforms(small(), where="1")
    with pytest.raises(ConfigurationError, match="where is empty"):
        insert_feature_wise_transforms(small(), where=[])
    with pytest.raises(ConfigurationError, match="channels is 0"):
        FeatureWiseTransform(0)
    with pytest.raises(ShapeError, match=r"shape \(2, 4\); this layer takes \(batch, 3, ...\)"):
        FeatureWiseTransform(3)(torch.ones(2, 4))


def test_first_values_are_those_of_the_paper_unless_others_are_given() -> None:
    for layer in (
        FeatureWiseTransform(2),
        *insert_feature_wise_transforms(small()).layers().values(),
    ):
        assert layer.scale.unique().tolist() == pytest.approx([0.3])
        assert layer.shift.unique().tolist() == [0.5]
    for layer in insert_feature_wise_transforms(small(), None, 0.25, 0.75).layers().values():
        assert layer.scale.unique().tolist() == [0.25]
        assert layer.shift.unique().tolist() == [0.75]


def test_layers_begin_in_the_mode_of_what_they_follow() -> None:
    network = small()
    network[1].eval()
    layers = insert_feature_wise_transforms(network).layers()
    assert [layer.training for layer in layers.values()] == [False, True]


def test_an_error_in_the_body_switches_them_on_again() -> None:
    meta = insert_feature_wise_transforms(small())
    with pytest.raises(ZeroDivisionError), meta.disabled():
        raise ZeroDivisionError
    assert all(layer.enabled for layer in meta.layers().values())


def test_features_without_channels_are_told() -> None:
    with pytest.raises(ShapeError, match=r"shape \(3,\); this layer takes \(batch, 3, ...\)"):
        FeatureWiseTransform(3)(torch.ones(3))
    with pytest.raises(ConfigurationError, match="has no BatchNorm layer inside"):
        insert_feature_wise_transforms(nn.BatchNorm2d(3))


def test_layers_without_weights_or_statistics_are_followed() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, affine=False, track_running_stats=False),
    ).double()
    layers = insert_feature_wise_transforms(network).layers()
    # The first tells its type by its statistics, the second has none.
    assert [layer.scale.dtype for layer in layers.values()] == [torch.float64, torch.float32]
    assert repr(layers["0"]) == "FeatureWiseTransform(2)"


def test_two_numbers_are_drawn_for_each_channel() -> None:
    layer = FeatureWiseTransform(20)
    torch.manual_seed(5)
    beta = layer(torch.zeros(1, 20))[0]
    following = torch.rand(())
    torch.manual_seed(5)
    noise = torch.randn(2, 20)
    torch.testing.assert_close(beta, 0.5 * noise[1], rtol=1e-6, atol=1e-7)
    assert torch.equal(following, torch.rand(()))
