"""Tasks side by side have the numbers of one task after the other, or are refused."""

import random

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import metatoolkit as mt
from metatoolkit.errors import LabelError, NonFiniteError, UnsupportedError
from metatoolkit.hypergradients import (
    SAMA,
    FirstOrder,
    ForwardMode,
    Implicit,
    Nystrom,
    OneStep,
    Reptile,
    Unrolled,
)
from metatoolkit.testing import bank
from metatoolkit.training.across_tasks import AcrossTasks
from metatoolkit.training.stacked_tasks import StackedTasks
from metatoolkit.training.task_run import TaskRun
from tests.training.across_tasks import (
    TASKS,
    largest_difference,
    listed,
    regression,
    sinusoids,
    squared_error,
)

SGD = mt.inner.SGD(lr=0.05)
CLIPPED = mt.inner.Clipped(SGD, max_norm=0.1)
ESTIMATORS = {
    "Unrolled(3)": lambda: Unrolled(3),
    "Unrolled, graphs kept": lambda: Unrolled(3, keep_graphs=3),
    "Unrolled, mixed mode": lambda: Unrolled(3, product="forward_over_reverse"),
    "Unrolled, tree": lambda: Unrolled(5, checkpoint="tree", arity=2),
    "FirstOrder": lambda: FirstOrder(2),
    "OneStep": lambda: OneStep(),
    "ForwardMode": lambda: ForwardMode(2),
    "Reptile": lambda: Reptile(3),
}
LEARNERS = {
    "SGD": SGD,
    "Nesterov": mt.inner.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "groups": mt.inner.SGD(lr=0.05, groups=[{"params": ["*bias"], "lr": 0.2}]),
    "Adam": mt.inner.Adam(lr=0.01),
    "RMSprop": mt.inner.RMSprop(lr=0.01, centered=True),
    "NAdam": mt.inner.NAdam(lr=0.01),
}
LAYERS = {
    "plain": lambda: (),
    "dropout": lambda: (nn.Dropout(0.4),),
    "BatchNorm": lambda: (nn.BatchNorm1d(8).double(),),
}


def assert_same(problem, inner, estimator, tasks, batching="vmap", ran="vmap", **options):
    loop = mt.over_tasks(problem, inner, estimator, tasks, "loop", keep_states=True, **options)
    found = mt.over_tasks(problem, inner, estimator, tasks, batching, keep_states=True, **options)
    assert found.details["batching"] == ran
    assert largest_difference(found.gradient, loop.gradient) < 1e-10
    losses = found.details["task_losses"], loop.details["task_losses"]
    assert torch.allclose(*losses, rtol=0, atol=1e-10)
    assert torch.allclose(found.valid_loss, loop.valid_loss, rtol=0, atol=1e-10)
    assert found.cost == loop.cost
    assert len(found.details["states"]) == len(loop.details["states"])
    for one, other in zip(found.details["states"], loop.details["states"], strict=True):
        assert (one.key, one.step, one.missed) == (other.key, other.step, other.missed)
        assert largest_difference(one.parameters, other.parameters) < 1e-10
        for name, buffer in one.buffers.items():
            assert torch.allclose(buffer, other.buffers[name], rtol=0, atol=1e-10)
        for slot, values in one.optimizer.items():
            assert largest_difference(values, other.optimizer[slot]) < 1e-10
    return found


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_numbers_are_those_of_the_loop_for_each_estimator(name, layers):
    problem = regression(*LAYERS[layers]())
    before = problem.buffers()
    assert_same(problem, SGD, ESTIMATORS[name](), sinusoids(), seed=3)
    assert all(torch.equal(before[n], buffer) for n, buffer in problem.buffers().items())


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_numbers_are_those_of_the_loop_for_each_learner(learner):
    problem = regression(nn.Dropout(0.4))
    assert_same(problem, LEARNERS[learner], Unrolled(3), sinusoids())


@pytest.mark.parametrize("name", ["small_net", "learned_rates", "inside_model", "tied", "adapted"])
def test_wherever_the_meta_parameters_act(name):
    case = getattr(bank, name)()
    batches = case.batches(6)
    tasks = [(batches[n], batches[n + 3]) for n in range(3)]
    assert_same(case.problem, case.inner, Unrolled(2), tasks)


@pytest.mark.parametrize("chunk", [1, 3, TASKS, 99])
def test_some_tasks_at_a_time(chunk):
    batching = mt.TaskBatching("vmap", chunk=chunk)
    assert_same(regression(nn.Dropout(0.4)), SGD, Unrolled(2), sinusoids(), batching)


