from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, DataError, NonFiniteError, ShapeError
from metatoolkit.evaluation import accuracy, evaluation_mode, few_shot_accuracy
from metatoolkit.networks import SmallCNN
from metatoolkit.tasks import Episode, ImageTransform


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


# Few-shot episodes.


def endless(ways: int = 5, queries: int = 3) -> Iterator[Episode]:
    """Yield episodes whose queries hold their label."""
    labels = torch.arange(float(ways)).view(-1, 1, 1, 1, 1)
    episode = Episode(labels, labels.expand(-1, queries, -1, -1, -1))
    return itertools.repeat(episode)


def true_labels(episode: Episode) -> Tensor:
    return episode.query.flatten(0, 1)[:, 0, 0, 0].long()


def right_with(probability: float, ways: int = 5) -> Callable[[Episode], Tensor]:
    def score(episode: Episode) -> Tensor:
        assert not torch.is_grad_enabled()
        labels = true_labels(episode)
        wrong = torch.rand(len(labels)) >= probability
        return nn.functional.one_hot((labels + wrong) % ways, ways).float()

    return score


def test_few_shot_accuracy_of_known_scores() -> None:
    def first_classes(episode: Episode) -> Tensor:
        labels = true_labels(episode)
        return nn.functional.one_hot(labels.clamp(max=1), 5).float()

    result = few_shot_accuracy(first_classes, endless(), 7, progress=False)
    assert result.mean == pytest.approx(2 / 5)
    assert result.interval == pytest.approx(0, abs=1e-12)
    assert result.accuracies.shape == (7,)

    numbers = itertools.count()

    def every_other_episode(episode: Episode) -> Tensor:
        hit = next(numbers) % 2
        return nn.functional.one_hot((true_labels(episode) + 1 - hit) % 5, 5).float()

    result = few_shot_accuracy(every_other_episode, endless(), 4, progress=False)
    assert result.accuracies.tolist() == [0, 1, 0, 1]
    # The standard deviation of 0, 1, 0, 1 with three degrees of freedom is 1 / sqrt(3).
    assert result.interval == pytest.approx(1.96 / math.sqrt(3) / 2)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.8, 1.0])
def test_scores_that_are_right_with_a_known_probability(probability: float) -> None:
    score = right_with(probability)
    result = few_shot_accuracy(score, endless(), 1000, progress=False)
    # An episode has 15 queries.
    std = math.sqrt(probability * (1 - probability) / 15)
    assert abs(result.mean - probability) <= 5 * std / math.sqrt(1000)
    assert result.interval == pytest.approx(1.96 * std / math.sqrt(1000), rel=0.12)


def test_the_interval_covers_the_truth_19_times_in_20() -> None:
    score = right_with(0.6)
    results = [
        few_shot_accuracy(score, endless(), 40, seed=seed, progress=False) for seed in range(160)
    ]
    covered = sum(abs(result.mean - 0.6) <= result.interval for result in results)
    # Four standard deviations of 160 draws at 0.95 are 11.
    assert abs(covered - 152) <= 11


def test_few_shot_accuracy_is_seeded_and_leaves_the_global_state() -> None:
    score = right_with(0.5)
    state = torch.get_rng_state()
    first = few_shot_accuracy(score, endless(), 20, seed=1, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    again = few_shot_accuracy(score, endless(), 20, seed=1, progress=False)
    other = few_shot_accuracy(score, endless(), 20, seed=2, progress=False)
    assert torch.equal(first.accuracies, again.accuracies)
    assert not torch.equal(first.accuracies, other.accuracies)


def test_few_shot_accuracy_takes_no_more_episodes_than_it_counts() -> None:
    numbers = itertools.count()
    episodes = (episode for episode, _ in zip(endless(), numbers, strict=False))
    score = right_with(1.0)
    few_shot_accuracy(score, episodes, 3, progress=False)
    assert next(numbers) == 3


def test_few_shot_errors() -> None:
    def wide(episode: Episode) -> Tensor:
        return torch.zeros(15, 4)

    def nan(episode: Episode) -> Tensor:
        return torch.full((15, 5), torch.nan)

    score = right_with(1.0)
    for count in (1, 0, True, 2.0):
        with pytest.raises(ConfigurationError, match=f"count is {count!r}"):
            few_shot_accuracy(score, endless(), count)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there are 2 episodes, but count is 3"):
        few_shot_accuracy(score, itertools.islice(endless(), 2), 3, progress=False)
    with pytest.raises(ShapeError, match=r"\(15, 4\); 5 ways of 3 queries need \(15, 5\)"):
        few_shot_accuracy(wide, endless(), 2, progress=False)
    with pytest.raises(NonFiniteError, match="episode 0 hold NaN"):
        few_shot_accuracy(nan, endless(), 2, progress=False)
