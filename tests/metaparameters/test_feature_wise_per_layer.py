from __future__ import annotations

import pytest
import torch
from torch import nn

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
    with pytest.raises(ConfigurationError, match="per is 'network'; accepted: 'channel', 'layer'"):
        insert_feature_wise_transforms(small(), per="network")
