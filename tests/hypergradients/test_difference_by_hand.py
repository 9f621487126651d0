"""Central differences of functions of one variable, in closed form."""

import math
import re
import warnings

import pytest
import torch

from metatoolkit.errors import AccuracyWarning, PrecisionError, UnsupportedError
from metatoolkit.hypergradients.central_difference import CentralDifference
from metatoolkit.hypergradients.difference_radius import Slopes
from metatoolkit.hypergradients.products import norm


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


class Line:
    """L_T(θ, λ) = λ f(θ) + h(θ) with λ = 1, along v̂, whose product is f′(θ) v̂."""

    def __init__(self, f, theta, direction, rest=None, rounding=2e-16, h=None, **known):
        self.f, self.h, self.theta = f, h or (lambda t: 0.0), theta
        self.seen = []
        slopes = {"outer": 1.0, "inner": 1.0, "along": 0.0, "size": abs(theta)} | known
        self.difference = CentralDifference(
            self.evaluate,
            {"x": scalar([theta, 7.0])[:1], "still": scalar(3.0)},
            {"x": scalar([direction])},
            Slopes(length=abs(direction), **slopes),
            (scalar(f(theta) + self.h(theta)), [scalar([f(theta)]), None]),
            [None if rest is None else scalar([rest]), scalar([0.0])],
            rounding,
        )

    def evaluate(self, parameters):
        assert float(parameters["still"]) == 3.0
        theta = float(parameters["x"])
        self.seen.append(theta)
        return scalar(self.f(theta) + self.h(theta)), [scalar([self.f(theta)]), None]

    @property
    def radii(self):
        pairs = zip(self.seen[::2], self.seen[1::2], strict=True)
        return [abs(one - other) / 2 for one, other in pairs]


def cube(t):
    return t**3


def test_slopes():
    nothing = torch.zeros(2, dtype=torch.float64)
    slopes = Slopes.of(
        {"a": scalar([3.0, 4.0]), "b": scalar(12.0), "c": nothing},
        {"a": scalar([1.0, -2.0]), "b": scalar(5.0)},
        {"a": scalar([-1.0, 3.0]), "b": scalar(2.0), "c": nothing},
        {"a": scalar([2.0, 0.0]), "b": scalar(-1.5)},
    )
    length = 2.5
    assert slopes.length == length
    assert slopes.outer == (2.0 + 3.0) / length and slopes.inner == (2.0 + 7.5) / length
    assert slopes.along == (2.0 - 7.5) / length
    # Only the entries that the direction moves have a size.
    assert slopes.size == pytest.approx(math.sqrt(9.0 + 144.0))


def test_slopes_of_no_direction():
    slopes = Slopes.of({"a": scalar(2.0)}, {"a": scalar(1.0)}, {"a": scalar(1.0)}, {})
    assert slopes == Slopes(0.0, 0.0, 0.0, 0.0, 0.0)
    still = Slopes.of(*({"a": scalar(value)} for value in (2.0, 1.0, 1.0, 0.0)))
    assert still == Slopes(0.0, 0.0, 0.0, 0.0, 0.0)


def test_slopes_in_half_precision_do_not_overflow():
    wide = {"a": torch.full((4,), 300.0, dtype=torch.float16)}
    slopes = Slopes.of(wide, wide, wide, wide)
    assert slopes.length == 600.0 and slopes.inner == 4 * 300.0**2 / 600.0


@pytest.mark.parametrize(
    ("outer", "inner", "size", "valid", "train", "expected"),
    [
        (0.5, 0.0, 0.1, 0.2, 1.0, 1e-2 * 0.4),
        (0.5, 4.0, 0.1, -0.2, 1.0, 1e-2 * 0.25),
        (0.0, 0.0, 0.1, 1.0, 1.0, 1e-2 * 1.0),
        (1.0, 1.0, 5.0, 8.0, 9.0, 1e-2 * 5.0),
        # A loss of zero tells nothing.
        (1.0, 1.0, 0.5, 0.0, 0.0, 1e-2 * 1.0),
        # Below this the rounding of θ would tell.
        (1e4, 1.0, 50.0, 1.0, 1.0, 1e-4 * 50.0),
    ],
)
def test_the_radius_by_the_slopes(outer, inner, size, valid, train, expected):
    slopes = Slopes(1.0, outer, inner, 0.0, size)
    assert slopes.radius(valid, train, 1e-6) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("direction", [0.5, 2.0])
