"""Signal and noise of hypergradients while λ is trained."""

import math

import numpy as np
import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import EvoGrad, Unrolled
from metatoolkit.testing import bank
from metatoolkit.training.running_signal import RunningSignal
from tests.training.assembled import Counted, same, tensors_of, trainer_of

NAME = "hypergradient_signal_to_noise"


def samples(count, center, seed=0):
    return center + np.random.default_rng(seed).standard_normal((count, 3))


def ratio_of(rows, window, dtype=torch.float64):
    signal = RunningSignal(window)
    for row in torch.tensor(rows, dtype=dtype):
        signal.see([row[:2], row[2]])
    return signal.ratio


def test_the_ratio_is_that_of_weighted_products_of_neighbors():
    rows = samples(9, 0.7)
    weights = (1 - 1 / 4) ** np.arange(7, -1, -1)
    common = (rows[1:] * rows[:-1]).sum(1) @ weights
    apart = 0.5 * np.square(rows[1:] - rows[:-1]).sum(1) @ weights
    assert ratio_of(rows, 4) == pytest.approx(common / apart, rel=1e-12)
    assert ratio_of(rows, 4, torch.bfloat16) == pytest.approx(common / apart, rel=0.05)
    assert ratio_of(rows[:1], 4) is None


def test_long_windows_find_the_ratio_that_is_known():
    """Expectation 0.5 in three coordinates of variance 1: 0.25."""
    found = ratio_of(samples(20_000, 0.5), 10_000)
    assert found == pytest.approx(0.25, abs=0.02)
    assert abs(ratio_of(samples(20_000, 0.0), 10_000)) < 0.02


def test_parameters_of_several_types_are_taken_together():
    rows = torch.tensor(samples(6, 0.7)).bfloat16().double()
    plain, mixed, whole = RunningSignal(4), RunningSignal(4), RunningSignal(4)
    for row in rows:
        plain.see([row])
        mixed.see([row[:2], row[2].bfloat16()])
        whole.see([torch.complex(row[0], row[1]), row[2].float()])
    assert mixed.ratio == pytest.approx(float(plain.ratio), rel=0.01)
    assert whole.ratio == pytest.approx(float(plain.ratio), rel=1e-6)
    low = RunningSignal(4)
    for row in rows:
        low.see([torch.complex(row[0], row[1]), row[2].bfloat16()])
    assert low.ratio == pytest.approx(float(plain.ratio), rel=0.01)


def test_what_the_optimizer_does_to_a_gradient_is_not_seen():
    signal = RunningSignal(2)
    first = torch.tensor([1.0, 2.0])
    signal.see([first])
    first.mul_(100)
    signal.see([torch.tensor([1.0, 2.0])])
    assert signal.ratio == math.inf


def by_hand(case, steps, window, lr=0.01):
    """The ratio after as many moves of λ alone."""
    estimator, signal, state = Unrolled(1), RunningSignal(window), case.inner.init(case.problem, 0)
    optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=lr)
    for step in range(steps):
        batch = case.train_batches[step % 3]
        result = estimator(case.problem, case.inner, state, [batch], case.valid_batch)
        signal.see(list(result.gradient.values()))
        for name, parameter in case.problem.meta.named_parameters():
            parameter.grad = result.gradient[name]
        optimizer.step()
        state, _ = case.inner.step(case.problem, state, case.problem.meta_parameters(), batch)
    return float(signal.ratio)


def test_the_trainer_logs_it_from_the_second_move_on():
    expected = by_hand(bank.small_net(), 5, 3)
    case, logged = bank.small_net(), []
    trainer = trainer_of(case, signal_window=3, clip_norm=1e-3)
    # What is clipped, and how λ moves, does not matter to the first two hypergradients alone.
    trainer.fit(
        case.train_batches,
        [case.valid_batch],
        2,
        log=lambda *entry: logged.append(entry),
        progress=False,
    )
    assert [step for name, _, step in logged if name == NAME] == [2]
    case = bank.small_net()
    trainer = trainer_of(case, signal_window=3)
    last = trainer.fit(case.train_batches, [case.valid_batch], 5, progress=False)
    assert last[NAME] == pytest.approx(expected, rel=1e-9)
    plain = bank.small_net()
    without = trainer_of(plain).fit(plain.train_batches, [plain.valid_batch], 5, progress=False)
    assert NAME not in without
    assert same(tensors_of(case.problem), tensors_of(plain.problem))


@pytest.mark.parametrize("estimator", [Unrolled(1), EvoGrad()], ids=["unrolled", "evograd"])
def test_a_resumed_training_goes_on_with_it_bitwise(tmp_path, estimator):
    def train(case, steps, **options):
        trainer = trainer_of(case, estimator, signal_window=4)
        return trainer.fit(
            Counted(case.train_batches), [case.valid_batch], steps, progress=False, **options
        )

    whole = train(bank.small_net(), 7)
    train(bank.small_net(), 3, checkpoint=tmp_path / "checkpoint.pt")
    resumed = train(bank.small_net(), 7, checkpoint=tmp_path / "checkpoint.pt", resume=True)
    assert resumed[NAME] == whole[NAME]


def test_what_is_no_window_is_refused():
    for window in (1, 0, 2.5, True):
        with pytest.raises(ConfigurationError, match=f"signal_window is {window}"):
            trainer_of(bank.small_net(), signal_window=window)
    case = bank.small_net()
    with pytest.raises(ConfigurationError, match="signal_window needs an estimator"):
        mt.MetaTrainer(case.problem, case.inner, signal_window=10)


@pytest.mark.parametrize(("size", "expected"), [(0.0, math.nan), (1.0, math.inf)])
def test_a_ratio_that_is_no_number_ends_no_training(size, expected):
    problem = mt.BilevelProblem(
        bank.Value(0.3),
        bank.Value(0.5),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: model.value.square() + size * meta.value,
    )
    optimizer = torch.optim.SGD(problem.meta.parameters(), lr=0.1)
    trainer = mt.MetaTrainer(problem, mt.inner.SGD(lr=0.1), Unrolled(1), optimizer, signal_window=3)
    assert trainer.fit([None], [None], 4, progress=False)[NAME] == pytest.approx(
        expected, nan_ok=True
    )


def test_large_hypergradients_have_a_ratio():
    rows = samples(6, 0.7)
    assert ratio_of(1e25 * rows, 4, torch.float32) == pytest.approx(
        float(ratio_of(rows, 4)), rel=1e-4
    )
