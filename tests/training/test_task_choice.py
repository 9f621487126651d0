"""The choice of how tasks run, measured once for batches of one scale."""

import pytest

import metatoolkit as mt
from metatoolkit.hypergradients import FirstOrder, Unrolled
from metatoolkit.training.across_tasks import AcrossTasks
from metatoolkit.training.task_run import TaskRun
from tests.training.across_tasks import largest_difference, regression, sinusoids

SGD = mt.inner.SGD(lr=0.05)


@pytest.mark.parametrize("faster", ["vmap", "loop"])
def test_the_faster_way_is_taken_and_measured_once(monkeypatch, faster):
    calls = []

    def seconds(run, call):
        calls.append(call())
        return 1.0 if (calls[-1].details.get("batching") == "loop") == (faster == "loop") else 9.0

    monkeypatch.setattr(TaskRun, "_seconds", seconds)
    problem, batch = regression(), sinusoids()
    for _ in range(2):
        found = mt.over_tasks(problem, SGD, Unrolled(2), batch)
        assert found.details["batching"] == faster
        assert "4 tasks took" in found.details["reason"]
    assert len(calls) == 4
    expected = mt.over_tasks(problem, SGD, Unrolled(2), batch, "loop")
    assert largest_difference(found.gradient, expected.gradient) < 1e-10
    # Another estimator is measured by itself.
    mt.over_tasks(problem, SGD, FirstOrder(2), batch)
    assert len(calls) == 8


def test_a_batch_of_another_size_is_measured_anew(monkeypatch):
    counted = []

    def faster(run):
        counted.append(run.scale)
        return ("loop" if len(counted) == 1 else "vmap"), "as it is wanted"

    monkeypatch.setattr(TaskRun, "faster", faster)
    problem = regression()
    across = AcrossTasks(problem, SGD, Unrolled(2), mt.TaskBatching("auto"))
    ways = [
        across(sinusoids(tasks, shots=shots), SGD.init(problem)).details["batching"]
        for tasks, shots in ((1, 5), (5, 5), (6, 5), (1, 5), (6, 20))
    ]
    assert ways == ["loop", "vmap", "vmap", "loop", "vmap"]
    assert len(counted) == len(set(counted)) == 3
    resumed = AcrossTasks(problem, SGD, Unrolled(2), mt.TaskBatching("auto"))
    resumed.load_state_dict(across.state_dict())
    assert resumed.known.choices == across.known.choices
