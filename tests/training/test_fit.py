"""The loop: what is reported and when, and what ends it."""

import gc
import math
import os
import signal

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, NonFiniteError
from metatoolkit.hypergradients import EvoGrad, Unrolled
from metatoolkit.testing import bank
from tests.training.assembled import fit, same, tensors_of, trainer_of


def test_metrics_are_logged_and_returned():
    case, logged = bank.small_net(), []
    last = fit(
        trainer_of(case),
        case,
        7,
        log=lambda *entry: logged.append(entry),
        log_every=3,
        evaluate=lambda trainer: {"steps_seen": float(trainer.steps_done)},
        evaluate_every=2,
    )
    steps = {name: [s for n, _, s in logged if n == name] for name, _, _ in logged}
    assert steps["train_loss"] == steps["valid_loss"] == steps["hypergradient_norm"] == [3, 6, 7]
    assert steps["steps_seen"] == [2, 4, 6, 7]
    assert last["steps_seen"] == 7
    assert last["train_loss"] == [v for n, v, _ in logged if n == "train_loss"][-1]


def test_evaluation_sees_the_present_parameters():
    case = bank.small_net()

    def evaluate(trainer):
        live = dict(trainer.problem.model.named_parameters())
        assert all(torch.equal(live[n], p) for n, p in trainer.state.parameters.items())
        return {}

    fit(trainer_of(case), case, 4, evaluate=evaluate, evaluate_every=1)


def test_an_iterator_that_ends_is_told():
    case = bank.small_net()
    trainer = trainer_of(case)
    with pytest.raises(DataError, match="train_batches: it is exhausted"):
        trainer.fit(iter(case.train_batches), [case.valid_batch], 9, progress=False)
    with pytest.raises(DataError, match="valid_batches: it holds no batch"):
        trainer.fit(case.train_batches, [], 9, progress=False)


def test_a_non_finite_loss_stops_the_training():
    case = bank.small_net()
    case.inner = mt.inner.SGD(lr=1e200)
    with pytest.raises(NonFiniteError, match=r"train_loss is (nan|inf) at outer step"):
        trainer_of(case, None).fit(case.train_batches, steps=50, progress=False)
    case = bank.small_net()
    inputs, targets = case.valid_batch
    case.valid_batch = (inputs * math.nan, targets)
    with pytest.raises(NonFiniteError, match="validation loss is not finite"):
        fit(trainer_of(case), case, 1)


def test_memory_does_not_grow_while_training():
    case = bank.small_net()
    trainer = trainer_of(case, Unrolled(2))
    counts = []
    gc.collect()
    gc.disable()
    try:
        for steps in (10, 60, 110):
            fit(trainer, case, steps, log_every=1000)
            trainer.history.clear()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[1] == counts[2]


def test_the_progress_bar_shows_the_losses(capsys):
    case = bank.small_net()
    fit(trainer_of(case), case, 3, progress=True, description="ridge")
    told = capsys.readouterr().err
    assert "ridge" in told and "valid_loss" in told and "0/3" in told
    trainer = trainer_of(case)
    fit(trainer, case, 3)
    capsys.readouterr()
    fit(trainer, case, 5, progress=True)
    told = capsys.readouterr().err
    assert "3/5" in told and "0/5" not in told


_LOSSES = ("train_loss", "valid_loss", "hypergradient_norm")


def test_losses_of_steps_between_reports_are_told_with_the_next():
    case, logged = bank.small_net(), []
    fit(
        trainer_of(case, meta_every=2),
        case,
        7,
        log=lambda *entry: logged.append(entry),
        log_every=2,
    )
    steps = {name: [s for n, _, s in logged if n == name] for name, _, _ in logged}
    # λ moves in the steps 1, 3, 5 and 7.
    assert steps == {name: [2, 4, 6, 7] for name in _LOSSES}
    every = []
    other = bank.small_net()
    fit(trainer_of(other, meta_every=2), other, 7, log=lambda *entry: every.append(entry))
    told = {step: value for name, value, step in every if name == "valid_loss"}
    found = {step: value for name, value, step in logged if name == "valid_loss"}
    assert found == {2: told[1], 4: told[3], 6: told[5], 7: told[7]}


def test_a_second_fit_goes_on_with_the_data():
    whole, parts = bank.small_net(), bank.small_net()
    fit(trainer_of(whole), whole, 5)
    trainer, valid = trainer_of(parts), [parts.valid_batch]
    # Three batches, so that a stream that started over would be seen.
    for steps in (2, 5):
        trainer.fit(parts.train_batches, valid, steps, progress=False)
    assert same(tensors_of(whole.problem), tensors_of(parts.problem))


def test_other_batches_are_read_from_their_beginning():
    case = bank.small_net()
    trainer = trainer_of(case, None)
    trainer.fit(case.train_batches, steps=2, progress=False)
    state = trainer.state
    trainer.fit(list(case.train_batches), steps=3, progress=False)
    expected, _ = case.inner.step(
        case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
    )
    assert same(trainer.state.tensors(), expected.tensors())


def test_steps_that_are_done_already_are_told(tmp_path):
    case = bank.small_net()
    trainer = trainer_of(case)
    fit(trainer, case, 3, checkpoint=tmp_path / "c.pt")
    for steps in (3, 2):
        message = rf"steps is {steps}, but 3 outer steps are done.*steps={3 + steps}"
        with pytest.raises(ConfigurationError, match=message):
            fit(trainer, case, steps)
    # A training that is resumed after its last step is complete.
    again = bank.small_net()
    last = fit(trainer_of(again), again, 3, checkpoint=tmp_path / "c.pt", resume=True)
    assert set(last) == {"train_loss", "valid_loss", "hypergradient_norm"}
    assert same(tensors_of(case.problem), tensors_of(again.problem))
    with pytest.raises(ConfigurationError, match="steps is 2, but 3 outer steps are done"):
        fit(trainer_of(again), again, 2, checkpoint=tmp_path / "c.pt", resume=True)


def test_an_evaluation_that_reports_nothing_says_so():
    case = bank.small_net()
    with pytest.raises(ConfigurationError, match=r"evaluate returned a NoneType; a mapping"):
        fit(trainer_of(case), case, 2, evaluate=lambda trainer: None)
    case = bank.small_net()
    assert "train_loss" in fit(trainer_of(case), case, 2, evaluate=lambda trainer: {})


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
