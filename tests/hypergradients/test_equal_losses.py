"""Losses that were evaluated twice: what is rounding, and what the error tells."""

import pytest
import torch

from metatoolkit.errors import ReplayError
from metatoolkit.hypergradients.equal_losses import require_equal
from metatoolkit.testing import bank


def compare(first, again, inside=None, dtype=torch.float64, other_kernels=False):
    """Return how often a third evaluation was asked for; its results are of the type ``inside``."""
    calls = []

    def evaluate():
        assert not torch.is_grad_enabled()
        calls.append(torch.ones(2, dtype=inside or dtype) * 2)

    def scalars(values):
        return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]

    problem = bank.illustration().problem
    require_equal(problem, "train_loss", scalars(first), scalars(again), evaluate, other_kernels)
    return len(calls)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("size", "limit", "dtype"),
    [
        (1.0, 3.667e-11, torch.float64),
        (1000.0, 3.667e-8, torch.float64),
        (0.0, 4.4e-16, torch.float64),
        (1.0, 2.445e-5, torch.float32),
        (0.0, 2.38e-7, torch.float32),
    ],
)
def test_two_thirds_of_the_digits(size, limit, dtype, sign):
    first = sign * size
    assert compare([first], [first], dtype=dtype) == 0
    compare([first], [first + sign * 0.97 * limit], dtype=dtype)
    compare([first + sign * 0.97 * limit], [first], dtype=dtype)
    with pytest.raises(ReplayError, match="train_loss gave"):
        compare([first], [first + sign * 1.03 * limit], dtype=dtype)


@pytest.mark.parametrize(
    ("inside", "limit"), [(torch.float16, 0.0118), (torch.bfloat16, 0.0550)], ids=str
)
def test_the_precision_inside_the_loss_counts(inside, limit):
    assert compare([1.0], [1.0 - 0.95 * limit], inside) == 1
    with pytest.raises(ReplayError):
        compare([1.0], [1.0 - 1.08 * limit], inside)


def test_other_kernels_make_no_difference_on_a_cpu():
    with pytest.raises(ReplayError):
        compare([1.0], [1.001], dtype=torch.float32, other_kernels=True)


def test_the_coarsest_type_among_the_losses_counts():
    one = [torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0)]
    other = [one[0] + 1e-6, one[1]]
    require_equal(bank.illustration().problem, "valid_loss", one, other, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite(value):
    assert compare([value, 1.0], [value, 1.0]) == 0
    for pair in ((value, 2.0), (2.0, value)):
        with pytest.raises(ReplayError, match=f"gave {pair[0]:.6g} and then {pair[1]:.6g} for"):
            compare([1.0, pair[0], 1.0], [1.2, pair[1], 1.0])


def test_the_pair_that_is_furthest_apart_is_told():
    with pytest.raises(ReplayError, match=r"gave 0\.5 and then 0\.25 for the same"):
        compare([float("nan"), 10.0, 0.5, 3.0], [float("nan"), 11.0, 0.25, 3.0])
