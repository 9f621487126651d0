"""The hypergradient over tasks is the mean of those of the tasks."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import metatoolkit as mt
from metatoolkit.errors import (
    ConfigurationError,
    LabelError,
    NonFiniteError,
    UnsupportedError,
    UnusedMetaParameterError,
)
from metatoolkit.hypergradients import (
    SOBA,
    ConjugateGradient,
    FirstOrder,
    Implicit,
    PersistentES,
    Unrolled,
)
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.testing import bank
from tests.hypergradients.registry import ESTIMATORS, learned_as_it_takes
from tests.training.across_tasks import (
    TASKS,
    largest_difference,
    listed,
    regression,
    sinusoids,
    squared_error,
)

SGD = mt.inner.SGD(lr=0.05)
NOT_OVER_TASKS = {"SOBA", "PersistentES", "NoiseReuseES", "Implicit, MINRES"}
INITIAL = ("FirstOrder", "Leap", "Reptile", "Unrolled(3), first order")


def one_by_one(problem, inner, make, tasks, seed=0):
    """The results of calls with a new estimator each, from the keys that are documented."""
    start = inner.init(problem, seed)
    results = []
    for number, (support, query) in enumerate(tasks):
        estimator = make()
        state = start.replaced(key=fold_in(start.key, Stream.TASK, number))
        results.append(estimator(problem, inner, state, [support] * estimator.horizon, query))
    return results


def mean_of(results):
    names = results[0].gradient
    return {n: torch.stack([r.gradient[n] for r in results]).mean(0) for n in names}


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - NOT_OVER_TASKS))
def test_it_is_the_mean_of_calls_for_each_estimator(name):
    make = ESTIMATORS[name]
    # Some learn initial states alone.
    case = bank.initialized() if name in INITIAL else bank.small_net()
    inner = learned_as_it_takes(case, make()).inner
    batches = case.batches(6)
    tasks = [(batches[n], batches[n + 3]) for n in range(3)]
    found = mt.over_tasks(case.problem, inner, make(), tasks, "loop", seed=5)
    results = one_by_one(case.problem, inner, make, tasks, seed=5)
    assert largest_difference(found.gradient, mean_of(results)) < 1e-12
    losses = torch.stack([result.valid_loss for result in results])
    assert torch.equal(found.details["task_losses"], losses)
    assert torch.equal(found.valid_loss, losses.mean())
    for kind in ("forward", "backward", "jvp", "hvp"):
        assert getattr(found.cost, kind) == sum(getattr(r.cost, kind) for r in results)


@pytest.mark.parametrize("name", sorted(NOT_OVER_TASKS))
def test_what_is_carried_from_task_to_task_is_refused(name):
    case = bank.small_net()
    tasks = [(case.batches(1)[0], case.valid_batch)]
    with pytest.raises(UnsupportedError, match="belongs to one inner problem"):
        mt.over_tasks(case.problem, case.inner, ESTIMATORS[name](), tasks)


def test_it_is_the_gradient_of_maml():
    problem, batch = regression(), sinusoids()

    def loss(parameters, inputs, targets):
        outputs = functional_call(problem.model, parameters, (inputs,))
        return (outputs - targets).square().mean()

    def mean_loss(initial):
        total = 0.0
        for (inputs, targets), query in listed(batch):
            parameters = initial
            for _ in range(3):
                slope = grad(loss)(parameters, inputs, targets)
                parameters = {n: p - 0.05 * slope[n] for n, p in parameters.items()}
            total = total + loss(parameters, *query)
        return total / TASKS

    initial = {name: tensor.detach() for name, tensor in problem.meta.named_parameters()}
    expected, value = torch.func.grad_and_value(mean_loss)(initial)
    for tasks in (batch, listed(batch)):
        found = mt.over_tasks(problem, SGD, Unrolled(3), tasks, "loop")
        assert largest_difference(found.gradient, expected) < 1e-12
        assert found.valid_loss == pytest.approx(float(value), rel=1e-12)


def test_tasks_of_unequal_sizes_each_count_the_same():
    problem = regression()
    tasks = [*listed(sinusoids(2)), *listed(sinusoids(1, shots=2, queries=1, seed=3))]
    found = mt.over_tasks(problem, SGD, Unrolled(2), tasks)
    expected = mean_of(one_by_one(problem, SGD, lambda: Unrolled(2), tasks))
    assert largest_difference(found.gradient, expected) < 1e-12


def test_dropout_differs_between_tasks_and_seeds_and_is_reproduced():
    problem = regression(nn.Dropout(0.5))
    (task,) = listed(sinusoids(1))

    def losses(seed):
        result = mt.over_tasks(problem, SGD, Unrolled(1), [task] * 3, "loop", seed=seed)
        return result.details["task_losses"].tolist()

    assert len({*losses(0), *losses(1)}) == 6
    assert losses(0) == losses(0)


def test_each_task_has_buffers_of_its_own_and_those_of_the_model_stay():
    problem = regression(nn.BatchNorm1d(8).double())
    before = copy.deepcopy(problem.buffers())
    found = mt.over_tasks(problem, SGD, Unrolled(2), sinusoids(), "loop", keep_states=True)
    means = [state.buffers["model.1.running_mean"] for state in found.details["states"]]
    assert len(means) == TASKS and not torch.allclose(means[0], means[1])
    assert [int(s.buffers["model.1.num_batches_tracked"]) for s in found.details["states"]] == [
        2
    ] * TASKS
    assert all(torch.equal(before[name], buffer) for name, buffer in problem.buffers().items())
    assert found.state.step == 0 and torch.equal(
        found.state.buffers["model.1.running_mean"], before["model.1.running_mean"]
    )
    # The state that a task reached is that of its own steps.
    (inputs, targets), _ = listed(sinusoids())[1]
    alone = found.details["states"][1].parameters
    state = SGD.init(problem)
    for _ in range(2):
        state, _ = SGD.step(problem, state, problem.meta_parameters(), (inputs, targets))
    assert largest_difference(alone, state.parameters) < 1e-12


def test_states_are_left_out_unless_they_are_asked_for():
    found = mt.over_tasks(regression(), SGD, Unrolled(1), sinusoids(), "loop")
    assert set(found.details) == {"task_losses", "batching"}
    assert found.details["batching"] == "loop"


@pytest.mark.parametrize("make", [lambda: Unrolled(1), lambda: FirstOrder(1)])
@pytest.mark.parametrize("part", [0, 1])
def test_nan_in_one_task_names_the_task(make, part):
    tasks = listed(sinusoids())
    inputs, targets = tasks[2][part]
    changed = (inputs, torch.full_like(targets, float("nan")))
    tasks[2] = (changed, tasks[2][1]) if part == 0 else (tasks[2][0], changed)
    with pytest.raises(NonFiniteError, match="task 2 of the batch"):
        mt.over_tasks(regression(), SGD, make(), tasks)


def test_another_error_tells_in_which_task_it_was():
    model = nn.Linear(2, 3)
    meta = mt.metaparameters.Initialization(model)
    entropy = mt.losses.cross_entropy
    problem = mt.BilevelProblem(model, meta, entropy, entropy, initial=type(meta).values)
    inputs, labels = torch.randn(2, 4, 2), torch.zeros(2, 4, dtype=torch.int64)
    labels[1, 2] = 3
    with pytest.raises(LabelError) as caught:
        mt.over_tasks(problem, SGD, Unrolled(1), ((inputs, labels), (inputs, labels)))
    assert caught.value.__notes__ == ["in task 1 of the batch"]


@pytest.mark.parametrize("estimator", [Unrolled(2), FirstOrder(2)])
def test_a_task_whose_outer_loss_is_a_constant_is_told(estimator):
    problem = regression()

    def judged(model, meta, batch):
        loss = squared_error(model, meta, batch)
        return loss if len(batch[0]) > 1 else torch.zeros(())

    problem.valid_loss = judged
    tasks = listed(sinusoids())
    support, query = tasks[1]
    tasks[1] = support, tuple(part[:1] for part in query)
    told = r"valid_loss has no gradient in any inner parameter either .*leave out a task"
    with pytest.raises(UnusedMetaParameterError, match=told) as caught:
        mt.over_tasks(problem, mt.inner.SGD(lr=0.1), estimator, tasks)
    assert caught.value.__notes__ == ["in task 1 of the batch"]


def test_parameters_without_entries_are_no_obstacle():
    problem = regression(nn.Linear(8, 8))
    problem.model.register_parameter("none", nn.Parameter(torch.empty(0, 2, dtype=torch.float64)))
    meta = mt.metaparameters.Initialization(problem.model)

    def loss(model, meta, batch):
        return squared_error(model, meta, batch) + model.none.sum()

    problem = mt.BilevelProblem(problem.model, meta, loss, loss, initial=type(meta).values)
    arguments = problem, mt.inner.SGD(lr=0.1), Unrolled(2), sinusoids()
    loop, vmap = (mt.over_tasks(*arguments, way).gradient for way in ("loop", "vmap"))
    assert loop.pop("none").shape == vmap.pop("none").shape == (0, 2)
    assert largest_difference(loop, vmap) < 1e-12


def test_arguments_that_are_something_else():
    problem, batch = regression(), sinusoids()
    with pytest.raises(ConfigurationError, match=r" is 'both'; accepted: 'vmap', 'loop'"):
        mt.over_tasks(problem, SGD, Unrolled(1), batch, "both")
    with pytest.raises(ConfigurationError, match=r"estimator is the class Unrolled; pass an"):
        mt.over_tasks(problem, SGD, Unrolled, batch)
    with pytest.raises(ConfigurationError, match="inner is the class SGD"):
        mt.over_tasks(problem, mt.inner.SGD, Unrolled(1), batch)


def test_which_estimators_carry_something():
    assert SOBA().carries and Implicit(ConjugateGradient(), warm_start=True).carries
    assert not Implicit(ConjugateGradient()).carries and not Unrolled().carries
    assert PersistentES(2, 2, 0.1).windows
