"""What a batch of tasks may be, and what its tasks are."""

import dataclasses

import numpy as np
import pytest
import torch

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.training.task_batches import TaskBatch
from tests.training.across_tasks import listed, sinusoids


def test_a_leading_dimension_and_a_list_hold_the_same_tasks():
    batch = sinusoids(tasks=3)
    one, other = TaskBatch(batch, 2), TaskBatch(listed(batch), 2)
    assert one.count == other.count == 3
    for number in range(3):
        (first, second), query = one.task(number)
        assert first is second and len(query[0]) == 7
        (support, _), queries = other.task(number)
        for a, b in zip((*first, *query), (*support, *queries), strict=True):
            assert torch.equal(a, b)


def test_a_support_that_is_a_list_has_one_batch_for_each_step():
    steps = [torch.arange(6.0).reshape(2, 3), torch.arange(8.0).reshape(2, 4)]
    batch = TaskBatch((steps, torch.zeros(2, 1)), 2)
    supports, _ = batch.task(1)
    assert [support.tolist() for support in supports] == [[3.0, 4.0, 5.0], [4.0, 5.0, 6.0, 7.0]]
    with pytest.raises(DataError, match=r"support is a list of 2, but .* 3 inner steps.*tuple"):
        TaskBatch((steps, torch.zeros(2, 1)), 3)
    with pytest.raises(DataError, match=r"lists of 2 alike: parts of one batch, or.*tuple\(supp"):
        TaskBatch((steps, [torch.zeros(2, 1), torch.zeros(2, 1)]), 2)
    with pytest.raises(DataError, match=r"support is a list of 1"):
        TaskBatch([([torch.zeros(1)], None)], 2)


def test_any_pytree_is_divided_and_numbers_are_common():
    @dataclasses.dataclass
    class Batch:
        inputs: torch.Tensor
        names: dict

    support = Batch(torch.arange(4.0).reshape(2, 2), {"weight": torch.tensor([5.0, 6.0]), "n": 3})
    batch = TaskBatch((support, None), 1)
    (part,), query = batch.task(1)
    assert part.inputs.tolist() == [2.0, 3.0] and part.names["weight"] == 6.0
    assert part.names["n"] == 3 and query is None


def test_tasks_of_a_list_may_differ_in_size():
    tasks = [(torch.zeros(n), torch.zeros(2 * n)) for n in (1, 4)]
    batch = TaskBatch(tasks, 1)
    assert [len(batch.task(n)[1]) for n in range(2)] == [2, 8]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ([], DataError, "holds no task"),
        ((torch.zeros(0, 3), torch.zeros(0, 2)), DataError, "holds no task"),
        ((torch.zeros(2, 0, 3), torch.zeros(2, 1)), DataError, "support of each task holds no ex"),
        ([(torch.zeros(1), None), (torch.zeros(0), None)], DataError, "support of task 1 holds no"),
        ((torch.zeros(2, 3), torch.zeros(3, 3)), ShapeError, r"\(2, 3\) and query.*\(3, 3\)"),
        ((torch.zeros(2), torch.tensor(1.0)), ShapeError, "query holds a 0-d tensor"),
        ((None, 3), DataError, "no tensor"),
        (torch.zeros(2), DataError, r"is a Tensor; give a tuple \(support, query\)"),
        ((torch.zeros(2),) * 3, DataError, "is a tuple of 3"),
        # As the collation of a DataLoader returns it.
        ([torch.zeros(2), torch.zeros(2)], DataError, "task 0 of the list is a Tensor"),
        ((np.zeros(2), torch.zeros(2)), DataError, "support holds a ndarray"),
    ],
)
def test_what_is_no_batch_of_tasks(batch, error, message):
    with pytest.raises(error, match=message):
        TaskBatch(batch, 1)


def test_what_a_data_loader_collates():
    (inputs, targets), (query_inputs, query_targets) = sinusoids(tasks=4)
    rows = zip(inputs, targets, query_inputs, query_targets, strict=True)
    loader = torch.utils.data.DataLoader([((a, b), (c, d)) for a, b, c, d in rows], batch_size=4)
    (batch,) = loader
    with pytest.raises(DataError, match=r"is a list of 2; .*tuple\(map\(tuple, batch\)\)"):
        TaskBatch(batch, 1)
    (support,), query = TaskBatch(tuple(map(tuple, batch)), 1).task(2)
    assert torch.equal(support[0], inputs[2]) and torch.equal(query[1], query_targets[2])


def test_a_list_of_support_and_query_is_not_taken_for_two_tasks():
    support, query = sinusoids(tasks=4)
    for pair in ([support, query], [({"x": support[0]}, support[1]), ({"x": query[0]}, query[1])]):
        with pytest.raises(DataError, match="support and query of all tasks in a list"):
            TaskBatch(pair, 1)
    # Two tasks whose batches are single tensors, of unlike sizes or in a tuple.
    assert TaskBatch([(torch.zeros(3, 1), torch.zeros(5, 1))] * 2, 1).count == 2
    assert TaskBatch((torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)), 1).count == 2
    # Inputs and targets each, as many of the support as of the query.
    assert TaskBatch(listed(sinusoids(2, shots=3, queries=3)), 1).count == 2


def test_tasks_are_alike_by_shapes_types_and_what_else_they_hold():
    def task(size, dtype=torch.float32, name="a"):
        return (torch.zeros(size, dtype=dtype), name), torch.zeros(1)

    tasks = [task(2), task(3), task(2), task(2, torch.float64), task(2, name="b"), task(3)]
    kinds = TaskBatch(tasks, 1).kinds
    assert list(map(list, kinds.values())) == [[0, 2], [1, 5], [3], [4]]
    support, query = TaskBatch(tasks, 1).stacked([1, 5])
    assert support[0][0].shape == (2, 3) and query.shape == (2, 1)
