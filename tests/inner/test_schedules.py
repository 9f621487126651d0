"""Schedules of hyper-parameters."""

import pytest
import torch
from torch import nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import cosine, exponential, multistep, polynomial, warmup_linear


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


SCHEDULERS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (cosine(0.3, 7), lambda o: SCHEDULERS.CosineAnnealingLR(o, 7)),
        (cosine(0.3, 7, 0.02), lambda o: SCHEDULERS.CosineAnnealingLR(o, 7, 0.02)),
        (exponential(0.3, 0.8), lambda o: SCHEDULERS.ExponentialLR(o, 0.8)),
        (polynomial(0.3, 7), lambda o: SCHEDULERS.PolynomialLR(o, 7)),
        (polynomial(0.3, 5, 2.5), lambda o: SCHEDULERS.PolynomialLR(o, 5, 2.5)),
        (multistep(0.3, [2, 5], 0.5), lambda o: SCHEDULERS.MultiStepLR(o, [2, 5], 0.5)),
        (multistep(0.3, [5, 2, 5]), lambda o: SCHEDULERS.MultiStepLR(o, [5, 2, 5])),
    ],
)
def test_schedules_equal_those_of_torch(ours, theirs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.3)
    scheduler = theirs(optimizer)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert values(ours, 8) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_schedules_stay_at_their_last_value():
    assert values(cosine(1.0, 2, 0.1), 5)[2:] == pytest.approx([0.1] * 3)
    assert values(polynomial(1.0, 2), 5)[2:] == [0.0] * 3
    assert values(polynomial(1.0, 2, 2.0, 0.2), 4) == pytest.approx([1.0, 0.4, 0.2, 0.2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cosine(1.0, 0), "steps is 0"),
        (lambda: polynomial(1.0, 0), "steps is 0"),
        (lambda: polynomial(1.0, 5, 0.0), "power is 0.0"),
        (lambda: exponential(1.0, 0.0), "gamma is 0.0"),
    ],
)
def test_arguments_of_other_schedules_out_of_range(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_what_is_left_out_and_the_least_arguments():
    assert values(warmup_linear(1.0, 20), 4) == pytest.approx(
        [1 / 3, 2 / 3, 20 * 0.9 / 19, 17 / 19]
    )
    assert values(cosine(1.0, 1), 3) == pytest.approx([1.0, 0.0, 0.0])
    assert values(polynomial(1.0, 1), 2) == [1.0, 0.0]
    assert values(warmup_linear(1.0, 1, 0.0), 2) == [0.5, 0.0]
    assert values(exponential(2.0, 3.0), 3) == [2.0, 6.0, 18.0]
    with pytest.raises(ConfigurationError, match=r"warmup is -0\.1"):
        warmup_linear(1.0, 5, -0.1)


def test_milestones_are_those_at_the_time_of_the_call():
    milestones = [1]
    schedule = multistep(1.0, milestones, 0.5)
    milestones.append(2)
    assert values(schedule, 3) == [1.0, 0.5, 0.5]