def test_lists_of_tasks_and_a_batch_for_each_step():
    batch = sinusoids()
    (inputs, targets), query = batch
    steps = [(inputs[:, :2], targets[:, :2]), (inputs[:, 2:], targets[:, 2:])]
    assert_same(regression(), SGD, Unrolled(2), (steps, query))
    found = assert_same(regression(), SGD, Unrolled(2), listed(batch))
    stacked = mt.over_tasks(regression(), SGD, Unrolled(2), batch, "vmap")
    assert largest_difference(found.gradient, stacked.gradient) < 1e-12
    tasks = [([(a[:2], b[:2]), (a[2:], b[2:])], q) for (a, b), q in listed(batch)]
    assert_same(regression(), SGD, Unrolled(2), tasks)


def test_evaluation_mode_and_dropout_that_is_switched_on_later():
    problem = regression(nn.Dropout(0.4))
    problem.model.eval()
    assert_same(problem, SGD, Unrolled(2), sinusoids())
    problem.model.train()
    assert_same(problem, SGD, Unrolled(2), sinusoids())


class Reading(torch.autograd.Function):
    @staticmethod
    def forward(inputs):
        return inputs.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient

    generate_vmap_rule = True


def branching(model, meta, batch):
    loss = squared_error(model, meta, batch)
    return loss if loss > 1 else 2 * loss


def drawing(model, meta, batch):
    return squared_error(model, meta, batch) * (1 + random.random())


def shuffled(model, meta, batch):
    order = torch.randperm(len(batch[0]))[:3]
    return squared_error(model, meta, (batch[0][order], batch[1][order]))


def custom(model, meta, batch):
    return Reading.apply(squared_error(model, meta, batch))


def recomputed(model, meta, batch):
    return checkpoint(squared_error, model, meta, batch, use_reentrant=False)


