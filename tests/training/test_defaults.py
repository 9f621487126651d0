"""What a trainer does where nothing else is asked for, and what it keeps account of."""

import itertools
import time

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import CheckpointError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.randomness import fold_in
from metatoolkit.testing import bank
from tests.training.assembled import fit, same, tensors_of, trainer_of


def test_lambda_moves_first_and_in_every_step():
    case, asked = bank.small_net(), bank.small_net()
    fit(trainer_of(case), case, 4)
    options = {"order": "meta_first", "meta_every": 1, "accumulate": 1, "seed": 0}
    fit(trainer_of(asked, **options, keep_lookahead=False, reset_every=None), asked, 4)
    assert same(tensors_of(case.problem), tensors_of(asked.problem))
    trainer = trainer_of(bank.small_net())
    assert trainer.state.key == case.inner.init(case.problem, seed=0).key
    later = bank.small_net()
    fit(trainer_of(later, order="inner_first"), later, 4)
    assert not same(tensors_of(case.problem), tensors_of(later.problem))


def test_nothing_has_been_done_at_first():
    trainer = trainer_of(bank.small_net(), None)
    assert trainer.meta_update is None and trainer.watch is None and trainer.start is None
    assert (trainer.steps_done, trainer.resets_done, trainer.seconds) == (0, 0, 0.0)
    assert trainer.history == [] and trainer.unreported == {} and trainer.unfinished is None
    assert trainer.evaluation_due is False and trainer.device is None
    assert trainer.begin_step().places == {}


def test_every_step_is_reported_and_the_last_one_evaluated_and_stored(tmp_path, monkeypatch):
    case, logged, evaluated, written = bank.small_net(), [], [], []
    trainer = trainer_of(case)
    save = mt.MetaTrainer.save_checkpoint
    monkeypatch.setattr(
        mt.MetaTrainer,
        "save_checkpoint",
        lambda self, *given: written.append(self.steps_done) or save(self, *given),
    )
    options = {
        "log": lambda *entry: logged.append(entry),
        "evaluate": lambda trainer: evaluated.append(trainer.steps_done) or {},
        "checkpoint": tmp_path / "c.pt",
    }
    fit(trainer, case, 3, **options)
    assert [step for name, _, step in logged if name == "train_loss"] == [1, 2, 3]
    assert evaluated == [3] and written == [3]
    fit(trainer, case, 8, **options, evaluate_every=2, checkpoint_every=3)
    assert evaluated == [3, 4, 6, 8] and written == [3, 6, 8]
    # A file that is there is not read unless that is asked for.
    again = bank.small_net()
    fresh = trainer_of(again)
    fit(fresh, again, 1, checkpoint=tmp_path / "c.pt")
    assert fresh.steps_done == 1
    bare = bank.small_net()
    assert trainer_of(bare, None).fit(bare.train_batches, progress=False).keys() == {"train_loss"}


def test_a_bar_is_shown_unless_it_is_declined(capsys):
    case = bank.small_net()
    trainer = trainer_of(case)
    trainer.fit(case.train_batches, [case.valid_batch], 3)
    told = capsys.readouterr().err
    assert "training" in told and "train_loss" in told and "2/3" in told
    assert "hypergradient_norm" not in told
    # The bar is wiped out at the end.
    assert told.endswith("\r")
    fit(trainer, case, 5)
    assert capsys.readouterr().err == ""


def test_the_time_of_the_steps_is_added_up(monkeypatch):
    case = bank.small_net()
    trainer = trainer_of(case)
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    fit(trainer, case, 3)
    assert trainer.seconds == 3.0
    fit(trainer, case, 5)
    assert trainer.seconds == 5.0


def test_the_training_loss_is_the_mean_over_the_base_steps():
    case = bank.small_net()
    state, losses = case.inner.init(case.problem, seed=0), []
    for batch in case.train_batches[:2]:
        state, loss = case.inner.step(case.problem, state, case.problem.meta_parameters(), batch)
        losses.append(float(loss))
    last = fit(trainer_of(case, Unrolled(2), order="inner_first"), case, 1)
    assert last["train_loss"] == pytest.approx(sum(losses) / 2)
    case = bank.small_net()
    # Where the look-ahead is kept, there are no base steps to tell of.
    kept = fit(trainer_of(case, Unrolled(2), keep_lookahead=True), case, 1)
    assert kept.keys() == {"valid_loss", "hypergradient_norm"}


def test_numbers_of_episodes_are_those_of_every_version():
    case = bank.ridge()
    trainer = trainer_of(case, reset_every=1)
    keys = []
    for steps in (1, 2, 3):
        fit(trainer, case, steps)
        keys.append(trainer.state.key)
    start = case.inner.init(case.problem, seed=0).key
    assert keys == [start, fold_in(start, -8, 1), fold_in(start, -8, 2)]


def test_streams_that_are_no_longer_given_are_closed():
    case = bank.small_net()
    trainer = trainer_of(case, None)
    valid = [case.valid_batch]
    trainer.fit(case.train_batches, valid, 1, progress=False)
    assert set(trainer._streams) == {"train_batches", "valid_batches"}
    trainer.fit(case.train_batches, None, 2, progress=False)
    assert set(trainer._streams) == {"train_batches"}


def test_a_model_that_cannot_take_over_the_state_does_not_hide_the_error(monkeypatch):
    case = bank.small_net()
    trainer = trainer_of(case, None)

    def full(state):
        raise RuntimeError("no room")

    monkeypatch.setattr(case.problem, "load", full)
    with pytest.raises(ZeroDivisionError) as caught:
        fit(trainer, case, 2, log=lambda *_: 1 / 0)
    assert caught.value.__notes__ == [
        "the model could not take over the state that was reached: no room"
    ]


def test_a_device_takes_the_modules_along():
    case = bank.small_net()
    trainer = trainer_of(case, None, device="meta")
    assert case.problem.devices() == {torch.device("meta")}
    assert {tensor.device.type for tensor in trainer.state.tensors()} == {"meta"}
    assert trainer.place(torch.ones(2)).device.type == "meta"


class Restarted(Unrolled):
    """Counts how often it was told to begin anew."""

    restarts = 0

    def restart(self):
        self.restarts += 1
        super().restart()


def test_an_estimator_begins_anew_with_its_trainer():
    case = bank.small_net()
    trainer = trainer_of(case, Restarted(1), seed=4)
    assert trainer.estimator.restarts == 1 and trainer.seed == 4
    fit(trainer, case, 2)
    assert trainer.estimator.restarts == 1


class Unreadable:
    """Batches whose state cannot be read again."""

    def __iter__(self):
        yield from [None]

    def state_dict(self):
        return {"place": range(3)}

    def load_state_dict(self, saved):
        pass


def test_what_cannot_be_stored_is_told_before_the_first_step(tmp_path):
    case = bank.small_net()
    trainer = trainer_of(case, None)
    with pytest.raises(CheckpointError, match=r"^streams\.train_batches\.batches\.place is a"):
        trainer.fit(Unreadable(), steps=2, checkpoint=tmp_path / "c.pt", progress=False)
    assert trainer.steps_done == 0 and trainer.state.step == 0


@pytest.mark.parametrize("evaluate", [None, lambda trainer: {"score": 1.0}])
def test_no_evaluation_is_due_after_the_last(evaluate):
    case = bank.small_net()
    trainer = trainer_of(case)
    fit(trainer, case, 3, evaluate=evaluate, evaluate_every=2)
    assert trainer.evaluation_due is False