def test_details_of_a_given_radius(direction):
    radius, rest = 0.1, 4.0
    line = Line(cube, 1.0, direction, rest, h=lambda t: -t, inner=3.0, along=1.5)
    (product, missing), details = line.difference.at(radius)
    assert line.radii == pytest.approx([radius]) and line.difference.pairs == 1
    expected = direction * (3.0 + radius**2)
    assert float(product) == pytest.approx(expected) and missing is None
    # Half of f(1 + ε) − 2 f(1) + f(1 − ε), over the whole of the hypergradient.
    half = direction * 3.0 * radius
    assert set(details) == {"radius", "difference_error", "slope_error"}
    assert float(details["radius"]) == radius
    assert float(details["difference_error"]) == pytest.approx(half / (expected + rest))
    # The loss is t³ − t.
    assert float(details["slope_error"]) == pytest.approx((2.0 + radius**2 - 1.5) / 3.0)
    assert all(detail.dtype == torch.float64 for detail in details.values())


def test_details_without_slopes_and_products():
    line = Line(lambda t: 2.0, 1.0, 0.5, None, inner=0.0)
    (product, _), details = line.difference.at(0.1)
    assert float(product) == 0.0
    assert [float(details[n]) for n in ("difference_error", "slope_error")] == [0.0, 0.0]


def test_no_direction_moves_nothing():
    line = Line(cube, 1.0, 0.0)
    (product, _), _ = line.difference.at(0.1)
    assert float(product) == 0.0 and line.seen == [1.0, 1.0]


def test_one_pair_where_the_sides_agree():
    line = Line(cube, 1.0, 1.0, along=3.0)
    (product, _), details = line.difference.best(0.01, coarse=False)
    assert line.radii == pytest.approx([0.01]) and float(product) == pytest.approx(3.0, rel=1e-4)
    assert float(details["difference_error"]) == pytest.approx(0.01, rel=1e-3)


def test_the_rest_of_the_hypergradient_counts():
    # The sides disagree by 30 % of the product, which is 1 % of all.
    line = Line(cube, 1.0, 1.0, rest=100.0, along=3.0)
    line.difference.best(0.3, coarse=False)
    assert line.difference.pairs == 1


@pytest.mark.parametrize("frequency", [1.0, 30.0])
def test_smaller_radii_where_the_function_bends(frequency):
    theta = 0.25 * math.pi / frequency
    slope = frequency * math.cos(0.25 * math.pi)
    line = Line(lambda t: math.sin(frequency * t), theta, 1.0, along=slope)
    start = 1.0 / frequency
    (product, _), details = line.difference.best(start, coarse=False)
    assert line.radii == pytest.approx([start, start / 4, start / 16])
    assert float(details["radius"]) == start / 16
    assert float(product) == pytest.approx(slope * 16 * math.sin(1 / 16))
    # By how much the radius before was off, which had 16 times the error.
    gap = 1 - 4 * math.sin(1 / 4) / (16 * math.sin(1 / 16))
    assert float(details["difference_error"]) == pytest.approx(gap)


def stepped(unit):
    return lambda t: round(math.exp(t) / unit) * unit


def test_larger_radii_where_rounding_has_the_first():
    unit = 1e-7
    line = Line(stepped(unit), 0.3, 1.0, rounding=unit, along=math.exp(0.3))
    (product, _), details = line.difference.best(1.7e-7, coarse=False)
    assert line.radii == pytest.approx([1.7e-7 * 4**k for k in range(line.difference.pairs)])
    assert line.difference.pairs > 1
    assert float(product) == pytest.approx(math.exp(0.3), rel=0.1)
    assert float(details["radius"]) == pytest.approx(line.radii[-1])
    assert float(details["difference_error"]) < 0.1


def test_values_of_few_digits_are_compared_over_two_radii():
    # Three points on one step, or on three in a row, have sides that agree.
    unit = 1e-3
    line = Line(stepped(unit), 0.3, 1.0, rounding=unit, along=math.exp(0.3))
    (product, _), _ = line.difference.best(0.1, coarse=False)
    assert line.difference.pairs > 1
    assert float(product) == pytest.approx(math.exp(0.3), rel=0.05)


def test_a_warning_where_the_rest_cancels_most_of_the_difference():
    # Rounding of half a unit of f over the difference, 0.3 u / 4 ε, is most of what is left.
    line = Line(lambda t: t, 0.3, 1.0, -1.0 + 4e-3, rounding=1e-3, along=1.0)
    with pytest.warns(AccuracyWarning, match=r"error of 47% with the best radius found, 4\.0e-02"):
        (product, _), details = line.difference.best(1e-2, coarse=False)
    assert line.difference.pairs == 5
    assert float(product) == pytest.approx(1.0)
    expected = 0.3 * 1e-3 / 4 / 0.04 / 4e-3
    assert float(details["difference_error"]) == pytest.approx(expected, rel=1e-6)


def test_an_error_where_the_rest_cancels_all_of_it():
    line = Line(lambda t: t, 0.3, 1.0, -1.0 + 1e-6, rounding=1e-3, along=1.0)
    with pytest.raises(PrecisionError, match="and nothing is left of it"):
        line.difference.best(1e-2, coarse=False)
    assert line.difference.pairs == 5


@pytest.mark.parametrize("rest", [None, -1.2, 10.0])
def test_a_difference_that_rounding_takes_whole_is_not_taken_for_zero(rest):
    line = Line(stepped(1e-3), 0.3, 1.0, rest, rounding=1e-3, along=math.exp(0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        (product, _), details = line.difference.best(1e-4, coarse=False)
    error = abs(float(product) - math.exp(0.3)) / (math.exp(0.3) + (rest or 0.0))
    assert error < 0.2 and error < 1.2 * float(details["difference_error"])
    assert line.radii[:2] == pytest.approx([1e-4, 256e-4])


def test_a_difference_that_is_zero():
    # λ acts, and not on θ.
    line = Line(lambda t: 2.0, 1.0, 1.0, None)
    (product, _), details = line.difference.best(1e-4, coarse=False)
    assert float(product) == float(details["difference_error"]) == 0.0
    assert line.radii == pytest.approx([1e-4, 256e-4])
    # λ does not act, or nothing is moved.
    for line in (Line(lambda t: 0.0, 1.0, 1.0), Line(cube, 1.0, 0.0)):
        (product, _), details = line.difference.best(1e-4, coarse=False)
        assert float(product) == float(details["difference_error"]) == 0.0
        assert line.difference.pairs == 1


def test_types_of_few_digits_take_the_first_pair_without_a_word():
    line = Line(lambda t: math.sin(1e6 * t), 0.3, 1.0, along=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line.difference.best(0.3, coarse=True)
    assert line.difference.pairs == 1


@pytest.mark.parametrize(
    ("along", "h", "is_wrong"),
    [
        (2.75, lambda t: 0.0, False),
        (2.65, lambda t: 0.0, True),
        (3.30, lambda t: 0.0, False),
        (3.37, lambda t: 0.0, True),
        # Half of the bend of the loss, 40 · 0.01, is no fault of its gradient.
        (2.40, lambda t: 40 * (t - 1) ** 2, False),
        (2.25, lambda t: 40 * (t - 1) ** 2, True),
        # Nor is the rounding of a large loss: 100 u |L| / ε.
        (2.45, lambda t: 5e10, False),
        (2.15, lambda t: 5e10, True),
    ],
)
def test_a_gradient_that_is_not_that_of_the_loss(along, h, is_wrong):
    def evaluate():
        line = Line(cube, 1.0, 1.0, h=h, along=along, rounding=1e-15)
        return line.difference.best(0.01, coarse=False)

    if is_wrong:
        told = re.escape(f"its gradient says {along:.3e}: the gradient is not")
        with pytest.raises(UnsupportedError, match=told):
            evaluate()
    else:
        evaluate()


def test_norm():
    half = torch.full((4,), 300.0, dtype=torch.float16)
    assert norm([half, None]) == 600.0 and norm([None]) == norm([]) == 0.0
    assert norm([scalar([3.0]), None, scalar([[4.0]])]) == 5.0


def test_errors_of_several_radii_by_their_neighbors():
    # Products of 1.1, 1.005 and 1.0625, with sides that differ by 18 %, 0.5 % and 6 %.
    table = {0.01: 0.013, -0.01: -0.009, 0.04: 0.0404, -0.04: -0.04, 0.16: 0.18, -0.16: -0.16}

    def taken(rounding):
        line = Line(lambda t: table.get(round(t, 6), 0.0), 0.0, 1.0, rounding=rounding)
        return line.difference, [line.difference._pair(radius) for radius in (0.01, 0.04, 0.16)]

    difference, pairs = taken(1e-12)
    assert [float(pair.product[0]) for pair in pairs] == pytest.approx([1.1, 1.005, 1.0625])
    assert [pair.bend for pair in pairs] == pytest.approx([2 / 11, 0.4 / 80.4, 2 / 34])
    gaps = [0.095, 0.0575]
    errors = difference._errors(pairs)
    assert errors[0] == pytest.approx(gaps[0] / 1.1)
    # The smaller radius bends more: a quarter of the gap to it, and the one to the larger.
    assert errors[1] == pytest.approx((gaps[0] / 4 + gaps[1] / 15) / 1.005)
    assert errors[2] == pytest.approx(gaps[1] / 1.0625)
    # From a smaller radius that bends less the gap itself is the error.
    assert difference._errors(pairs[1:])[1] == pytest.approx(gaps[1] / 1.0625)
    assert difference._errors([pairs[1], pairs[2], pairs[2]])[1] == pytest.approx(gaps[1] / 1.0625)
    # Where values have few digits, one pair tells nothing, and sides do not count.
    coarse, pairs = taken(1e-3)
    assert coarse._errors(pairs[:1]) == [float("inf")]
    assert difference._errors(pairs[:1]) == pytest.approx([2 / 11])
