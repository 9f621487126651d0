"""A counter of floating-point operations that leaves the modules of a network alone."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode


class _NoModules:
    """Attributes every operation to the call as a whole, without a hook of each module.

    With PyTorch's own tracker the hooks of each module, which are run for every call of it, take
    longer than the operations of a small network.
    """

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def flop_counter() -> FlopCounterMode:
    """Return a context that counts the operations of matrix products and convolutions.

    ``get_total_flops()`` tells them afterwards.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter
