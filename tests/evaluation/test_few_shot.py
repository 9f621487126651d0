from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metatoolkit.errors import DataError
from metatoolkit.evaluation import domain_accuracy, few_shot_accuracy
from metatoolkit.networks import FewShotNetwork, build_few_shot_network
from metatoolkit.networks.metric_heads import PrototypicalHead
from metatoolkit.tasks import EpisodeBatches, ImageSet, domain_of


def domain():
    torch.manual_seed(0)
    labels = torch.arange(12).repeat_interleave(6)
    images = torch.randint(0, 256, (72, 1, 8, 8), dtype=torch.uint8)
    return domain_of("noise", ImageSet(images, labels, tuple(f"{i:02}" for i in range(12))))


@pytest.mark.parametrize("head", ["prototypical", "relation"])
def test_features_encoded_once_give_the_accuracy_of_whole_episodes(head: str) -> None:
    noise = domain()
    network = build_few_shot_network("conv4", head, 3, (1, 8, 8), {"width": 4, "pools": 1})
    network(torch.randn(3, 2, 1, 8, 8), torch.randn(3, 2, 1, 8, 8))
    found = domain_accuracy(
        network, noise, "test", 3, 1, 2, 20, seed=5, batch_size=7, progress=False
    )
    assert network.training
    network.eval()
    whole = few_shot_accuracy(
        lambda episode: network(*episode),
        EpisodeBatches([noise], "test", 3, 1, 2, seed=5),
        20,
        progress=False,
    )
    assert torch.equal(found.accuracies, whole.accuracies)
    assert 0 < found.mean < 1


def test_each_image_passes_the_encoder_once() -> None:
    class Count(nn.Module):
        seen = 0

        def forward(self, images: Tensor) -> Tensor:
            self.seen += len(images)
            return images

    encoder = Count()
    network = FewShotNetwork(encoder, PrototypicalHead(), pool=False)
    domain_accuracy(network, domain(), "valid", 3, 1, 5, 30, progress=False)
    assert encoder.seen == 18


def test_too_few_classes_are_answered() -> None:
    network = FewShotNetwork(nn.Identity(), PrototypicalHead())
    with pytest.raises(DataError, match="has 3 classes, fewer than the 5 ways"):
        domain_accuracy(network, domain(), "test", 5, 1, 1, 2, progress=False)
