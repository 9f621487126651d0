"""Trainings that are interrupted, or fail."""

import os
import signal

import pytest

from metatoolkit.errors import NonFiniteError
from metatoolkit.hypergradients import EvoGrad, Unrolled
from metatoolkit.testing import bank
from tests.training.assembled import fit, same, tensors_of, trainer_of


class Failing:
    """Raises at its n-th call, and else does what it stands for."""

    def __init__(self, at, function, error=KeyboardInterrupt):
        self.at, self.function, self.error, self.calls = at, function, error, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == self.at:
            raise self.error("stopped here")
        return self.function(*arguments)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_exception_within_a_step_leaves_the_model_at_what_was_reached(error):
    case, reached = bank.small_net(), bank.small_net()
    fit(trainer_of(reached, None), reached, 4)
    # One evaluation for each base step, the fifth of which fails.
    case.problem.train_loss = Failing(5, case.problem.train_loss, error)
    trainer = trainer_of(case, None)
    with pytest.raises(error, match="stopped here"):
        fit(trainer, case, 9)
    assert trainer.steps_done == 4
    assert same(tensors_of(case.problem), tensors_of(reached.problem))


class Endless:
    """Batches with a place, which fail at the n-th of them."""

    def __init__(self, batches, at=None):
        self.batches, self.at, self.place = batches, at, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == self.at:
            self.at = None
            raise KeyboardInterrupt("stopped here")
        self.place += 1
        return self.batches[(self.place - 1) % len(self.batches)]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, saved):
        self.place = saved["place"]


@pytest.mark.parametrize("order", ["meta_first", "inner_first"])
@pytest.mark.parametrize("estimator", [Unrolled(2), EvoGrad(2, 0.1, 0.5)])
@pytest.mark.parametrize("where", ["train_loss", "valid_loss", "train_batches", "valid_batches"])
def test_whatever_is_interrupted_is_taken_up_at_that_very_place(tmp_path, where, estimator, order):
    def assemble(at=None):
        case = bank.small_net()
        options = {"order": order, "accumulate": 2, "meta_every": 2}
        trainer = trainer_of(case, estimator, **options)
        streams = [Endless(case.train_batches), Endless([case.valid_batch, case.train_batches[0]])]
        if at is not None and where in ("train_batches", "valid_batches"):
            streams[where == "valid_batches"].at = at
        elif at is not None:
            loss = Failing(at, getattr(case.problem, where))
            setattr(case.problem, where, loss)
        return case, trainer, streams

    def go_on(trainer, streams, path, **options):
        trainer.fit(*streams, 5, checkpoint=path, progress=False, **options)

    case, trainer, streams = assemble()
    go_on(trainer, streams, tmp_path / "whole.pt")
    whole, history = tensors_of(case.problem), trainer.history
    interrupted = 0
    for at in (4, 6, 9):
        path = tmp_path / f"{at}.pt"
        case, trainer, streams = assemble(at)
        try:
            go_on(trainer, streams, path)
        except KeyboardInterrupt:
            interrupted += 1
        else:
            continue
        again, resumed, others = assemble()
        go_on(resumed, others, path, resume=True)
        assert same(whole, tensors_of(again.problem)) and resumed.history == history
        # In the same process, too.
        go_on(trainer, streams, tmp_path / "same.pt")
        assert same(whole, tensors_of(case.problem)) and trainer.history == history
    assert interrupted >= 2


def test_a_step_that_was_cut_short_is_dropped_with_its_batches():
    case = bank.small_net()
    good = case.train_batches[0]
    bad = (good[0][:, :4], good[1])
    trainer = trainer_of(case, None)
    with pytest.raises(RuntimeError):
        trainer.fit([good, bad], steps=2, progress=False)
    state = trainer.state
    trainer.fit([good], steps=2, progress=False)
    expected, _ = case.inner.step(case.problem, state, case.problem.meta_parameters(), good)
    assert same(trainer.state.tensors(), expected.tensors())


def evaluation(trainer):
    return {"weight": float(next(trainer.problem.model.parameters()).detach().abs().sum())}


@pytest.mark.parametrize("where", ["log", "evaluate"])
@pytest.mark.parametrize("estimator", [None, EvoGrad(2, 0.1, 0.5)])
def test_what_stops_between_steps_is_stored_and_nothing_is_lost(tmp_path, where, estimator):
    def train(path, at, resume):
        case, logged = bank.small_net(), []
        callbacks = {"log": lambda *entry: logged.append(entry), "evaluate": evaluation}
        if at is not None:
            callbacks[where] = Failing(at, callbacks[where])
        trainer = trainer_of(case, estimator, meta_every=3)
        fit(
            trainer,
            case,
            7,
            log_every=2,
            evaluate_every=2,
            checkpoint=path,
            resume=resume,
            **callbacks,
        )
        return tensors_of(case.problem), logged

    whole, expected = train(tmp_path / "a.pt", None, False)
    for at in (2, 3):
        path = tmp_path / f"{where}{at}.pt"
        with pytest.raises(KeyboardInterrupt):
            train(path, at, False)
        assert path.exists()
        resumed, logged = train(path, None, True)
        assert same(whole, resumed)
        assert logged == expected


def test_ctrl_c_waits_for_the_end_of_the_step(tmp_path):
    case, path = bank.small_net(), tmp_path / "c.pt"
    loss = case.problem.valid_loss

    def interrupted(*arguments):
        if trainer.steps_done == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    case.problem.valid_loss = interrupted
    trainer = trainer_of(case)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(trainer, case, 9, checkpoint=path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
    assert trainer.steps_done == 3 and path.exists()
    whole, resumed = bank.small_net(), bank.small_net()
    fit(trainer_of(whole), whole, 9)
    fit(trainer_of(resumed), resumed, 9, checkpoint=path, resume=True)
    assert same(tensors_of(whole.problem), tensors_of(resumed.problem))


def test_a_training_that_diverges_leaves_its_last_checkpoint(tmp_path):
    case, path = bank.ridge(), tmp_path / "c.pt"
    fit(trainer_of(case), case, 2, checkpoint=path)
    former = path.read_bytes()
    trainer = trainer_of(case, None)
    trainer.inner.hyperparameters["lr"] = 1e200
    with pytest.raises(NonFiniteError):
        trainer.fit(case.train_batches, steps=50, checkpoint=path, progress=False)
    assert path.read_bytes() == former


def test_what_stops_before_the_first_step_leaves_the_checkpoint_alone(tmp_path):
    case, path = bank.ridge(), tmp_path / "c.pt"
    fit(trainer_of(case), case, 2, checkpoint=path)
    former = path.read_bytes()
    case.problem.train_loss = Failing(1, case.problem.train_loss)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_of(case), case, 5, checkpoint=path)
    assert path.read_bytes() == former


def test_a_checkpoint_that_fails_after_an_interruption_does_not_hide_it(tmp_path):
    case = bank.ridge()
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(
            trainer_of(case),
            case,
            5,
            checkpoint=tmp_path / "file" / "c.pt",
            evaluate=Failing(1, evaluation),
            evaluate_every=2,
        )
    assert "cannot write the checkpoint" in "".join(caught.value.__notes__)
