"""Source and target batches side by side, and the halves of the target batches."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.tasks import TokenBatches
from metatoolkit.tasks.resumable import BatchesSideBySide

Part = Literal["all", "first", "second"]
TransferBatch = dict[str, dict[str, Tensor]]


class TransferBatches(BatchesSideBySide[TransferBatch]):
    """An endless iterator over ``{"source": batch, "target": batch}``.

    MetaXL trains on one half of each target batch and validates on the other. Two of these with
    equal target batches give the two halves of the same examples at the same step.

    Args:
        target: Target batches.
        source: Source batches; ``None`` leaves them out.
        part: What to take of each target batch: ``"all"``, or its ``"first"`` or ``"second"`` half.

    Raises:
        ConfigurationError: A target batch has no two halves.
    """

    def __init__(
        self, target: TokenBatches, source: TokenBatches | None = None, part: Part = "all"
    ) -> None:
        super().__init__(({} if source is None else {"source": source}) | {"target": target})
        self._part = part
        size = len(next(iter(self._peek(target).values())))
        if part != "all" and size < 2:
            raise ConfigurationError(
                f"target_batch_size is {size}; at least 2 is needed, one example to train on and "
                "one to validate on."
            )

    @staticmethod
    def _peek(batches: TokenBatches) -> dict[str, Tensor]:
        before = batches.state_dict()
        batch = next(batches)
        batches.load_state_dict(before)
        return batch

    @override
    def __next__(self) -> TransferBatch:
        """Return the next batch."""
        batch = {name: next(batches) for name, batches in self.parts.items()}
        if self._part != "all":
            batch["target"] = {n: self._half(tensor) for n, tensor in batch["target"].items()}
        return batch

    def _half(self, tensor: Tensor) -> Tensor:
        middle = len(tensor) // 2
        return tensor[:middle] if self._part == "first" else tensor[middle : 2 * middle]
