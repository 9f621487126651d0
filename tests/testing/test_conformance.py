"""Suites of checks: names, what is told, what does not apply."""

import pickle

import pytest
import torch

from metatoolkit.errors import (
    ConfigurationError,
    ConformanceError,
    ReplayError,
    UnknownNameError,
    UnsupportedError,
)
from metatoolkit.testing import Check, ConformanceReport
from metatoolkit.testing.conformance import Suite
from metatoolkit.testing.expectations import (
    Inapplicable,
    expect,
)


class Number:
    def __init__(self, value=3):
        self.value = value


@pytest.fixture
def suite():
    suite = Suite("number", Number)

    @suite.check(limit=(2, 5), dtype=(torch.float32, torch.float64))
    def is_above(make, limit, dtype):
        expect(make().value > limit, f"more than {limit}", make().value)

    @suite.check()
    def is_odd(make):
        if make().value == 4:
            raise Inapplicable("four is left out")
        if make().value == 8:
            raise UnsupportedError("eight is not supported; use 9.")
        expect(make().value % 2 == 1, "an odd number", make().value)

    return suite


def test_each_setting_is_a_check_with_a_name(suite):
    names = [str(check) for check in suite.checks]
    assert names == [
        "is_above-2-float32",
        "is_above-2-float64",
        "is_above-5-float32",
        "is_above-5-float64",
        "is_odd",
    ]
    assert all(isinstance(check, Check) for check in suite.checks)
    both = suite + suite
    assert len(both.checks) == 10 and len(suite.checks) == 5 and both.base is Number


def test_a_check_that_does_not_hold_says_what_was_expected_and_got(suite):
    with pytest.raises(ConformanceError) as caught:
        suite.run(Number(3))
    error = caught.value
    assert isinstance(error, AssertionError)
    assert (error.check, error.expected, error.got) == ("is_above-5-float32", "more than 5", "3")
    assert str(error) == "is_above-5-float32: expected more than 5; got 3"
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.got == "3"


def test_a_report_tells_what_holds_and_why_the_rest_does_not_apply(suite):
    report = suite.run(lambda: Number(7))
    assert len(report.passed) == 5 and report.skipped == {}
    report = suite.run(Number(8))
    assert isinstance(report, ConformanceReport) and len(report.passed) == 4
    assert report.skipped == {"is_odd": "unsupported: eight is not supported; use 9."}
    assert str(report) == (
        "4 checks hold, 1 do not apply\n  is_odd: unsupported: eight is not supported; use 9."
    )
    with pytest.raises(ConformanceError, match=r"applies: expected a problem .*four is left out"):
        suite.run(Number(4), ["odd"])


def test_checks_are_chosen_by_patterns(suite):
    assert suite.run(Number(3), ["above-2", "odd"]).passed == [
        "is_above-2-float32",
        "is_above-2-float64",
        "is_odd",
    ]
    with pytest.raises(UnknownNameError, match=r"number check 'is_old'.*Did you mean 'is_odd'"):
        suite.run(Number(3), ["odd", "is_old"])
    with pytest.raises(ConfigurationError, match="give a list"):
        suite.run(Number(3), "odd")


@pytest.mark.parametrize("given", [7, lambda: 7, None])
def test_a_component_of_another_kind_is_refused(suite, given):
    with pytest.raises(ConfigurationError, match=r"the number is .*an instance of Number"):
        suite.run(given)


def test_each_check_gets_a_component_of_its_own(suite):
    seen = []

    @suite.check()
    def changes(make):
        seen.append(make())
        seen.append(make())
        seen[-1].value = 100

    number = Number(7)
    suite.run(number)
    assert number.value == 7 and seen[0].value == 7 and seen[0] is not number
    assert suite.run(Number, ["changes"]).passed == ["changes"]


@pytest.mark.parametrize("error", [ValueError("no\nluck"), ReplayError("drifts")])
def test_another_error_of_a_component_fails_the_check(error):
    suite = Suite("number", Number)

    @suite.check()
    def works(make):
        raise error

    with pytest.raises(ConformanceError) as caught:
        suite.run(Number())
    assert caught.value.expected == "no error" and caught.value.__cause__ is error
    assert caught.value.got == f"{type(error).__name__}: {' '.join(str(error).split())}"


def test_a_class_that_needs_arguments_is_refused_as_such():
    class Needy(Number):
        def __init__(self, value):
            super().__init__(value)

    suite = Suite("number", Number)
    with pytest.raises(ConfigurationError, match=r"needs arguments .*'value'.*an instance of"):
        suite.maker(Needy)
    assert suite.maker(lambda: Needy(3))().value == 3
