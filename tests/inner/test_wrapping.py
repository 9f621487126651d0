"""What learners that leave the step to others ask of these, and take over from them."""

import pytest
import torch

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import SGD, AdamW, Clipped, Combined


class Longer(SGD):
    def step(self, *arguments, **options):
        return super().step(*arguments, **options)


@pytest.mark.parametrize("given", [Longer(0.1), SGD, torch.optim.SGD, None])
def test_only_learners_of_one_gradient_are_wrapped(given):
    with pytest.raises(ConfigurationError, match=r"cannot be clipped; accepted: an inner learner"):
        Clipped(given, 1.0)
    with pytest.raises(ConfigurationError, match=r"cannot be combined; accepted: an inner learner"):
        Combined(SGD(0.1), {"*": given})


def test_groups_are_those_of_all_learners_and_wrapping_goes_on():
    first, second = ({"params": [name], "lr": 0.5} for name in ("a", "b"))
    inner = Combined(SGD(0.1, groups=[first]), {"b": Clipped(AdamW(groups=[second]), 1.0)})
    assert inner.groups == [first, second]
    assert Clipped(inner, max_value=1.0).groups == [first, second]
