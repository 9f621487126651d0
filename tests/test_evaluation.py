from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, DataError, ShapeError
from metatoolkit.evaluation import accuracy, evaluation_mode
from metatoolkit.networks import SmallCNN
from metatoolkit.tasks import ImageTransform


class First(nn.Module):
    """Logits are the inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        return inputs


@pytest.mark.parametrize("batch_size", [1, 3, 512])
def test_accuracy_counts_hits(batch_size: int) -> None:
    logits = torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]]
    labels = torch.tensor([0, 1, 2, 3, 1, 1, 0])
    assert accuracy(First(), logits, labels, batch_size) == 5 / 7


def test_the_mode_of_each_module_and_its_buffers_are_untouched() -> None:
    model = SmallCNN(1, 3, width=2)
    model.train()
    model.features[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    accuracy(model, torch.randn(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64), 2)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_the_modes_come_back_after_an_error() -> None:
    model = SmallCNN(1, 3, width=2)
    with pytest.raises(RuntimeError):
        accuracy(model, torch.randn(5, 2, 8, 8), torch.zeros(5, dtype=torch.int64))
    assert all(module.training for module in model.modules())
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training


def test_uint8_images_are_transformed_batch_by_batch() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    images = torch.randint(0, 256, (9, 1, 2, 2), dtype=torch.uint8)
    transform = ImageTransform((0.5,), (0.25,))
    labels = model(transform(images)).argmax(1)
    assert accuracy(model, images, labels, 4, transform=transform) == 1.0


def test_errors() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ConfigurationError, match="batch_size"):
        accuracy(First(), torch.zeros(3, 2), labels, 0)
    with pytest.raises(DataError, match="no examples"):
        accuracy(First(), torch.zeros(0, 2), labels[:0])
    with pytest.raises(ShapeError, match="3, 2 examples"):
        accuracy(First(), torch.zeros(3, 2), labels[:2])
    with pytest.raises(ShapeError, match=r"logits have shape \(3,\)"):
        accuracy(First(), torch.zeros(3), labels)
