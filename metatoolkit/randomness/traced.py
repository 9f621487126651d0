"""The number of a step and random keys while a call is traced: what differs between calls."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


@dataclasses.dataclass
class Moment:
    """What differs between calls of one trace: the number of the first step, and random keys.

    Attributes:
        step: That number.
        keys: Keys by name.
        drawn: Random tensors that were drawn by now, by what they are.
    """

    step: int
    keys: Mapping[str, int]
    drawn: dict[Any, Any] = dataclasses.field(default_factory=dict)


class Clock:
    """What a traced call asked of the number of its first step, and what it made of it and of keys.

    Args:
        present: The moment of the call that is traced.

    Attributes:
        inputs: Tensors that each call makes anew, each with how it does.
        key: Key that the global generators are seeded with by now, if they are.
        passes: How many times they were seeded.
    """

    def __init__(self, present: Moment) -> None:
        self.present = present
        self.inputs: list[tuple[Tensor, Callable[[Moment], Tensor]]] = []
        self.key: TracedKey | None = None
        self.passes = 0
        self._answers: list[tuple[Callable[[int], object], object]] = []
        self._drawn: dict[Any, Any] = {}

    def ask(self, question: Callable[[int], object]) -> Any:
        """Return an answer that the trace then counts on.

        Args:
            question: Takes the number of the first step.
        """
        answer = question(self.present.step)
        self._answers.append((question, answer))
        return answer

    def seed(self, key: TracedKey | None) -> None:
        """Note that the global generators are seeded, or that they go back to where they were.

        Args:
            key: The key, or ``None``.
        """
        self.key = key
        self.passes += key is not None

    def forget(self) -> None:
        """Let go of the tensors that were made while the call was traced."""
        self.inputs, self._drawn = [], {}

    def agrees(self, step: int) -> bool:
        """Return whether all answers are the same at another step.

        Args:
            step: Number of the first step of another call.
        """
        return all(question(step) == answer for question, answer in self._answers)

    def number(self, function: Callable[[int], float]) -> Tensor:
        """Return a 0-d tensor of float64 that each call computes anew.

        Args:
            function: Takes the number of the first step.
        """
        return self.make(lambda at: torch.tensor(float(function(at.step)), dtype=torch.float64))

    def make(self, function: Callable[[Moment], Tensor]) -> Tensor:
        """Return a tensor that each call makes anew.

        Args:
            function: Takes the moment of the call.
        """
        with _disable_current_modes():
            tensor = function(self.present)
        self.inputs.append((tensor, function))
        return tensor

    def drawn(
        self, key: TracedKey, what: Hashable, draw: Callable[[int], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return random tensors that each call draws anew, the same for the same arguments.

        Args:
            key: Key that they are drawn from.
            what: Tells them from others that are drawn from this key.
            draw: Takes a plain key, and returns them by name.
        """
        place = (key.root, key.path, what)

        def at(moment: Moment) -> dict[str, Tensor]:
            if place not in moment.drawn:
                moment.drawn[place] = draw(key.at(moment))
            return moment.drawn[place]

        if place not in self._drawn:
            with _disable_current_modes():
                names = list(at(self.present))
            made = {name: lambda moment, name=name: at(moment)[name] for name in names}
            self._drawn[place] = {name: self.make(function) for name, function in made.items()}
        return self._drawn[place]


def _asks(name: str) -> Callable[[StepNumber, Any], Any]:
    compare = getattr(operator, name)

    def ask(self: StepNumber, other: Any) -> Any:
        if type(other) is StepNumber and other.clock is self.clock:
            return compare(self.offset, other.offset)
        if type(other) is StepNumber:
            return compare(self.read(), other.read())
        if not isinstance(other, int | float):
            return NotImplemented
        return self.clock.ask(lambda step: compare(step + self.offset, other))

    return ask


def _reads(name: str, reflected: bool = False) -> Callable[..., Any]:
    function = getattr(operator, name)

    def read(self: StepNumber, *others: Any) -> Any:
        given = [o.read() if type(o) is StepNumber else o for o in others]
        return function(*given, self.read()) if reflected else function(self.read(), *given)

    return read


class StepNumber:
    """The number of a step in a call that is traced: that of the first step and an offset.

    Sums with integers are such numbers again. Of a comparison the outcome is noted, which the
    trace then holds for. As an exponent it is a tensor that each call computes. Whatever else is
    done with it reads the number, and ties the trace to it.

    Args:
        clock: Notes what is asked.
        offset: Number of steps from the first one of the call.
    """

    def __init__(self, clock: Clock, offset: int = 0) -> None:
        self.clock = clock
        self.offset = offset

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """An integer, to those who ask before they compute with it."""
        return int

    @property
    def present(self) -> int:
        """The number in the call that is traced, for what each call computes anew."""
        return self.clock.present.step + self.offset

    def read(self) -> int:
        """Return the number, to which the trace is tied from now on."""
        return self.clock.ask(lambda step: step + self.offset)

    def __hash__(self) -> int:
        return hash((id(self.clock), self.offset))

    def __add__(self, other: Any) -> Any:
        if type(other) is int:
            return StepNumber(self.clock, self.offset + other)
        return self.read() + other

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        if type(other) is int:
            return StepNumber(self.clock, self.offset - other)
        return self.read() - (other.read() if type(other) is StepNumber else other)

    def __rpow__(self, base: Any) -> Any:
        if isinstance(base, Tensor):
            return base ** self.clock.number(lambda step: step + self.offset)
        return self.clock.number(lambda step: base ** (step + self.offset))

    __eq__, __ne__ = _asks("eq"), _asks("ne")
    __lt__, __le__, __gt__, __ge__ = map(_asks, ("lt", "le", "gt", "ge"))
    __mul__, __truediv__, __floordiv__ = map(_reads, ("mul", "truediv", "floordiv"))
    __mod__, __pow__, __and__, __or__ = map(_reads, ("mod", "pow", "and_", "or_"))
    __xor__, __lshift__, __rshift__ = map(_reads, ("xor", "lshift", "rshift"))
    __neg__, __abs__, __index__, __invert__ = map(_reads, ("neg", "abs", "index", "invert"))
    __bool__ = _reads("truth")
    __rsub__, __rmul__ = _reads("sub", True), _reads("mul", True)
    __rtruediv__, __rfloordiv__ = _reads("truediv", True), _reads("floordiv", True)
    __rmod__, __rand__, __ror__ = _reads("mod", True), _reads("and_", True), _reads("or_", True)

    def __int__(self) -> int:
        return self.read()

    def __float__(self) -> float:
        return float(self.read())

    def __round__(self, digits: int | None = None) -> int:
        return self.read()

    def __str__(self) -> str:
        return str(self.read())

    __repr__ = __str__

    def __format__(self, form: str) -> str:
        return format(self.read(), form)

    def __divmod__(self, other: int) -> tuple[int, int]:
        return divmod(self.read(), other)


class TracedKey(int):
    """A random key in a call that is traced, with how it follows from a key of that call.

    Attributes:
        clock: Notes what is drawn from it.
        root: Name of the key that it follows from.
        path: What that was folded with, one tuple after the other.
    """

    clock: Clock
    root: str
    path: tuple[tuple[Any, ...], ...]
    _folded: Callable[..., int]

    @classmethod
    def begin(cls, clock: Clock, root: str, folded: Callable[..., int]) -> TracedKey:
        """Return a key of the call itself.

        Args:
            clock: Knows the key.
            root: Its name.
            folded: Derives a plain key from a plain key and integers.
        """
        return cls._make(clock.present.keys[root], clock, root, (), folded)

    @classmethod
    def _make(cls, key: int, *told: Any) -> TracedKey:
        own = cls(key)
        own.clock, own.root, own.path, own._folded = told
        return own

    def fold(self, data: tuple[Any, ...]) -> TracedKey:
        """Return the key that is derived from this one.

        Args:
            data: Integers, of which some may be numbers of steps.
        """
        numbers = [d.present if type(d) is StepNumber else d for d in data]
        key = self._folded(int(self), *numbers)
        return self._make(key, self.clock, self.root, (*self.path, data), self._folded)

    def at(self, moment: Moment) -> int:
        """Return the key as it is in another call.

        Args:
            moment: That of the call.
        """
        key = moment.keys[self.root]
        for data in self.path:
            numbers = [moment.step + d.offset if type(d) is StepNumber else d for d in data]
            key = self._folded(key, *numbers)
        return key
