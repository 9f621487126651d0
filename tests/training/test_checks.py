"""What a trainer refuses, and what it takes."""

import math
import warnings

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, NonFiniteError
from metatoolkit.hypergradients import PersistentES, Unrolled
from metatoolkit.testing import bank
from metatoolkit.training import checks
from tests.training.assembled import fit, trainer_of


def test_windows_that_follow_each_other_are_taken():
    trainer = trainer_of(bank.small_net(), PersistentES(2, 2, 0.1), meta_every=1, accumulate=1)
    assert trainer.meta_every == trainer.accumulate == 1


@pytest.mark.parametrize("estimator", [None, Unrolled(1)])
def test_rhythms_that_go_together(estimator):
    checks.check_rhythm(estimator, 3, "meta_first", False, 1, 2)
    checks.check_rhythm(estimator, 1, "inner_first", False, None, 1)
    checks.check_rhythm(estimator, 2, "meta_first", True, 5, 1)


@pytest.mark.parametrize("metric", ["train_loss", "valid_loss", "hypergradient_norm"])
def test_losses_can_be_watched_without_evaluations(metric):
    checks.check_stopping(mt.EarlyStopping(metric), False, 0)
    checks.check_stopping(mt.EarlyStopping("score"), True, 1)
    checks.check_stopping(None, False, 0)
    for evaluates, every, missing in ((True, 0, "evaluate_every is 0"), (False, 1, "evaluate is")):
        with pytest.raises(ConfigurationError, match=f"watches 'score'.*{missing}.*{metric}"):
            checks.check_stopping(mt.EarlyStopping("score"), evaluates, every)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_losses_that_are_reported_must_be_finite(value):
    values = {"train_loss": value, "valid_loss": 1.0}
    checks.check_losses(values, ["valid_loss"], 3)
    checks.check_losses(values, [], 3)
    with pytest.raises(NonFiniteError, match=f"train_loss is {value} at outer step 3"):
        checks.check_losses(values, ["valid_loss", "train_loss"], 3)


def test_devices_are_resolved():
    assert checks.checked_device(None) is None
    assert checks.checked_device("cpu") == torch.device("cpu")
    device = torch.device("meta")
    assert checks.checked_device(device) == device


def test_a_metric_is_looked_for_among_all_that_are_reported():
    checks.check_watched("b", iter(["b", "a"]))
    with pytest.raises(ConfigurationError, match=r"'c', which nothing reports; there are a, b\."):
        checks.check_watched("c", iter(["b", "a"]))


def test_the_start_is_told_of_where_it_is_called_and_only_there():
    case = bank.adapted()
    with pytest.warns(UserWarning, match="λ sets the initial state") as told:
        fit(trainer_of(case, Unrolled(2)), case, 2)
    assert [warning.filename.rsplit("/", 1)[-1] for warning in told] == ["assembled.py"]
    quiet = bank.adapted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(trainer_of(quiet, Unrolled(2)), quiet, 1)
        fit(trainer_of(quiet, None), quiet, 2)
        plain = bank.small_net()
        fit(trainer_of(plain, Unrolled(2)), plain, 2)
