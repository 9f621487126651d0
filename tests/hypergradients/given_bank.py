"""The problems of the bank with another inner learner, for estimators that take no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from metatoolkit.inner import InnerLearner
from metatoolkit.testing import bank
from metatoolkit.testing.bank import ProblemInstance
from metatoolkit.testing.estimators import randomness


def give_bank(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[InnerLearner], InnerLearner]
) -> None:
    """Exchange the learner of each problem, wherever the checks take it from.

    Args:
        monkeypatch: Takes it back.
        make: Makes the learner from the problem's own.
    """

    def changed(build: Callable[..., ProblemInstance]) -> Callable[..., ProblemInstance]:
        def given(*args: Any, **kwargs: Any) -> ProblemInstance:
            instance = build(*args, **kwargs)
            instance.inner = make(instance.inner)
            return instance

        return given

    for name, build in bank.CONFORMANCE.items():
        monkeypatch.setitem(bank.CONFORMANCE, name, changed(build))
        monkeypatch.setattr(bank, name, changed(build))
    monkeypatch.setattr(randomness, "recorded", changed(randomness.recorded))
