"""What must hold for every estimator, on every problem of the bank that it applies to."""

import pytest

from metatoolkit.hypergradients import Traits
from metatoolkit.hypergradients.listing import all_estimators
from metatoolkit.testing import estimator_checks
from tests.hypergradients.registry import ESTIMATORS

estimators = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def test_every_exported_estimator_is_under_test():
    assert set(all_estimators().values()) == {type(make()) for make in ESTIMATORS.values()}


@estimators
def test_says_what_it_is(make):
    traits = type(make()).traits
    assert isinstance(traits, Traits)
    assert all(vars(traits).values())
    assert "arXiv" in traits.paper or "doi" in traits.paper


@pytest.mark.parametrize("check", estimator_checks(), ids=str)
@estimators
def test_conforms(make, check):
    if reason := check(make):
        pytest.skip(reason)
