"""The loop: what is reported and when, and what ends it."""

import gc
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, NonFiniteError
from metatoolkit.hypergradients import Unrolled
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
