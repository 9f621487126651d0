from __future__ import annotations

import pytest
import torch
from torch import nn

from metatoolkit.errors import ConfigurationError, ShapeError, UnknownNameError
from metatoolkit.networks import (
    BACKBONES,
    Conv4,
    FewShotNetwork,
    FewShotResNet,
    build_backbone,
    build_few_shot_network,
)
from metatoolkit.networks.metric_heads import METRIC_HEADS, PrototypicalHead


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("depth", "parameters"), [(10, 4_905_792), (18, 11_176_512), (34, 21_284_672)]
)
def test_parameters_of_the_published_backbones(depth: int, parameters: int) -> None:
    # The last two are those of torchvision's ResNet-18 and ResNet-34 without their classifiers.
    with torch.device("meta"):
        assert count(FewShotResNet(depth)) == parameters


@pytest.mark.parametrize("depth", [18, 34])
def test_resnet_agrees_with_torchvision(depth: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    other = torchvision.models.get_model(f"resnet{depth}").double().eval()
    ours = FewShotResNet(depth).double().eval()

    def in_order(network: nn.Module) -> list[torch.Tensor]:
        kinds = nn.Conv2d | nn.BatchNorm2d
        return [
            t for m in network.modules() if isinstance(m, kinds) for t in m.state_dict().values()
        ]

    # The first block of stage 1 has no projection in either; both list modules in the same order.
    with torch.no_grad():
        for mine, theirs in zip(in_order(ours), in_order(other), strict=True):
            mine.copy_(theirs)
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        maps = ours(images)
        pooled = nn.Sequential(*list(other.children())[:-1])(images).flatten(1)
    assert maps.shape == (2, 512, 2, 2)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), pooled)


def test_shapes_of_feature_maps() -> None:
    with torch.device("meta"):
        assert FewShotResNet(10)(torch.empty(1, 3, 224, 224)).shape == (1, 512, 7, 7)
        assert FewShotResNet(10, width=8, stem="small")(torch.empty(2, 3, 28, 28)).shape == (
            2,
            64,
            4,
            4,
        )
        assert Conv4()(torch.empty(1, 3, 84, 84)).shape == (1, 64, 5, 5)
        assert Conv4(1, width=16, pools=2)(torch.empty(1, 1, 28, 28)).shape == (1, 16, 7, 7)
        assert count(Conv4()) == 3 * 64 * 9 + 3 * 64 * 64 * 9 + 4 * 128


def test_an_episode_is_scored_class_by_class() -> None:
    class Count(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen = len(images)
            return images

    encoder = Count()
    network = FewShotNetwork(encoder, PrototypicalHead())
    centers = torch.tensor([0.0, 10.0, 20.0]).view(3, 1, 1, 1, 1)
    support = centers.expand(3, 2, 1, 4, 4)
    query = (centers + torch.tensor([1.0, -1.0, 2.0, 0.0]).view(1, 4, 1, 1, 1)).expand(
        3, 4, 1, 4, 4
    )
    logits = network(support, query)
    assert encoder.seen == 3 * 6
    assert logits.shape == (12, 3)
    assert logits.argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert logits[4].tolist() == [-121.0, -1.0, -81.0]


@pytest.mark.parametrize("head", METRIC_HEADS)
def test_every_head_fits_one_episode(head: str) -> None:
    torch.manual_seed(0)
    options = {"graph": {"hidden": 16, "embedding": 8}, "matching": {"scale": 10.0}}
    network = build_few_shot_network(
        "conv4", head, 3, (1, 8, 8), {"width": 4, "pools": 1}, options.get(head)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    images = torch.randn(3, 4, 1, 8, 8)
    targets = torch.arange(3).repeat_interleave(2)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(network(images[:, :2], images[:, 2:]), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_by_name(name: str) -> None:
    backbone = build_backbone(name, channels=1, width=4)
    images = torch.randn(2, 1, 32, 32)
    assert backbone(images).shape[1] == backbone.out_channels


def test_wrong_names_and_sizes_are_answered() -> None:
    with pytest.raises(UnknownNameError, match=r"backbone 'resnet100'.*mean 'resnet10'"):
        build_backbone("resnet100")
    with pytest.raises(UnknownNameError, match=r"option of backbone 'resnet10'.*stem, width"):
        build_backbone("resnet10", depth=18)
    with pytest.raises(UnknownNameError, match=r"metric head 'relations'.*mean 'relation'"):
        build_few_shot_network("conv4", "relations", 5, (1, 28, 28))
    with pytest.raises(UnknownNameError, match="option of metric head 'prototypical'"):
        build_few_shot_network("conv4", "prototypical", 5, (1, 28, 28), None, {"scale": 2.0})
    with pytest.raises(ConfigurationError, match="depth is 12; accepted: 10, 18, 34"):
        FewShotResNet(12)
    with pytest.raises(ConfigurationError, match="stem is 'tiny'"):
        FewShotResNet(10, stem="tiny")
    with pytest.raises(ConfigurationError, match="pools is 5"):
        Conv4(pools=5)
    with pytest.raises(ShapeError, match=r"1×1 are too small.*let the encoder pool less"):
        build_few_shot_network("conv4", "relation", 5, (1, 28, 28))
