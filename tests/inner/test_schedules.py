"""Schedules of hyper-parameters."""

import pytest
from torch import nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import multistep, warmup_linear


def values(schedule, steps):
    return [schedule(nn.Identity(), step) for step in range(steps)]


def test_warmup_and_linear_decay():
    given = values(warmup_linear(2.0, 10, 0.4), 12)
    rising, falling = [2 * k / 5 for k in (1, 2, 3, 4)], [2 * k / 7 for k in (6, 5, 4, 3, 2, 1)]
    assert given == pytest.approx([*rising, *falling, 0.0, 0.0])


def test_without_warmup_it_falls_from_its_peak():
    assert values(warmup_linear(1.0, 4, 0.0), 5) == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_warmup_alone():
    assert values(warmup_linear(1.0, 3, 1.0), 3) == pytest.approx([0.25, 0.5, 0.75])


def test_multistep():
    assert values(multistep(1.0, [2, 3], 0.5), 5) == [1.0, 1.0, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"steps": 5, "warmup": 1.5}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(ConfigurationError, match=list(arguments)[-1]):
        warmup_linear(1.0, **arguments)
