"""Tasks that worker processes make ahead: the same numbers, the same errors, the same place."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    UnknownNameError,
    WorkerError,
)
from metatoolkit.randomness import has_moved, place
from metatoolkit.tasks import (
    FewShotTasks,
    FunctionTasks,
    MixedTasks,
    PhotoTransform,
    PrefetchedTasks,
    TaskSource,
    image_folder_domain,
)
from tests.tasks.images import numbered_domain, write_tree

pytestmark = [
    # With one core, two workers are more than torch advises.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # Of Python 3.12 on; a DataLoader forks all the same.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + torch.randn(images.shape, generator=generator)


def few_shot(seed: int = 0) -> TaskSource:
    return FewShotTasks(
        numbered_domain("d"), "train", 3, 1, 2, tasks=3, seed=seed, support_transform=augment
    )


def mixed(seed: int = 0) -> TaskSource:
    functions = [FunctionTasks(name, shots=2, queries=2, tasks=1) for name in ("sinusoid",) * 2]
    return MixedTasks(functions, tasks=3, seed=seed)


class Global(TaskSource):
    """A source that draws from the global generators, seeded for each task."""

    @override
    def task(self, number: int) -> Any:
        from metatoolkit.randomness import fold_in, seeded

        with seeded(fold_in(self.seed, number), []):
            drawn = [torch.rand(1).item(), random.random(), np.random.random()]
        return (torch.tensor(drawn),), (torch.tensor([number]),)


class Failing(FunctionTasks):
    """A source whose task 4 does something."""

    def __init__(self, at_four: Callable[[], None]) -> None:
        super().__init__(shots=1, queries=1, tasks=1)
        self.at_four = at_four

    @override
    def task(self, number: int) -> Any:
        if number == 4:
            self.at_four()
        return super().task(number)


def same(one: Any, two: Any) -> bool:
    return all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(batches: PrefetchedTasks) -> list[int]:
    return [worker.pid for worker in batches._made._workers]  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("make", [few_shot, mixed, lambda seed: Global(3, seed)])
def test_batches_are_those_of_the_source_bit_for_bit(make: Any, workers: int) -> None:
    before = place()
    with PrefetchedTasks(make(seed=3), workers) as batches:
        plain = make(seed=3)
        for _ in range(5):
            assert same(next(batches), next(plain))
            assert batches.state_dict() == plain.state_dict()
    assert not has_moved(before)


def test_a_place_is_what_was_taken_and_fits_the_source_too() -> None:
    with PrefetchedTasks(mixed(seed=5)) as batches, PrefetchedTasks(mixed(), workers=1) as other:
        for _ in range(3):
            next(batches)
        # Others are made meanwhile, which the place does not tell of.
        stored = batches.state_dict()
        assert stored["next_task"] == 9
        expected = [next(batches) for _ in range(2)]
        next(other)
        plain = mixed()
        for source in (other, plain):
            source.load_state_dict(stored)
            assert all(same(batch, next(source)) for batch in expected)
        # A new place of the source is one of its workers.
        other.source.reseed(1)
        assert same(next(other), next(mixed(seed=1)))
        with pytest.raises(CheckpointError, match="the stored tasks have tasks=3"):
            PrefetchedTasks(FunctionTasks(shots=1, queries=1, tasks=1)).load_state_dict(stored)


def test_an_unreadable_image_is_named_and_the_place_is_kept(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"c{number}": 2 for number in range(8)})
    broken = tmp_path / "c2" / "0001.png"
    content = broken.read_bytes()
    domain = image_folder_domain("tiny", tmp_path)
    transform = PhotoTransform(4)
    source = FewShotTasks(domain, "train", 4, 1, 1, tasks=1, transform=transform)
    with PrefetchedTasks(source, workers=1) as batches:
        first = next(source)
        source.reseed(0)
        broken.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=r"c2/0001\.png cannot be read as an image") as caught:
            next(batches)
        assert "in a worker process" in caught.value.__notes__[0]
        assert "read_image" in caught.value.__notes__[0] and source.next_task == 0
        broken.write_bytes(content)
        assert same(first, next(batches))


def unknown() -> None:
    raise UnknownNameError("color", "reed", ["red"])


class Unsendable(Exception):
    """An error that no other process can make again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def unsendable() -> None:
    raise Unsendable("no", "body")


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (unknown, UnknownNameError, "unknown color 'reed'. Did you mean 'red'"),
        (unsendable, WorkerError, "Unsendable: nobody"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), WorkerError, "was killed"),
    ],
)
def test_a_failure_comes_when_its_batch_is_asked_for(
    fail: Any, error: type[Exception], message: str
) -> None:
    source = Failing(fail)
    killed = message == "was killed"
    with PrefetchedTasks(source, workers=1, ahead=1 if killed else 9) as batches:
        if killed:
            source.next_task = 4
        else:
            expected = FunctionTasks(shots=1, queries=1, tasks=1)
            assert all(same(next(batches), next(expected)) for _ in range(4))
        for _ in range(2):
            with pytest.raises(error, match=message):
                next(batches)
            assert batches.state_dict()["next_task"] == 4
        source.next_task = 5
        assert same(next(batches), FunctionTasks(shots=1, queries=1, tasks=1).batch(5, 1))


def test_workers_end_with_what_they_work_for_and_leave_interrupts_to_it() -> None:
    batches = PrefetchedTasks(mixed())
    next(batches)
    first = pids(batches)
    assert all(map(lives, first))
    for pid in first:
        os.kill(pid, signal.SIGINT)
    next(batches)
    batches.close()
    assert not any(map(lives, first))
    next(batches)
    second = pids(batches)
    batches.source.reseed(3)
    next(batches)
    third = pids(batches)
    assert not any(map(lives, second)) and all(map(lives, third))
    del batches
    assert not any(map(lives, third))


def test_an_interrupt_before_a_worker_can_ignore_it_leaves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = BaseProcess._bootstrap  # type: ignore[attr-defined]

    def interrupted(process: BaseProcess, *args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return run(process, *args, **options)

    monkeypatch.setattr(BaseProcess, "_bootstrap", interrupted)
    plain = mixed()
    with PrefetchedTasks(mixed(), context="fork") as batches:
        assert all(same(next(batches), next(plain)) for _ in range(5))


def test_processes_that_are_spawned_need_a_source_that_can_be_sent() -> None:
    plain = mixed()
    with PrefetchedTasks(mixed(), workers=1, context="spawn") as batches:
        assert same(next(batches), next(plain))
    source = FunctionTasks(lambda generator: torch.sin, shots=1, queries=1, tasks=1)
    with pytest.raises(ConfigurationError, match="this FunctionTasks cannot be sent to a process"):
        next(PrefetchedTasks(source, workers=1, context="spawn"))


def test_what_cannot_be_sent_back_is_said() -> None:
    weight = torch.ones(1, requires_grad=True)
    source = FunctionTasks(lambda generator: weight.mul, shots=1, queries=1, tasks=1)
    with (
        PrefetchedTasks(source, workers=1) as batches,
        pytest.raises(ConfigurationError, match="a tensor of task 0 or later requires a gradient"),
    ):
        next(batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": [1]}, "source is a list; a TaskSource"),
        ({"workers": 0}, "workers is 0"),
        ({"ahead": 0}, "ahead is 0"),
        ({"context": "thread"}, "context is 'thread'; accepted: None, fork"),
    ],
)
def test_wrong_arguments_are_answered(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PrefetchedTasks(**{"source": mixed(), **options})
