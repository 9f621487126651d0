"""Which draw a call of a random estimator takes: calls at one state do not repeat each other."""

from __future__ import annotations

from typing import Any

from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState

_KEPT = 4096


class Draws:
    """Counts the calls of an estimator that come back to a step of a trajectory.

    A trajectory is told by the random key of its states. As long as its steps go up, as in a
    trainer, the draw of each call follows from key and step alone. A call at a step that is not
    above the last one of that key, as after a second ``inner.init``, begins another draw.

    Args:
        fresh: Whether it does; else equal states get equal draws.
    """

    counts_calls = True

    def __init__(self, fresh: bool = True) -> None:
        self.fresh = fresh
        # Key to the last step and the number of times that the steps went back.
        self._seen: dict[int, tuple[int, int]] = {}
        self._forgotten = 0

    def restart(self) -> None:
        """Forget all calls, so that those that follow draw what the first ones drew."""
        self._seen.clear()
        self._forgotten = 0

    def advance(self, state: InnerState) -> int:
        """Count a call, and return the key that it draws from.

        Args:
            state: State that the call is made at.
        """
        number = self._next(state)
        if self.fresh:
            # Put last, as the one that was used last.
            self._seen.pop(state.key, None)
            self._seen[state.key] = (state.step, number)
            if len(self._seen) > _KEPT:
                _, repeats = self._seen.pop(next(iter(self._seen)))
                # A key that comes back later must not repeat what was drawn for it before.
                self._forgotten = max(self._forgotten, repeats) + 1
        return _key(state, number)

    def upcoming(self, state: InnerState) -> int:
        """Return the key that the next call draws from, without counting it.

        Args:
            state: State that the call is made at.
        """
        return _key(state, self._next(state))

    def current(self, state: InnerState) -> int:
        """Return the key of the last call at a state, or of the next one where there was none.

        Args:
            state: The state.
        """
        last = self._seen.get(state.key)
        return _key(state, last[1] if last and last[0] == state.step else self._next(state))

    def _next(self, state: InnerState) -> int:
        if not self.fresh:
            return 0
        if state.key not in self._seen:
            return self._forgotten
        step, number = self._seen[state.key]
        return number + (state.step <= step)

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted, empty before the first call."""
        if not self._seen:
            return {}
        seen = [[key, *value] for key, value in self._seen.items()]
        return {"draws": {"seen": seen, "forgotten": self._forgotten}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Go on from what :meth:`state_dict` returned.

        Args:
            state_dict: That, with other entries or without it.

        Returns:
            The other entries.
        """
        others = dict(state_dict)
        saved = others.pop("draws", {"seen": [], "forgotten": 0})
        self._seen = {key: (step, number) for key, step, number in saved["seen"]}
        self._forgotten = saved["forgotten"]
        return others


def _key(state: InnerState, number: int) -> int:
    return fold_in(state.key, Stream.REPEATED_CALL, number) if number else state.key
