"""Names that diagnostics took over from the estimators."""

import pytest

from metatoolkit import diagnostics, hypergradients

NAMES = ["EstimatorComparison", "HypergradientCheck", "check_hypergradient", "compare_estimators"]


@pytest.mark.parametrize("name", NAMES)
def test_a_former_name_is_the_present_one_and_warns(name):
    with pytest.warns(DeprecationWarning, match=f"metatoolkit.diagnostics.{name}"):
        assert getattr(hypergradients, name) is getattr(diagnostics, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'check'"):
        hypergradients.check  # noqa: B018
