"""The choice of how the tasks of a batch run."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from metatoolkit.errors import ConfigurationError
from metatoolkit.training.checks import check_numbers

Mode = Literal["vmap", "loop", "auto"]


@dataclasses.dataclass(frozen=True)
class TaskBatching:
    """How the tasks of a batch run.

    - ``"loop"``: one task after the other, by the estimator as it is.
    - ``"vmap"``: side by side, as one problem whose losses are a ``torch.vmap`` over the tasks and
      whose outer gradient is one backward pass. The numbers are those of the loop to rounding,
      random ones included. It takes the memory of all tasks, or of ``chunk`` at a time. It needs
      an estimator that is ``separable``, an inner learner that moves each coordinate by itself,
      and losses that ``torch.vmap`` can run. Of a list, those of equal shapes run side by side.
    - ``"auto"``: whichever is faster, which is measured once, on the first batch that both can
      run; the loop where ``"vmap"`` cannot. As many tasks run side by side as take half of the
      available memory, which is measured before, on few tasks of each kind: the free memory of
      the GPU, or what the machine and the control groups of the process leave.

    The first tasks of each kind (shapes, types, modes of the modules) are checked: two of them run
    one after the other, with all that an estimator checks, then side by side, and the results must
    agree. A batch that fails side by side runs again one by one, so that the task is named.

    Args:
        mode: One of these.
        chunk: Number of tasks that run side by side at a time, at most under ``"auto"``; ``None``
            for all.
        sharded: Whether the processes of ``torch.distributed`` share the tasks of each batch. All
            draw the same batches, run a part of the tasks each, and move λ alike; see
            :func:`join_ranks`.

    Raises:
        ConfigurationError: The mode is unknown, or the chunk out of range or without meaning.

    Example:
        >>> TaskBatching("vmap", chunk=25)
        TaskBatching(mode='vmap', chunk=25, sharded=False)
    """

    mode: Mode = "auto"
    chunk: int | None = None
    sharded: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigurationError(
                f"how tasks run (tasks of MetaTrainer, batching of over_tasks) is {self.mode!r}; "
                f"accepted: {', '.join(map(repr, get_args(Mode)))}, or a TaskBatching. The tasks "
                "themselves are given to fit, or to over_tasks."
            )
        if self.chunk is not None:
            check_numbers(chunk=self.chunk)
            if self.mode == "loop":
                raise ConfigurationError(
                    f"chunk is {self.chunk}, but a loop runs one task at a time; leave it out."
                )
