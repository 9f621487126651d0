"""Tasks of several sources together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metatoolkit.errors import CheckpointError, ConfigurationError, ShapeError
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.tasks import FewShotTasks, FunctionTasks, MixedTasks, TabularTasks, TaskSource
from tests.tasks.images import numbered_domain
from tests.tasks.taken import raw


def functions(shots: int = 2) -> FunctionTasks:
    return FunctionTasks("sinusoid", shots=shots, queries=2, tasks=1)


def images(offset: int = 0, ways: int = 3) -> FewShotTasks:
    domain = numbered_domain(f"d{offset}", offset=offset)
    return FewShotTasks(domain, "train", ways, 1, 2, tasks=1, transform=raw)


def make(tasks: int = 4, **options: Any) -> MixedTasks:
    sources: dict[str, TaskSource] = {"first": images(0), "second": images(9)}
    return MixedTasks(**{"sources": sources, "tasks": tasks, **options})


def test_a_task_is_that_of_the_source_it_is_said_to_be_of() -> None:
    mixed = make(tasks=20)
    (pixels, labels), _ = next(mixed)
    assert pixels.shape == (20, 3, 1, 2, 2) and labels.tolist() == [[0, 1, 2]] * 20
    names = {0.0: "first", 9.0: "second"}
    found = [names[float(task[0, 0, 0, 0])] for task in pixels]
    assert found == [mixed.source_of(number) for number in range(20)]
    assert len(set(found)) == 2


def test_sources_are_drawn_by_their_weights() -> None:
    mixed = make(weights=[1, 3])
    drawn = [mixed.source_of(number) for number in range(4000)]
    # Four standard deviations.
    assert abs(drawn.count("second") - 3000) < 4 * (4000 * 0.75 * 0.25) ** 0.5


def test_the_seeds_of_the_sources_follow_from_that_of_the_mixture() -> None:
    mixed = MixedTasks([functions(), functions()], tasks=8, seed=1)
    before = mixed.batch(0, 8)[0][0]
    for number, inputs in enumerate(before):
        seed = fold_in(1, Stream.MIXED_SEEDS, int(mixed.source_of(number)))
        alone = FunctionTasks(shots=2, queries=2, tasks=1, seed=seed)
        assert torch.equal(inputs, alone.task(number)[0][0])
    assert {mixed.source_of(number) for number in range(8)} == {"0", "1"}
    mixed.reseed(2)
    after = mixed.batch(0, 8)[0][0]
    assert not any(torch.equal(one, two) for one in before for two in after)
    mixed.reseed(1)
    assert torch.equal(mixed.batch(0, 8)[0][0], before)


def test_sources_go_on_by_themselves_and_serve_several_mixtures() -> None:
    sources: list[TaskSource] = [functions(), make()]
    alone = functions()
    next(sources[0])
    training = MixedTasks(sources[:1], tasks=4, seed=0)
    expected = training.batch(0, 4)
    held_out = MixedTasks([MixedTasks(sources[:1], tasks=1), sources[0]], tasks=4, seed=1)
    unseen = next(held_out)[0][0]
    again = training.batch(0, 4)
    for one, two in zip(expected, again, strict=True):
        assert all(map(torch.equal, one, two))
    assert not any(torch.equal(one, two) for one in unseen for two in again[0][0])
    assert torch.equal(next(sources[0])[0][0], alone.batch(1, 1)[0][0])


def test_a_source_is_where_it_was_after_a_task_that_cannot_be_made() -> None:
    class Failing(FunctionTasks):
        def task(self, number: int) -> Any:
            raise ValueError(f"task {number} is gone")

    source = Failing(shots=2, queries=2, tasks=1, seed=7)
    with pytest.raises(ValueError, match="task 0 is gone"):
        next(MixedTasks([source], tasks=1))
    assert source.seed == 7


def test_a_stored_place_is_found_again_in_mixtures_of_mixtures() -> None:
    def nested(seed: int = 0, weights: Any = (2, 1)) -> MixedTasks:
        return make(sources=[make(), images(20)], weights=weights, seed=seed)

    batches = nested(seed=5)
    next(batches)
    place = batches.state_dict()
    expected = [next(batches) for _ in range(3)]
    other = nested()
    other.load_state_dict(place)
    for batch in expected:
        for one, two in zip(batch, next(other), strict=True):
            assert all(map(torch.equal, one, two))
    for wrong in (nested(weights=(1, 1)), make(sources=[make(), images(21)], weights=(2, 1))):
        with pytest.raises(CheckpointError, match=r"the stored tasks have (weights|sources)="):
            wrong.load_state_dict(place)


def test_tasks_that_are_not_alike_are_named_with_their_sources() -> None:
    mixed = MixedTasks({"few": functions(2), "many": functions(3)}, tasks=9)
    with pytest.raises(ShapeError, match=r"task \d, of source '(few|many)', has tensors of shapes"):
        next(mixed)
    assert mixed.next_task == 0


def test_tasks_of_unequal_shots_are_padded() -> None:
    sources = {"few": functions(2), "many": functions(5)}
    mixed = MixedTasks(sources, tasks=8, padded=True, seed=3)
    (inputs, targets, mask), (_, _, query_mask) = next(mixed)
    assert inputs.shape == targets.shape == (8, 5, 1) and bool(query_mask.all())
    shots = [2 if mixed.source_of(number) == "few" else 5 for number in range(8)]
    assert mask.sum(1).tolist() == shots and set(shots) == {2, 5}
    for number, count in enumerate(shots):
        (alone, _), _ = mixed.task(number)
        assert torch.equal(inputs[number, :count], alone)
    # Masks are there where none is needed, too, so that losses always get them.
    assert len(mixed.batch(0, 1)[0]) == 3


def test_tasks_of_other_types_are_named_and_not_converted() -> None:
    inputs = torch.rand(8, 1, dtype=torch.float64)
    sizes = {"shots": 2, "queries": 2, "tasks": 1}
    table = TabularTasks(inputs, inputs, [0] * 8, **sizes, dtype=torch.float64)
    mixed = MixedTasks({"table": table, "functions": functions()}, tasks=9)
    with pytest.raises(ShapeError, match=r"task \d, of source .*float(32|64).*float(32|64)"):
        next(mixed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, "there is no source"),
        ({"sources": [images(), 3]}, "source 1 is a int; a TaskSource"),
        ({"sources": [images()] * 2}, "a source is there twice"),
        ({"weights": [1]}, "2 positive numbers"),
        ({"weights": [1, 0]}, "2 positive numbers"),
        ({"weights": [1, float("nan")]}, "2 positive numbers"),
        ({"weights": [1, float("inf")]}, "2 positive numbers"),
        ({"tasks": 0}, "tasks is 0"),
    ],
)
def test_wrong_arguments_are_answered(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**options)
