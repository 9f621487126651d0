"""Batches of tasks in another floating-point type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from metatoolkit.errors import ConfigurationError
from metatoolkit.state import tree_map
from metatoolkit.tasks.task_source import Task, TaskSource


class ConvertedTasks(TaskSource):
    """The tasks of a source with their floating-point tensors in another type.

    They are drawn as the source draws them, and converted then, so that they have its values but
    for rounding; labels and masks stay as they are. The source moves along where these start over,
    and a stored place fits it as well. Cost: one copy of a batch, or none where the type is already
    the one.

    Args:
        source: Where the tasks are from.
        dtype: The type, such as ``torch.float64``.

    Raises:
        ConfigurationError: It is no source, or no floating-point type.

    Example:
        >>> from metatoolkit.tasks import FunctionTasks
        >>> source = FunctionTasks(shots=5, queries=10, tasks=4)
        >>> (inputs, targets), query = next(ConvertedTasks(source, torch.float64))
        >>> inputs.shape, inputs.dtype
        (torch.Size([4, 5, 1]), torch.float64)
    """

    def __init__(self, source: TaskSource, dtype: torch.dtype) -> None:
        if not isinstance(source, TaskSource):
            raise ConfigurationError(
                f"source is a {type(source).__name__}; a TaskSource is needed, such as "
                "FewShotTasks, FunctionTasks or MixedTasks."
            )
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ConfigurationError(
                f"dtype is {dtype!r}; a floating-point type is needed, such as torch.float64."
            )
        self.source, self.dtype = source, dtype
        super().__init__(source.tasks, source.seed)

    @override
    def task(self, number: int) -> Task:
        return self._converted(self.source.task(number))

    @override
    def batch(self, first: int, count: int) -> Task:
        return self._converted(self.source.batch(first, count))

    def _converted(self, task: Task) -> Task:
        def convert(tensor: Tensor) -> Tensor:
            return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

        converted: Task = tree_map(convert, task)
        return converted

    @override
    def _moved(self) -> None:
        self.source._go_to(self._place())

    @override
    def _kept(self) -> dict[str, Any]:
        return self.source._kept()