def penalized(model, meta, batch):
    inputs = batch[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
    return squared_error(model, meta, batch) + slope.square().mean()


OBSTACLES = {
    "estimator": (SAMA(), SGD, squared_error, "SAMA does not say"),
    "solver that draws": (Implicit(Nystrom(2), fresh=False), SGD, squared_error, "Implicit does"),
    "learner": (Unrolled(1), CLIPPED, squared_error, "Clipped does not say"),
    "branches": (Unrolled(1), SGD, branching, "torch.vmap cannot run it: .*data-dependent"),
    "Python": (Unrolled(1), SGD, drawing, "train_loss draws from the random generators of"),
    "permutation": (Unrolled(1), SGD, shuffled, "randperm.* not told apart by task"),
    "custom": (Unrolled(1), SGD, custom, "train_loss runs custom autograd functions"),
    "checkpoint": (Unrolled(1), SGD, recomputed, "train_loss runs custom|torch.vmap cannot"),
    "gradient": (Unrolled(1), SGD, penalized, "train_loss takes gradients inside|cannot run"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_run_side_by_side_is_refused_or_looped(name):
    estimator, inner, loss, message = OBSTACLES[name]
    problem = regression(loss=loss)
    tasks = sinusoids()
    if name in ("estimator", "solver that draws"):
        # Which sees no initial state.
        case = bank.small_net()
        problem, tasks = case.problem, list(zip(case.batches(2), case.batches(2), strict=True))
    with pytest.raises(UnsupportedError, match=f"cannot run side by side: .*({message})"):
        mt.over_tasks(problem, inner, estimator, tasks, "vmap")
    loop = mt.over_tasks(problem, inner, estimator, tasks, "loop")
    found = mt.over_tasks(problem, inner, estimator, tasks)
    assert found.details["batching"] == "loop"
    assert "batching='loop'" in found.details["reason"]
    assert largest_difference(found.gradient, loop.gradient) == 0


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_tasks_of_equal_shapes_run_side_by_side_and_others_alone(monkeypatch, layers, chunk):
    """In a list of three shapes, in turns, of which one occurs once."""
    problem = regression(*LAYERS[layers]())
    few, many = listed(sinusoids(3)), listed(sinusoids(2, shots=2, queries=3, seed=1))
    single = listed(sinusoids(1, shots=4, queries=2, seed=2))
    tasks = [few[0], many[0], few[1], *single, many[1], few[2]]
    ran = []
    alone = TaskRun._alone
    monkeypatch.setattr(TaskRun, "_alone", lambda run, task: ran.append(task) or alone(run, task))
    assert_same(problem, SGD, Unrolled(3), tasks, mt.TaskBatching("vmap", chunk))
    # All of the loop, two of either shape to compare, and the one that is like no other.
    assert ran == [*range(6), 0, 2, 1, 4, 3]


def test_tasks_that_are_all_unlike_run_alone():
    problem = regression()
    tasks = [*listed(sinusoids(1)), *listed(sinusoids(1, shots=2))]
    why = "no two tasks are alike; pad_tasks makes those so that differ in their examples alone"
    for batching in ("auto", "vmap"):
        found = assert_same(problem, SGD, Unrolled(2), tasks, batching, ran="loop")
        assert found.details["reason"] == why


def test_numbers_that_differ_are_found_out():
    class Summing(Reptile):
        adds_up = False

    with pytest.raises(UnsupportedError, match="differ from those of one task after the other"):
        mt.over_tasks(regression(), SGD, Summing(2), sinusoids(), "vmap")
    assert mt.over_tasks(regression(), SGD, Summing(2), sinusoids()).details["batching"] == "loop"


@pytest.mark.parametrize("batching", ["vmap", "auto"])
def test_a_loss_may_begin_to_draw(batching, monkeypatch):
    monkeypatch.setattr(TaskRun, "faster", lambda run: ("vmap", "as it is wanted"))
    dropout = nn.Dropout(0.0)
    problem, tasks = regression(dropout), sinusoids()
    across = AcrossTasks(problem, SGD, Unrolled(2), mt.TaskBatching(batching))
    for probability in (0.0, 0.4):
        dropout.p = probability
        found = across(tasks, SGD.init(problem))
        assert found.details["batching"] == "vmap"
        expected = mt.over_tasks(problem, SGD, Unrolled(2), tasks, "loop")
        assert largest_difference(found.gradient, expected.gradient) < 1e-10


@pytest.mark.parametrize("batching", ["vmap", "auto"])
@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("part", [0, 1])
def test_nan_in_one_task_names_the_task(batching, number, part):
    tasks, problem = listed(sinusoids()), regression()
    # Tasks of this kind are known by then.
    mt.over_tasks(problem, SGD, Unrolled(1), tasks, batching)
    inputs, targets = tasks[number][part]
    changed = (inputs, torch.full_like(targets, float("nan")))
    pair = (changed, tasks[number][1]) if part == 0 else (tasks[number][0], changed)
    tasks[number] = pair
    with pytest.raises(NonFiniteError, match=f"task {number} of the batch"):
        mt.over_tasks(problem, SGD, Unrolled(1), tasks, batching)


def test_a_first_batch_with_nan_says_nothing_of_the_faster_way(monkeypatch):
    monkeypatch.setattr(TaskRun, "_seconds", lambda run, call: call() and 1.0)
    problem, tasks = regression(), listed(sinusoids())
    inputs, targets = tasks[3][0]
    broken = [*tasks[:3], ((inputs, targets / 0), tasks[3][1])]
    with pytest.raises(NonFiniteError, match="task 3 of the batch"):
        mt.over_tasks(problem, SGD, Unrolled(1), broken)
    found = mt.over_tasks(problem, SGD, Unrolled(1), tasks)
    assert found.details["batching"] == "vmap"


def test_a_label_without_a_class_names_the_task():
    model = nn.Linear(2, 3)
    meta = mt.metaparameters.Initialization(model)
    entropy = mt.losses.cross_entropy
    problem = mt.BilevelProblem(model, meta, entropy, entropy, initial=type(meta).values)
    inputs, labels = torch.randn(4, 4, 2), torch.zeros(4, 4, dtype=torch.int64)
    batch = (inputs, labels), (inputs, labels)
    mt.over_tasks(problem, SGD, Unrolled(1), batch, "vmap")
    labels[2, 1] = 3
    with pytest.raises(LabelError) as caught:
        mt.over_tasks(problem, SGD, Unrolled(1), batch, "vmap")
    assert caught.value.__notes__ == ["in task 2 of the batch"]


class Large(Unrolled):
    """Runs out of memory where more than two tasks run side by side."""

    def estimate(self, problem, inner, state, train_batches, valid_batch):
        if isinstance(problem, StackedTasks) and len(next(iter(state.parameters.values()))) > 2:
            raise torch.OutOfMemoryError("no memory left")
        return super().estimate(problem, inner, state, train_batches, valid_batch)


def test_what_does_not_fit_runs_one_by_one():
    found = mt.over_tasks(regression(), SGD, Large(2), sinusoids())
    assert found.details["batching"] == "loop" and "no memory left" in found.details["reason"]
    loop = mt.over_tasks(regression(), SGD, Large(2), sinusoids(), "loop")
    assert largest_difference(found.gradient, loop.gradient) == 0
    with pytest.raises(torch.OutOfMemoryError):
        mt.over_tasks(regression(), SGD, Large(2), sinusoids(), "vmap")
    mt.over_tasks(regression(), SGD, Large(2), sinusoids(), mt.TaskBatching("vmap", chunk=2))
