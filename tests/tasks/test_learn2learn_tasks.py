"""Tasks of learn2learn's tasksets: what they hold, and that they come again."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from metatoolkit.errors import CheckpointError, ConfigurationError, DataError
from metatoolkit.tasks import from_learn2learn

data = pytest.importorskip("learn2learn").data


class Noisy(torch.utils.data.Dataset[Any]):
    """Inputs tell class and place; the last value is drawn when an example is loaded."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, place: int) -> Any:
        return torch.tensor([place % 6, place, random.random()]), place % 6


def taskset(
    per_class: int = 5, number: int = -1, load: bool = True, ways: int = 3, source: Any = None
) -> Any:
    examples = data.MetaDataset(source or Noisy())
    named = data.transforms
    transforms = [named.NWays(examples, ways), named.KShots(examples, per_class)]
    transforms += [named.LoadData(examples), named.RemapLabels(examples)] if load else []
    return data.Taskset(examples, transforms, num_tasks=number)


def test_the_first_shots_of_each_class_are_the_support_and_the_others_the_query() -> None:
    batches = from_learn2learn(taskset(), shots=2, tasks=4)
    for support, query in (next(batches), next(batches)):
        for part, each in ((support, 2), (query, 3)):
            inputs, labels = part
            assert inputs.shape == (4, 3 * each, 3) and labels.shape == (4, 3 * each)
            for task in range(4):
                for label in range(3):
                    mine = inputs[task][labels[task] == label]
                    assert len(mine) == each and len(mine[:, 0].unique()) == 1
        places = torch.cat((support[0], query[0]), dim=1)[..., 1]
        assert all(len(task.unique()) == 15 for task in places)


def test_it_holds_the_very_examples_that_the_taskset_gives() -> None:
    """The task that a taskset gives from the same global state, cut in two."""
    from metatoolkit.randomness import Stream, fold_in, seeded

    batches = from_learn2learn(taskset(), shots=2, tasks=1, seed=5)
    support, query = batches.task(3)
    # Examples are loaded once to find their classes, which draws numbers.
    other = taskset()
    with seeded(fold_in(5, Stream.TASKSET_TASKS, 3), []):
        inputs, labels = other[0]
    both = sorted(torch.cat((support[0], query[0]))[:, 1].tolist())
    assert both == sorted(inputs[:, 1].tolist())
    assert sorted(torch.cat((support[1], query[1])).tolist()) == sorted(labels.tolist())


@pytest.mark.parametrize("number", [-1, 3])
def test_task_n_depends_on_the_seed_and_on_n_alone(number: int) -> None:
    def make(seed: int = 1, count: int = number) -> Any:
        return from_learn2learn(taskset(number=count), shots=1, tasks=2, seed=seed)

    batches = make()
    random.seed(1)
    before = random.getstate()
    next(batches)
    place = batches.state_dict()
    expected = [next(batches) for _ in range(3)]
    assert random.getstate() == before
    resumed = make(seed=9)
    resumed.load_state_dict(place)
    for batch in expected:
        for one, two in zip(batch, next(resumed), strict=True):
            assert all(map(torch.equal, one, two))
    assert not torch.equal(next(make())[0][0], next(make(seed=2))[0][0])
    with pytest.raises(CheckpointError, match="total"):
        make(count=7).load_state_dict(place)


def test_a_finite_taskset_repeats_its_tasks_and_augments_them_anew() -> None:
    batches = from_learn2learn(taskset(number=2), shots=1, tasks=20)
    support, query = next(batches)
    examples = torch.cat((support[0], query[0]), dim=1)
    kinds = {tuple(task[:, 1].tolist()) for task in examples}
    assert len(kinds) == 2
    assert len({tuple(task[:, 2].tolist()) for task in examples}) == 20


def test_augmentation_of_the_support_set_leaves_queries_and_draws_as_they_are() -> None:
    def shifted(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return inputs.add_(1 + torch.rand(1, generator=generator))

    plain = from_learn2learn(taskset(), shots=2, tasks=1)
    moved = from_learn2learn(taskset(), shots=2, tasks=1, support_transform=shifted)
    shifts = set()
    for number in range(3):
        (inputs, labels), query = plain.task(number)
        (own, own_labels), own_query = moved.task(number)
        assert torch.equal(labels, own_labels) and all(map(torch.equal, query, own_query))
        shifts.add(round(float((own - inputs).mean()), 5))
    assert len(shifts) == 3 and min(shifts) >= 1


def test_what_is_no_taskset_or_has_too_few_examples_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"taskset is a list.*get_tasksets"):
        from_learn2learn([], shots=1, tasks=1)
    with pytest.raises(ConfigurationError, match="tasks is 0"):
        from_learn2learn(taskset(), shots=1, tasks=0)
    with pytest.raises(ConfigurationError, match="shots is 0"):
        from_learn2learn(taskset(), shots=0, tasks=1)
    with pytest.raises(DataError, match="5 examples of class 0; 5 shots leave none"):
        next(from_learn2learn(taskset(), shots=5, tasks=1))
    for wrong in (taskset(ways=7), taskset(per_class=11)):
        with pytest.raises(DataError, match=r"task 0 .* cannot be drawn .*lower n of NWays or k"):
            next(from_learn2learn(wrong, shots=1, tasks=1))
    with pytest.raises(DataError, match="a pair of tensors"):
        next(from_learn2learn(taskset(load=False), shots=1, tasks=1))


def test_an_example_that_cannot_be_read_is_told_with_its_task() -> None:
    class Broken(Noisy):
        broken = False

        def __getitem__(self, place: int) -> Any:
            if self.broken and place == 7:
                raise OSError("7.png is truncated")
            return super().__getitem__(place)

    source = Broken()
    batches = from_learn2learn(taskset(10, ways=6, source=source), shots=1, tasks=1)
    source.broken = True
    with pytest.raises(
        DataError, match=r"task 0 of the taskset cannot be loaded \(7\.png is trunc"
    ):
        next(batches)
    source.broken = False
    assert batches.next_task == 0 and next(batches)[1][1].shape == (1, 54)
