"""Central differences against known derivatives, with errors that cover what they are off by."""

import math

import numpy as np
import pytest
import torch

from metatoolkit.hypergradients.numerical_gradient import numerical_gradient

POINT = np.array([0.3, -1.2, 40.0])
SLOPES = torch.tensor(
    [math.cos(0.3), 2 * -1.2 * math.exp(1.2**2), -math.sin(4.0) / 10], dtype=torch.float64
)


def function(x):
    return math.sin(x[0]) + math.exp(x[1] ** 2) + math.cos(x[2] / 10)


def difference(f, epsilon=None):
    def shifted(index, shift):
        x = POINT.copy()
        x[index] += shift
        return float(f(x))

    return numerical_gradient(
        shifted,
        lambda shift: float(f(POINT + shift * np.array([1, -1, 1]))),
        float(f(POINT)),
        [abs(value) for value in POINT],
        SLOPES,
        epsilon,
    )


def error(found):
    return float((found.values - SLOPES).norm())


def test_a_smooth_function():
    found = difference(function)
    assert error(found) < 1e-8
    assert error(found) < 3 * found.error < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_function_that_rounds(dtype):
    found = difference(lambda x: dtype(function(x)))
    assert error(found) < 3 * found.error
    assert found.error < 500 * np.finfo(dtype).eps ** (2 / 3)
    # A step for float64 shows nothing but rounding.
    assert error(difference(lambda x: dtype(function(x)), 1e-7)) > 10 * found.error


def test_noise_that_is_drawn():
    generator = np.random.default_rng(0)
    found = difference(lambda x: function(x) + 1e-6 * generator.standard_normal())
    assert error(found) < 3 * found.error < 0.3


def test_a_step_that_is_too_long_is_told():
    found = difference(function, 0.1)
    assert 0.3 * error(found) < found.error < 3 * error(found)
    assert found.error > 0.01


def test_evaluations():
    calls = []
    difference(lambda x: calls.append(1) or function(x))
    assert len(calls) == 2 * 3 + 8 + 4 + 1


def test_a_function_that_is_constant():
    found = numerical_gradient(lambda i, s: 2.0, lambda s: 2.0, 2.0, [1.0], torch.zeros(1), None)
    assert found.values.tolist() == [0.0] and found.error < 1e-9
