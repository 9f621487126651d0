"""A training across tasks: what it does, resumes and refuses."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.hypergradients import EvoGrad, FirstOrder, Unrolled
from metatoolkit.training.task_run import TaskRun
from tests.training.across_tasks import largest_difference, listed, regression, sinusoids
from tests.training.assembled import Counted, same, tensors_of

SGD = mt.inner.SGD(lr=0.05)
BATCHES = [sinusoids(3, seed=seed) for seed in range(5)]


def trainer_of(problem, estimator=None, tasks="loop", lr=0.1, **options):
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=lr, momentum=0.9)
    return mt.MetaTrainer(problem, SGD, estimator or Unrolled(2), optimizer, tasks=tasks, **options)


def fit(trainer, steps, batches=BATCHES, **options):
    return trainer.fit(batches, steps=steps, progress=False, **options)


def test_each_step_moves_along_the_mean_over_its_tasks():
    problem = regression()
    trainer = trainer_of(problem)
    values = {name: p.detach().clone() for name, p in problem.meta.named_parameters()}
    first = mt.over_tasks(problem, SGD, Unrolled(2), BATCHES[0], "loop")
    metrics = fit(trainer, 1)
    moved = dict(problem.meta.named_parameters())
    expected = {name: value - 0.1 * first.gradient[name] for name, value in values.items()}
    assert largest_difference(moved, expected) < 1e-12
    assert metrics.keys() == {"valid_loss", "hypergradient_norm"}
    assert metrics["valid_loss"] == float(first.valid_loss)
    # The model holds the initial state that λ sets by now.
    assert largest_difference(dict(problem.model.named_parameters()), moved) == 0
    assert trainer.state.step == 0


def test_a_list_of_tasks_and_several_batches_for_a_move():
    problem, other = regression(), regression()
    fit(trainer_of(problem, accumulate=2), 1)
    (one, two), (three, four) = BATCHES[:2]
    joined = [*listed((one, two)), *listed((three, four))]
    fit(trainer_of(other), 1, [joined])
    pairs = zip(tensors_of(problem), tensors_of(other), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs)


def test_buffers_of_the_model_do_not_move():
    problem = regression(nn.BatchNorm1d(8).double())
    before = problem.buffers()
    fit(trainer_of(problem), 2)
    assert all(torch.equal(before[name], buffer) for name, buffer in problem.buffers().items())


def test_random_keys_differ_between_outer_steps():
    problem = regression(nn.Dropout(0.5))
    trainer = trainer_of(problem, lr=0.0)
    losses = []
    fit(trainer, 3, BATCHES[:1], log=lambda name, value, step: losses.append((name, value)))
    found = [value for name, value in losses if name == "valid_loss"]
    assert len(set(found)) == 3
    again = trainer_of(problem, lr=0.0)
    assert fit(again, 3, BATCHES[:1])["valid_loss"] == found[-1]


def test_evaluations_see_the_initial_state_in_the_model():
    problem, seen = regression(), []

    def evaluate(trainer):
        held = dict(problem.model.named_parameters())
        seen.append(largest_difference(held, dict(problem.meta.named_parameters())))
        loss = mt.over_tasks(problem, SGD, Unrolled(2), sinusoids(2, seed=9), "loop").valid_loss
        return {"held_out_loss": float(loss)}

    metrics = fit(trainer_of(problem), 4, evaluate=evaluate, evaluate_every=2)
    assert seen == [0.0, 0.0] and "held_out_loss" in metrics


@pytest.mark.parametrize("make", [lambda: Unrolled(2), lambda: EvoGrad(2, 0.1, 0.5)])
def test_a_resumed_training_is_the_same_bitwise(tmp_path, make):
    def problem_of():
        problem = regression(nn.Dropout(0.3))
        if isinstance(make(), EvoGrad):
            # What EvoGrad sees: λ within the training loss.
            meta = nn.Linear(1, 1).double()

            def train_loss(model, meta, batch):
                return meta((model(batch[0]) - batch[1]).square()).mean().square()

            problem = mt.BilevelProblem(problem.model, meta, train_loss, problem.valid_loss)
        return problem

    whole = problem_of()
    expected = fit(trainer_of(whole, make(), lr=0.01), 5, Counted(BATCHES))
    path = tmp_path / "c.pt"
    fit(trainer_of(problem_of(), make(), lr=0.01), 2, Counted(BATCHES), checkpoint=path)
    resumed = problem_of()
    trainer = trainer_of(resumed, make(), lr=0.01)
    found = fit(trainer, 5, Counted(BATCHES), checkpoint=path, resume=True)
    assert found == expected
    assert same(tensors_of(resumed), tensors_of(whole))


@pytest.mark.parametrize("tasks", ["auto", mt.TaskBatching("vmap", chunk=2)])
def test_side_by_side_it_is_resumed_bitwise_with_the_way_that_was_chosen(
    tmp_path, monkeypatch, tasks
):
    # Timings would tell by chance: side by side is faster at first, and slower after the resume.
    times = {"side by side first": [1.0, 1.0, 2.0, 2.0], "one by one first": [2.0, 2.0, 1.0, 1.0]}
    order = iter(times["side by side first"] * 2)

    def seconds(run, call):
        call()
        return next(order)

    monkeypatch.setattr(TaskRun, "_seconds", seconds)
    whole, resumed = regression(nn.Dropout(0.3)), regression(nn.Dropout(0.3))
    fit(trainer_of(whole, tasks=tasks), 4)
    path = tmp_path / "c.pt"
    first = trainer_of(resumed, tasks=tasks)
    fit(first, 2, checkpoint=path)
    order = iter(times["one by one first"])
    resumed = regression(nn.Dropout(0.3))
    trainer = trainer_of(resumed, tasks=tasks)
    fit(trainer, 4, checkpoint=path, resume=True)
    assert trainer.tasks.known.choices == first.tasks.known.choices
    assert same(tensors_of(resumed), tensors_of(whole))


def test_an_interrupted_step_is_taken_up():
    class Interrupted(Unrolled):
        calls = 0

        def estimate(self, *arguments):
            self.calls += 1
            # In the second of three tasks of the third step.
            if self.calls == 8:
                raise KeyboardInterrupt
            return super().estimate(*arguments)

    expected, problem = regression(nn.Dropout(0.3)), regression(nn.Dropout(0.3))
    fit(trainer_of(expected), 3)
    trainer = trainer_of(problem, Interrupted(2))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, 3)
    assert trainer.steps_done == 2
    fit(trainer, 3)
    assert same(tensors_of(problem), tensors_of(expected))


def test_a_checkpoint_of_another_kind_of_training_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    problem = regression()
    fit(trainer_of(problem), 1, checkpoint=path)
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=0.1, momentum=0.9)
    other = mt.MetaTrainer(problem, SGD, Unrolled(2), optimizer, reset_every=2)
    with pytest.raises(CheckpointError, match=r"written with tasks=AcrossTasks.* has tasks=None"):
        other.load_checkpoint(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_every": 2}, "reset_every=2 says when"),
        ({"keep_lookahead": True}, "keep_lookahead=True says when"),
        ({"meta_every": 3}, "meta_every=3 says when"),
        ({"order": "inner_first"}, "order='inner_first' says when"),
        ({"tasks": "both"}, r"\(tasks of MetaTrainer, .*\) is 'both'.* given to fit"),
    ],
)
def test_options_that_mean_nothing_across_tasks(options, message):
    with pytest.raises(ConfigurationError, match=message):
        trainer_of(regression(), **options)


def test_what_else_is_refused():
    problem = regression()
    with pytest.raises(ConfigurationError, match="estimator is None; accepted"):
        mt.MetaTrainer(problem, SGD, tasks=mt.TaskBatching())
    trainer = trainer_of(problem, FirstOrder(2))
    with pytest.raises(ConfigurationError, match="each batch of tasks has its query sets"):
        trainer.fit(BATCHES, BATCHES, 1, progress=False)
    trainer.base_step(listed(BATCHES[0])[0][0])
    with pytest.raises(ConfigurationError, match="train_batches is a tuple, as a single batch"):
        trainer_of(regression()).fit(sinusoids(), steps=1, progress=False)
    with pytest.raises(ConfigurationError, match="1 steps from the initial one"):
        fit(trainer, 1)


def test_no_warning_of_a_forgotten_start(recwarn):
    fit(trainer_of(regression()), 2)
    assert not recwarn.list
