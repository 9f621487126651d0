"""Schedules that black boxes search by whole trainings, at a budget of inner steps."""

import math
import sys

import pytest

from applications.schedule_search import black_box
from applications.schedule_search.experiment import assemble, experiment, shared_values
from metatoolkit import records
from tests.applications.test_schedule_search import merged


@pytest.mark.parametrize("method", ["random", "tpe", "cma_es"])
def test_black_boxes_take_trainings_as_long_as_the_budget_lasts(method, monkeypatch, capfd):
    tried = []
    real = black_box.place

    def place(meta, starts):
        tried.append(starts["learning_rate"]["start"])
        real(meta, starts)

    monkeypatch.setattr(black_box, "place", place)
    updates = {"progress": False, "method": method, "seed": 2, "steps": 50}
    run = experiment.run(named_configs=["smoke"], config_updates=updates)
    # Five trainings of ten steps, and the best so far at ten points.
    assert run.result["inner_steps"] == 50
    assert "step/s" not in capfd.readouterr().err
    assert len(set(map(tuple, tried[:5]))) == 5 and set(map(tuple, tried)) == {
        *map(tuple, tried[:5])
    }
    assert run.info["schedules"]["lr"] == pytest.approx(tried[-1])
    assert all(1e-3 <= rate <= 1.0 for rates in tried for rate in rates)
    with records.connect() as database:
        spent = database[records.run_id(run)].metrics["inner_steps"]
        assert spent.tolist() == [5.0 * part for part in range(11)]


@pytest.mark.parametrize("method", ["hyperband", "dehb"])
def test_some_black_boxes_try_more_schedules_by_shorter_trainings(method, monkeypatch):
    taken = []
    module = sys.modules["applications.schedule_search.experiment"]
    real = module.roll_out

    def roll_out(problem, inner, state, meta, batches):
        schedule = problem.meta["lr"]
        taken.append((len(batches), schedule.horizon, schedule.shares))
        return real(problem, inner, state, meta, batches)

    monkeypatch.setattr(module, "roll_out", roll_out)
    updates = {"progress": False, "method": method, "seed": 2, "steps": 100, "horizon": 20}
    updates["learning_rate"] = {"shares": 2}
    run = experiment.run(named_configs=["smoke"], config_updates=updates)
    assert run.result["inner_steps"] == 100
    # The one before the search, those of the search, and ten that are tested.
    searched = taken[1:-10]
    assert {steps for steps, *_ in searched} <= {2, 6, 20} and len(searched) > 5
    assert sum(steps for steps, *_ in searched) <= 100
    # The course of the rates is as long as the training.
    assert all(steps == horizon and shares == 2 for steps, horizon, shares in taken)
    assert all(steps == 20 for steps, *_ in [taken[0], *taken[-10:]])


def test_a_training_of_a_black_box_that_diverges_is_worse_than_any_other():
    config = merged("smoke", method="random", steps=20)
    assembly = assemble(config)
    meta, losses = assembly.trainer.problem.meta, iter([math.nan, 2.0])

    class Record:
        info = {}

        def log_scalar(self, *entry):
            pass

    rates = []

    def loss(starts, steps, number):
        assert steps == config["horizon"]
        rates.append(starts["learning_rate"]["start"])
        return next(losses)

    black_box.run(Record(), config, meta, loss, lambda: {"test_accuracy": 0.5})
    assert shared_values(meta)["lr"] == pytest.approx(rates[1])
