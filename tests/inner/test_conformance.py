"""What must hold for every inner learner."""

import pytest

from metatoolkit.inner import learners
from metatoolkit.testing import inner_learner_checks
from tests.inner.registry import LEARNERS


def test_every_registered_learner_is_under_test():
    # Tests register learners of their own.
    ours = {one for one in learners.values() if one.__module__.startswith("metatoolkit.")}
    assert {type(make()) for make in LEARNERS.values()} == ours


@pytest.mark.parametrize("check", inner_learner_checks(), ids=str)
@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS.keys())
def test_conforms(make, check):
    if reason := check(make):
        pytest.skip(reason)
