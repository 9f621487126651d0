"""How many tasks run side by side: as many as fit in the memory that is available."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.diagnostics.measure import peak_memory
from metatoolkit.hypergradients import FirstOrder, Unrolled
from metatoolkit.training import task_memory
from metatoolkit.training.across_tasks import AcrossTasks
from metatoolkit.training.task_memory import TaskMemory
from metatoolkit.training.task_run import TaskRun
from tests.training.across_tasks import largest_difference, listed, regression, sinusoids

SGD = mt.inner.SGD(lr=0.05)
CPU = torch.device("cpu")
TASKS = 64


def mock_available(monkeypatch, memory):
    monkeypatch.setattr(task_memory, "available_memory", lambda device: memory)


def peak_of(problem, estimator, batch, batching):
    return peak_memory(lambda: mt.over_tasks(problem, SGD, estimator, batch, batching))


@pytest.mark.parametrize("estimator", [Unrolled(3), FirstOrder(3)])
def test_the_chosen_way_holds_what_may_be_taken(monkeypatch, estimator):
    monkeypatch.setattr(TaskRun, "_seconds", lambda run, call: float(len(call().gradient)))
    batch, alone = sinusoids(TASKS, shots=200), regression()
    whole = peak_of(alone, estimator, batch, "vmap")
    memory = whole // 2
    mock_available(monkeypatch, memory)
    problem = regression()
    # All that is tried before, too; half of it is taken, and the sum over the tasks beside.
    assert peak_of(problem, estimator, batch, "auto") <= 0.51 * memory
    found = mt.over_tasks(problem, SGD, estimator, batch)
    chunk = found.details["chunk"]
    assert found.details["batching"] == "vmap" and TASKS // 8 < chunk < TASKS // 3
    assert f"{chunk} at a time" in found.details["reason"]
    expected = mt.over_tasks(alone, SGD, estimator, batch, "loop")
    assert largest_difference(found.gradient, expected.gradient) < 1e-10
    # No more fit, or hardly any.
    more = mt.TaskBatching("vmap", chunk=chunk + chunk // 2)
    assert peak_of(alone, estimator, batch, more) > memory // 2


def test_a_chunk_that_was_given_stays_where_it_fits(monkeypatch):
    monkeypatch.setattr(TaskRun, "faster", lambda run: ("vmap", "as it is wanted"))
    batch, estimator = sinusoids(TASKS, shots=200), Unrolled(2)
    mock_available(monkeypatch, peak_of(regression(), estimator, batch, "vmap") // 2)
    for chunk, limited in ((4, False), (60, True)):
        batching = mt.TaskBatching("auto", chunk=chunk)
        found = mt.over_tasks(regression(), SGD, estimator, batch, batching)
        assert ("chunk" in found.details) is limited


@pytest.mark.parametrize("memory", [2**50, None])
def test_where_there_is_plenty_all_run_at_once(monkeypatch, memory):
    monkeypatch.setattr(TaskRun, "faster", lambda run: ("vmap", "as it is wanted"))
    mock_available(monkeypatch, memory)
    problem, batch = regression(), sinusoids(TASKS)
    found = mt.over_tasks(problem, SGD, Unrolled(2), batch)
    assert found.details["batching"] == "vmap" and "chunk" not in found.details
    expected = mt.over_tasks(problem, SGD, Unrolled(2), batch, "loop")
    assert largest_difference(found.gradient, expected.gradient) < 1e-10


@pytest.mark.parametrize("seen_by", ["one task", "two"])
def test_two_that_do_not_fit_do_not_run_side_by_side(monkeypatch, seen_by):
    if seen_by == "two":
        monkeypatch.setattr(TaskMemory, "refuses_two", lambda *_: None)
    batch, estimator = sinusoids(4, shots=200), Unrolled(3)
    pair = sinusoids(2, shots=200)
    mock_available(monkeypatch, int(1.5 * peak_of(regression(), estimator, pair, "vmap")))
    most, stacked = [], TaskRun._add_stacked

    def add_stacked(run, results, tasks, *rest):
        most.append(len(tasks))
        return stacked(run, results, tasks, *rest)

    monkeypatch.setattr(TaskRun, "_add_stacked", add_stacked)
    problem = regression()
    for _ in range(2):
        found = mt.over_tasks(problem, SGD, estimator, batch)
        assert found.details["batching"] == "loop"
        assert "MiB may be taken" in found.details["reason"]
    assert most == ([] if seen_by == "one task" else [2, 2])
    # What was asked for is done.
    assert mt.over_tasks(problem, SGD, estimator, batch, "vmap").details["batching"] == "vmap"


def test_each_kind_of_tasks_has_its_own_number(monkeypatch):
    monkeypatch.setattr(TaskRun, "faster", lambda run: ("vmap", "as it is wanted"))
    large, small = sinusoids(16, shots=400), sinusoids(16, shots=20)
    mock_available(monkeypatch, peak_of(regression(), Unrolled(2), large, "vmap"))
    most = {}
    stacked = TaskRun._add_stacked

    def add_stacked(run, results, tasks, *rest):
        shots = len(run._batch.task(tasks[0])[0][0][0])
        most[shots] = max(most.get(shots, 0), len(tasks))
        return stacked(run, results, tasks, *rest)

    monkeypatch.setattr(TaskRun, "_add_stacked", add_stacked)
    batch = [*listed(large), *listed(small)]
    found = mt.over_tasks(regression(), SGD, Unrolled(2), batch)
    assert most[20] == 16 and 4 <= most[400] <= 8 and found.details["chunk"] == most[400]


def test_what_was_measured_is_saved(monkeypatch):
    monkeypatch.setattr(TaskRun, "faster", lambda run: ("vmap", "as it is wanted"))
    problem, batch = regression(), sinusoids(TASKS, shots=200)
    mock_available(monkeypatch, peak_of(problem, Unrolled(2), batch, "vmap"))
    across = AcrossTasks(problem, SGD, Unrolled(2), "auto")
    found = across(batch, SGD.init(problem))
    resumed = AcrossTasks(problem, SGD, Unrolled(2), "auto")
    resumed.load_state_dict(across.state_dict())
    mock_available(monkeypatch, 0)
    again = resumed(batch, SGD.init(problem))
    assert again.details["chunk"] == found.details["chunk"] < TASKS
    assert largest_difference(again.gradient, found.gradient) == 0
    resumed.load_state_dict({"choices": {}})
    assert not resumed.known.fitting


PEAKS = {
    "in proportion": lambda tasks: 10 * tasks,
    "with a part that is shared": lambda tasks: 500 + tasks,
    "up to a budget": lambda tasks: min(20 * tasks, 300) + tasks,
    "two phases": lambda tasks: max(400 + tasks, 10 * tasks),
    "nearly nothing": lambda tasks: 0,
    "too much": lambda tasks: 2000 * tasks,
}


@pytest.mark.parametrize("name", PEAKS)
def test_the_number_of_tasks_that_fit(monkeypatch, name):
    limit, count = 1000, 10_000
    peak = PEAKS[name]
    measured = []

    def of_call(call, device):
        call()
        return peak(measured[-1])

    monkeypatch.setattr(task_memory, "peak_memory", of_call)
    mock_available(monkeypatch, 2 * limit)
    known = {}
    memory = TaskMemory(known, {CPU})
    fits, _ = memory.fitting("kind", measured.append, count)
    assert peak(min(fits, count)) <= limit or fits == 0
    assert fits >= count or peak(2 * fits + 2) > 0.75 * limit
    assert all(peak(tasks) <= 1.5 * limit for tasks in measured if tasks > 2)
    assert len(measured) <= 9
    # Known by then.
    assert TaskMemory(known, {CPU}).fitting("kind", measured.clear, count)[0] == fits


def test_many_tasks_of_a_small_network_run_side_by_side():
    """By their real times, which differ several times over."""
    found = mt.over_tasks(regression(), SGD, Unrolled(3), sinusoids(TASKS))
    assert found.details["batching"] == "vmap"
    assert f"{TASKS} tasks took" in found.details["reason"]
