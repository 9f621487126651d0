"""What a training has spent, and hypergradients that are no numbers."""

import math

import pytest

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, NonFiniteError
from metatoolkit.hypergradients import Cost, EvolutionStrategies, ForwardMode, Unrolled
from metatoolkit.testing import bank
from tests.training.assembled import fit, same, tensors_of, trainer_of


def test_a_cost_in_forward_passes():
    assert Cost().passes == 0
    assert Cost(forward=2, backward=3, jvp=4, hvp=5).passes == 2 + 6 + 24 + 30


def test_base_steps_and_hypergradients_are_counted(tmp_path):
    case = bank.ridge()
    trainer = trainer_of(case, Unrolled(2))
    fit(trainer, case, 3, checkpoint=tmp_path / "a.pt")
    hypergradient = case.call(Unrolled(2)).cost.passes
    assert trainer.passes == 3 * (hypergradient + 2 * 3)
    again = trainer_of(case, Unrolled(2))
    again.load_checkpoint(tmp_path / "a.pt", {})
    assert again.passes == trainer.passes


def test_looking_ahead_is_counted_once():
    case = bank.ridge()
    trainer = trainer_of(case, ForwardMode(2), keep_lookahead=True)
    fit(trainer, case, 2)
    assert trainer.passes == 2 * case.call(ForwardMode(2)).cost.passes


def broken(estimator, **options):
    """A trainer whose outer loss is NaN while the number that comes with it is."""
    given, factor = bank.ridge(), [math.nan]
    options = {"reset_every": 2, "skip_nonfinite": True, **options}

    def valid_loss(model, meta, batch):
        return factor[0] * model.value.square().sum()

    def train_loss(model, meta, batch):
        return (model.value - 1).square().sum()

    inner = mt.inner.SGD(lr=lambda meta, step: meta.value.sum())
    meta = bank.Value([0.05, 0.05])
    problem = mt.BilevelProblem(given.problem.model, meta, train_loss, valid_loss)
    case = bank.ProblemInstance(problem, inner, given.train_batches, given.valid_batch)
    return case, trainer_of(case, estimator, **options), factor


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_no_number_moves_nothing_and_is_said(keep):
    case, trainer, factor = broken(ForwardMode(2), keep_lookahead=keep)
    before, entries = [tensor.clone() for tensor in tensors_of(case.problem)], []
    first = trainer.state
    with pytest.warns(UserWarning, match="outer step 1 moves nothing, and θ starts over: the val"):
        fit(trainer, case, 1, log=lambda *entry: entries.append(entry))
    assert entries == [("skipped", 1.0, 1)]
    assert same(before, tensors_of(case.problem))
    assert trainer.state.step == 0 and trainer.state.key != first.key
    assert trainer.passes == 3 * 2
    # What follows is as ever.
    factor[0] = 1.0
    fit(trainer, case, 2)
    assert float(case.problem.meta.value[0].detach()) != 0.05
    assert trainer.state.step == 2


def test_without_skipping_it_is_an_error():
    case, trainer, _ = broken(ForwardMode(2), skip_nonfinite=False)
    with pytest.raises(NonFiniteError, match="the validation loss is not finite"):
        fit(trainer, case, 1)


def test_a_random_estimator_draws_again_what_it_drew():
    case, trainer, _ = broken(EvolutionStrategies(2, sigma=1e-3))
    before = trainer.estimator.state_dict()
    with pytest.warns(UserWarning, match="moves nothing"):
        fit(trainer, case, 1)
    assert trainer.estimator.state_dict() == before


def test_skipping_needs_a_start_to_go_back_to():
    with pytest.raises(ConfigurationError, match="skip_nonfinite=True with reset_every=None"):
        trainer_of(bank.ridge(), skip_nonfinite=True)


def test_a_norm_that_overflows_ends_nothing():
    case, trainer, factor = broken(ForwardMode(2))
    problem = case.problem
    problem.model.float()
    problem.meta.float()
    trainer = trainer_of(case, ForwardMode(2), lr=1e-39, reset_every=2, skip_nonfinite=True)
    factor[0] = 3.5e37
    entries = []
    fit(trainer, case, 1, log=lambda *entry: entries.append(entry))
    assert {name: value for name, value, _ in entries}["hypergradient_norm"] == math.inf
    assert float(problem.meta.value[0].detach()) != pytest.approx(0.05, rel=1e-6)
    other = trainer_of(case, ForwardMode(2), lr=1e-39, reset_every=2)
    with pytest.raises(NonFiniteError, match="hypergradient_norm is inf"):
        fit(other, case, 1)
