"""What a check expects, and what it says where that does not hold."""

import pytest
import torch

from metatoolkit.errors import UnsupportedError
from metatoolkit.testing.expectations import (
    Inapplicable,
    Unmet,
    expect,
    expect_close,
    expect_equal,
    expect_error,
    stored,
)


class Number:
    def __init__(self, value=3):
        self.value = value


def test_what_pickle_does_not_find_is_not_stored():
    class Local(Number):
        pass

    with pytest.raises(Inapplicable, match=r"does not find .*<locals>\.Local"):
        stored(Local())
    again = stored(Number(5))
    assert type(again) is Number and again.value == 5


def test_expectations():
    one = torch.ones(2)
    expect(True, "", "")
    expect_equal("one", one, torch.ones(2))
    expect_close("one", one + 1e-7, one, 1e-6, 0.0)
    with pytest.raises(Unmet, match="one to be"):
        expect_equal("one", one + 1e-7, one)
    for other in (one + 1e-3, one.double(), torch.ones(3)):
        with pytest.raises(Unmet, match="one to be"):
            expect_close("one", other, one, 1e-6, 0.0)
    with expect_error(ValueError, "bad"):
        raise ValueError("too bad")
    wanted = r"ValueError or KeyError that says 'bad'"
    for raised, got in (
        (None, "no error"),
        (ValueError("good"), "ValueError: good"),
        (TypeError("bad"), "TypeError: bad"),
    ):
        with (
            pytest.raises(Unmet, match=f"{wanted}; got {got}"),
            expect_error((ValueError, KeyError), "bad"),
        ):
            if raised:
                raise raised
    with pytest.raises(Unmet), expect_error(ValueError, "bad"):
        raise UnsupportedError("refused")
    with pytest.raises(UnsupportedError), expect_error(ValueError, "bad", refusable=True):
        raise UnsupportedError("refused")
    with pytest.raises(Unmet, match="inside"), expect_error(ValueError, "bad"):
        raise Unmet("inside", "")
