from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.metaparameters import FeatureWiseTransform, insert_feature_wise_transforms


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    )


def test_one_scale_and_one_shift_per_layer_act_as_equal_ones_per_channel() -> None:
    shared = FeatureWiseTransform(3, scale=0.2, shift=0.4, per="layer").double()
    apart = FeatureWiseTransform(3, scale=0.2, shift=0.4).double()
    assert [tuple(p.shape) for p in shared.parameters()] == [(1,), (1,)]
    assert [tuple(d.shape) for d in shared.deviations()] == [(1,), (1,)]
    features = torch.randn(4, 3, 5, dtype=torch.float64)
    weights = torch.randn(4, 3, 5, dtype=torch.float64)
    gradients = []
    for layer in (shared, apart):
        torch.manual_seed(3)
        transformed = layer(features)
        gradients.append(torch.autograd.grad((weights * transformed).sum(), layer.parameters()))
        # One draw per channel, not one per layer.
        assert len((transformed - features)[0, :, 0].unique()) == 3
    for one, each in zip(*gradients, strict=True):
        torch.testing.assert_close(one, each.sum(0, keepdim=True))
    torch.manual_seed(3)
    first = shared(features)
    torch.manual_seed(3)
    torch.testing.assert_close(apart(features), first)


def test_every_layer_of_a_network_may_have_one_scale_and_one_shift() -> None:
    meta = insert_feature_wise_transforms(small(), scale=1.0, shift=0.1, per="layer")
    values = {name: p.tolist() for name, p in meta.named_parameters()}
    assert values == {
        "after.1.scale": [1.0],
        "after.1.shift": pytest.approx([0.1]),
        "after.4.scale": [1.0],
        "after.4.shift": pytest.approx([0.1]),
    }
    assert repr(meta.layers()["1"]) == "FeatureWiseTransform(4, per='layer')"
    with pytest.raises(
        ConfigurationError, match="per is 'block'; accepted: 'channel', 'layer', 'n"
    ):
        insert_feature_wise_transforms(small(), per="block")
    with pytest.raises(ConfigurationError, match="per is 'network'; accepted: 'channel', 'layer'"):
        FeatureWiseTransform(3, per="network")


def test_all_layers_of_a_network_may_share_one_scale_and_one_shift() -> None:
    network = small()
    meta = insert_feature_wise_transforms(network, scale=1.0, shift=0.1, per="network")
    assert {name for name, _ in meta.named_parameters()} == {"after.1.scale", "after.1.shift"}
    for model, transforms in ((network, meta), copy.deepcopy((network, meta))):
        first, second = transforms.layers().values()
        assert first.scale is second.scale and first.shift is second.shift
        assert model.get_submodule("4.feature_wise_transform") is second
    mixed = small()
    mixed[4].double()
    with pytest.raises(ConfigurationError, match=r"cpu torch\.float32, cpu torch\.float64; take"):
        insert_feature_wise_transforms(mixed, per="network")
    # What was refused left no layers behind.
    assert len(insert_feature_wise_transforms(mixed, per="layer").layers()) == 2


def test_the_hypergradient_of_a_shared_strength_is_the_sum_over_its_layers() -> None:
    generator = torch.Generator().manual_seed(2)
    train, valid = torch.randn(2, 6, 2, 8, 8, generator=generator, dtype=torch.float64)
    found = {}
    for per in ("layer", "network"):
        torch.manual_seed(1)
        network = small().double()
        meta = insert_feature_wise_transforms(network, per=per)
        problem = mt.BilevelProblem(
            network,
            meta,
            train_loss=lambda model, meta, images: model(images).square().mean(),
            valid_loss=lambda model, meta, images: (model(images) - 1).square().mean(),
            valid_mode="eval",
        )
        estimator, inner = mt.hypergradients.Unrolled(2), mt.inner.SGD(lr=0.1)
        result = estimator(problem, inner, inner.init(problem), [train, valid], valid)
        found[per] = result.gradient
    for kind in ("scale", "shift"):
        summed = found["layer"][f"after.1.{kind}"] + found["layer"][f"after.4.{kind}"]
        assert summed.abs() > 1e-6
        torch.testing.assert_close(found["network"][f"after.1.{kind}"], summed)
