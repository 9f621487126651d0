"""Arguments that must be estimators: an instance, and nothing else."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import Estimator, Unrolled
from metatoolkit.hypergradients.arguments import require_estimator


def test_an_instance_is_taken():
    assert require_estimator("reference", Unrolled(2)) is None


@pytest.mark.parametrize("kind", [Unrolled, Estimator])
def test_a_class_is_told_to_be_made(kind):
    name = kind.__name__
    told = rf"^reference is the class {name}; pass an instance: {name}\(\.\.\.\)\.$"
    with pytest.raises(ConfigurationError, match=told):
        require_estimator("reference", kind)


@pytest.mark.parametrize("value", [int, mt.inner.SGD, None, 3, "Unrolled", [1]])
def test_anything_else_is_shown(value):
    with pytest.raises(
        ConfigurationError, match=r"^estimator is .*; accepted: an estimator"
    ) as told:
        require_estimator("estimator", value)
    assert str(told.value).startswith(f"estimator is {value!r};")


def test_what_is_long_to_show_is_named_by_its_class():
    optimizer = torch.optim.SGD([torch.zeros(1)])
    with pytest.raises(ConfigurationError, match=r"^estimator is a SGD; accepted: an est"):
        require_estimator("estimator", optimizer)
