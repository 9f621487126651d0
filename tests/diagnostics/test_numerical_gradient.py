"""Central differences against known derivatives, with errors that cover what they are off by."""

import math

import numpy as np
import pytest
import torch

from metatoolkit.diagnostics.numerical_gradient import numerical_gradient

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


def steps_of(epsilon, sizes, noise=0.0, guess=None, center=1.0):
    """Return the shifts of each coordinate, in order, and the result for x₀ + 2 x₁ + 3 x₂ + …"""
    shifts = {}

    def shifted(index, shift):
        shifts.setdefault(index, []).append(shift)
        return center + (index + 1) * shift

    guess = torch.zeros(len(sizes)) if guess is None else torch.tensor(guess)
    values = iter([noise, -noise] * 100)
    found = numerical_gradient(
        shifted, lambda shift: center + next(values), center, sizes, guess, epsilon
    )
    return shifts, found


def test_steps_are_relative_to_the_size_and_twice_as_long_for_two():
    shifts, found = steps_of(0.01, [0.5, 4.0, 10.0, 1.0])
    assert shifts[0] == pytest.approx([0.01, -0.01])
    assert shifts[1] == pytest.approx([0.04, -0.04])
    # The two largest of the gradient.
    assert shifts[2] == pytest.approx([0.1, -0.1, 0.2, -0.2])
    assert shifts[3] == pytest.approx([0.01, -0.01, 0.02, -0.02])
    assert found.values.tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0])
    assert found.values.dtype == torch.float64


def test_a_guess_tells_what_matters_too():
    shifts, _ = steps_of(0.01, [1.0] * 4, guess=[-9.0, 0.0, 0.0, 0.0])
    assert [len(shifts[index]) for index in range(4)] == [4, 2, 2, 4]


@pytest.mark.parametrize(
    ("noise", "center", "guess", "expected"),
    [
        # Differences of ±η are 2ᵏ η; for independent errors of variance 1, √(2k)! / k!.
        (1e-6, 1.0, 0.0, (8e-6 / math.sqrt(20)) ** (1 / 3)),
        (1e-6, 0.1, 2.0, (4e-6 / math.sqrt(20)) ** (1 / 3)),
        (1e-6, 0.1, -2.0, (4e-6 / math.sqrt(20)) ** (1 / 3)),
        (1e-6, -4.0, 2.0, (2e-6 / math.sqrt(20)) ** (1 / 3)),
        (1e-17, 1.0, 0.0, 1e-5),
        (0.3, 1.0, 0.0, 0.05),
    ],
)
def test_the_step_is_that_of_the_noise(noise, center, guess, expected):
    shifts, _ = steps_of(None, [0.5, 2.0], noise, [guess, guess], center)
    assert shifts[0][0] == pytest.approx(expected, rel=1e-4)
    assert shifts[1][0] == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-2])
def test_rounding_over_the_steps_is_the_error_of_what_is_straight(epsilon):
    _, found = steps_of(epsilon, [0.5, 2.0], 1e-6)
    level = 8e-6 / math.sqrt(20)
    expected = level * math.hypot(1 / epsilon, 1 / (2 * epsilon))
    assert found.error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("center", [1.0, -1e6])
def test_values_have_an_error_of_one_unit_at_least(center):
    _, found = steps_of(0.5, [1.0], 0.0, center=center)
    assert found.error == pytest.approx(abs(center) * 2.0**-52 / 0.5)


def test_truncation_is_a_third_of_what_twice_the_step_changes():
    def shifted(index, shift):
        return shift + (index + 1) * shift**3

    found = numerical_gradient(
        shifted, lambda shift: 0.0, 0.0, [1.0] * 3, torch.tensor([0.0, 9.0, 0.0]), 0.1
    )
    assert found.values.tolist() == pytest.approx([1.01, 1.02, 1.03])
    # The errors of those two, 0.02 and 0.03, and as much in the third.
    whole = math.hypot(1.01, 1.02, 1.03) / math.hypot(1.02, 1.03)
    assert found.error == pytest.approx(math.hypot(0.02, 0.03) * whole)


def test_the_noise_is_looked_for_around_the_point_and_further_out_where_values_repeat():
    calls = []

    def along(shift):
        calls.append(shift)
        return round(shift, 3)

    numerical_gradient(lambda i, s: s, along, 0.0, [1.0], torch.ones(1), 0.01)
    expected = [spacing * k for spacing in (1e-6, 1e-4, 1e-2) for k in range(-4, 4)]
    assert calls == pytest.approx(expected)


@pytest.mark.parametrize(("different", "spacings"), [(4, 3), (5, 1)])
def test_more_than_half_of_the_values_must_differ(different, spacings):
    calls = []

    def along(shift):
        calls.append(shift)
        return float(len(calls) % different)

    numerical_gradient(lambda i, s: s, along, 0.0, [1.0], torch.ones(1), 0.01)
    assert len(calls) == 8 * spacings


def noise_of(values):
    """Return the noise that is found in eight values, by the error of a straight line."""
    found = numerical_gradient(
        lambda i, s: 0.0,
        lambda shift: float(values[round(shift / 1e-6) + 4]),
        0.0,
        [1.0],
        torch.ones(1),
        1.0,
    )
    return found.error


def test_what_bends_is_no_noise():
    k = np.arange(8.0)
    assert noise_of(1 + k + 5 * k**2) < 1e-12
    # The fifth differences are 5!, and higher ones are not looked at.
    assert noise_of(k**5) == pytest.approx(120 / math.sqrt(252))
    assert noise_of(3 * (-1) ** k + k / 1e9) == pytest.approx(3 * 8 / math.sqrt(20), rel=1e-6)
