"""What a trace keeps out of its graph: numbers that are read from tensors, and random numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.holding import READERS
from metatoolkit.randomness import seeded
from metatoolkit.randomness.traced import Clock, Moment, TracedKey

_aten = torch.ops.aten
# Their results depend on the sizes and the type of their first argument, and not on its values.
_FILLING = frozenset(
    (
        _aten.bernoulli_.float,
        _aten.uniform_.default,
        _aten.normal_.default,
        _aten.exponential_.default,
        _aten.log_normal_.default,
        _aten.cauchy_.default,
        _aten.geometric_.default,
        _aten.random_.default,
        _aten.random_.to,
        getattr(_aten.random_, "from"),
    )
)
_ALIKE = frozenset(
    (
        _aten.rand_like.default,
        _aten.randn_like.default,
        _aten.randint_like.default,
        _aten.randint_like.low_dtype,
        _aten.bernoulli.p,
    )
)


# They read sizes from tensors inside, unseen.
_SIZED = frozenset(("_pack_padded_sequence", "_pad_packed_sequence", "ctc_loss"))
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))


def _reads_sizes(name: str, args: Any, kwargs: Any) -> bool:
    if name == "tensor_split":
        return any(isinstance(part, Tensor) for part in (*args[1:], *(kwargs or {}).values()))
    if name in _RECURRENT and len(args) > 1 and isinstance(args[1], Tensor):
        # The sizes of a packed sequence.
        return not args[1].is_floating_point()
    return name in _SIZED


class Unread(TorchFunctionMode):
    """Refuses to read numbers from tensors, which a graph would keep for ever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READERS or _reads_sizes(name, args, kwargs):
            raise UnsupportedError(
                f"a number is read from a tensor in the call ({name}), which a graph "
                "would keep for ever"
            )
        return func(*args, **(kwargs or {}))


def _mask(like: Tensor, share: float) -> Tensor:
    """Return the mask of a fused dropout, which depends on no values."""
    return _aten.native_dropout.default(like.fill_(1), share, True)[1]


class _Sequence:
    """The draws of one pass, in their order, from the key that seeds it."""

    def __init__(self, key: TracedKey) -> None:
        self.key = key
        self.draws: list[Callable[[], Tensor]] = []
        self.devices: set[torch.device] = set()

    def at(self, moment: Moment, place: int) -> Tensor:
        if self not in moment.drawn:
            with seeded(self.key.at(moment), self.devices, python=False):
                moment.drawn[self] = [draw() for draw in self.draws]
        return moment.drawn[self][place]


class Drawing(TorchDispatchMode):
    """Turns the random numbers of a pass into inputs of the graph, drawn anew by each call.

    Args:
        clock: Knows the key that the generators are seeded with, and takes the inputs.

    Raises:
        UnsupportedError: Numbers are drawn from another generator, or depend on values.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._sequence: _Sequence | None = None
        self._pass = -1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operator, or make what it draws an input."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        key = self._clock.key
        if key is None or kwargs.get("generator") is not None:
            raise UnsupportedError(
                f"random numbers are drawn ({func}) from a generator that a program cannot rewind"
            )
        if func is _aten.native_dropout.default:
            values, share = args[0], float(args[1])
            mask = self._input(key, _mask, (values, share), {})
            return values * mask * (1 / (1 - share)), mask
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if (func not in _FILLING | _ALIKE and tensors) or len(tensors) > 1:
            raise UnsupportedError(f"the random numbers of {func} depend on values")
        drawn = self._input(key, func, args, kwargs)
        return args[0].copy_(drawn) if func in _FILLING else drawn

    def _input(self, key: TracedKey, func: Any, args: Sequence[Any], kwargs: Any) -> Tensor:
        if self._sequence is None or self._pass != self._clock.passes:
            self._sequence, self._pass = _Sequence(key), self._clock.passes
        sequence = self._sequence
        given = list(args)
        if given and isinstance(given[0], Tensor):
            sequence.devices.add(given[0].device)
            given[0] = functools.partial(
                torch.empty_strided,
                tuple(given[0].shape),
                given[0].stride(),
                dtype=given[0].dtype,
                device=given[0].device,
            )
        elif kwargs.get("device") is not None:
            sequence.devices.add(torch.device(kwargs["device"]))

        def draw() -> Tensor:
            return func(*[a() if isinstance(a, functools.partial) else a for a in given], **kwargs)

        place = len(sequence.draws)
        sequence.draws.append(draw)
        with _disable_current_modes():
            # In its turn, from the generators as they are by now.
            drawn = draw()
        self._clock.inputs.append((drawn, lambda moment: sequence.at(moment, place)))
        return drawn
