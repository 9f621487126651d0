"""The arguments of the evolution strategies, what they save, and what they refuse."""

import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    NonFiniteError,
    UnusedMetaParameterError,
)
from metatoolkit.hypergradients import EvolutionStrategies, PersistentES
from metatoolkit.testing import bank
from tests.hypergradients.test_evolution_strategies import ALL, drift


@pytest.mark.parametrize("estimator", ALL)
def test_a_plateau_is_told_and_no_zero(estimator):
    case = drift()
    flat = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        case.problem.train_loss,
        lambda model, meta, batch: (model.value > -1e9).double(),
    )
    with pytest.raises(UnusedMetaParameterError, match=r"larger sigma"):
        bank.ProblemInstance(flat, case.inner, [None], None).call(estimator())


@pytest.mark.parametrize("estimator", ALL)
def test_a_plateau_after_a_slope_has_a_gradient_of_zero(estimator):
    case, flat = drift(), drift()
    flat.problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        case.problem.train_loss,
        lambda model, meta, batch: (model.value > -1e9).double(),
    )
    used = estimator()
    assert float(case.call(used).gradient["value"]) != 0
    again = estimator()
    again.load_state_dict(used.state_dict())
    assert float(flat.call(again).gradient["value"]) == 0


def test_a_checkpoint_of_other_pairs_is_refused():
    case, estimator = drift(), PersistentES(1, 3)
    case.call(estimator)
    saved = estimator.state_dict()
    with pytest.raises(CheckpointError, match="with 2 pairs"):
        PersistentES(1, 2).load_state_dict(saved)
    with pytest.raises(CheckpointError, match="PersistentES with 3 pairs"):
        estimator.load_state_dict({"other": 1})


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(
    "arguments", [{"steps": 0}, {"pairs": 0}, {"sigma": 0.0}, {"sigma": math.nan}, {"noise": "x"}]
)
def test_arguments_out_of_range(estimator, arguments):
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=name):
        estimator(**arguments)


@pytest.mark.parametrize("estimator", ALL)
def test_what_is_left_out_has_the_values_that_are_told(estimator):
    one = estimator()
    assert (one.horizon, one.pairs, one.sigma, one.noise, one.seed) == (1, 1, 0.1, "gaussian", 0)
    assert one._draws.fresh and not estimator(fresh=False)._draws.fresh
    # Losses are evaluated and nothing is differentiated: nothing is held, and on average alone.
    assert (one.holds_constants, one.on_average) == (False, True)
    assert one.compared == ("train_loss", "valid_loss")


def test_whether_a_loss_ever_moved_is_saved():
    case, estimator = drift(), EvolutionStrategies(fresh=False)
    assert estimator.state_dict() == {"moved": False}
    case.call(estimator)
    assert estimator.state_dict() == {"moved": True}
    estimator.load_state_dict({"moved": False})
    assert estimator.state_dict() == {"moved": False}
    with pytest.raises(CheckpointError, match="not one of EvolutionStrategies"):
        estimator.load_state_dict({})
    with pytest.raises(CheckpointError, match="holds other"):
        estimator.load_state_dict({"moved": True, "other": 1})


def test_a_loss_that_moves_in_one_pair_alone_is_no_plateau():
    # The outer loss sees λ to the right of a point that one pair out of many passes.
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value(0.0),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: (meta.value - 0.15).clamp_min(0.0),
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None, seed=5)
    result = case.call(EvolutionStrategies(1, 20, 0.1))
    still = (result.details["losses"] == 0).all(1)
    assert bool(still.any()) and not bool(still.all())
    assert float(result.gradient["value"]) > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_outer_loss_that_is_not_finite_is_told_where_it_is(value):
    problem = mt.BilevelProblem(
        bank.Value(0.0),
        bank.Value(0.0),
        lambda model, meta, batch: model.value.square(),
        lambda model, meta, batch: torch.where(meta.value > 0, value, meta.value),
    )
    case = bank.ProblemInstance(problem, mt.inner.SGD(lr=0.1), [None], None)
    with pytest.raises(NonFiniteError, match=r"outer loss at a perturbed λ is not finite \(1 of 2"):
        case.call(EvolutionStrategies())


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("sigma", [-0.1, math.inf])
def test_sigma_is_a_number_above_zero(estimator, sigma):
    with pytest.raises(ConfigurationError, match="sigma is"):
        estimator(sigma=sigma)
    assert estimator(steps=1, pairs=1, sigma=1e-300).sigma == 1e-300
