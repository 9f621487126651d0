"""Batches of tasks that worker processes make ahead."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import signal
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, WorkerError, brief
from metatoolkit.tasks.task_source import Task, TaskSource, check_integers


class PrefetchedTasks(Iterator[Task]):
    """The batches of a source, made by worker processes while those before are learned from.

    They are bitwise those of the source, whatever the number of workers, and in their order.
    The place is that of the source, which moves as batches are taken, not as they are made: a
    stored place fits the source itself as well. The processes are those of a
    ``torch.utils.data.DataLoader``. They begin with the first batch and end with :meth:`close`,
    at the end of a ``with`` block, or when this object is gone. A new place, by
    :meth:`load_state_dict` or of the source, begins others.

    A worker computes with one thread, which can round large sums in transforms unlike several do.
    Tasks are made on the CPU; leave ``device`` of a source at ``None``, since trainers move
    batches to their device.

    Args:
        source: Where the tasks are from.
        workers: Number of processes.
        ahead: Batches that each of them makes ahead; memory of so many times ``workers``.
        context: How processes start: ``"fork"``, ``"spawn"`` or ``"forkserver"``; ``None`` takes
            the platform's default. All but ``"fork"`` need a source that can be pickled, and a
            program that guards its main part by ``if __name__ == "__main__"``.

    Raises:
        ConfigurationError: It is no such source, or a number is out of range.

    Example:
        >>> from metatoolkit.tasks import FunctionTasks
        >>> source = FunctionTasks(shots=5, queries=10, tasks=4)
        >>> with PrefetchedTasks(source, workers=2) as batches:
        ...     (inputs, targets), query = next(batches)
        >>> inputs.shape, source.next_task
        (torch.Size([4, 5, 1]), 4)
    """

    def __init__(
        self, source: TaskSource, workers: int = 2, ahead: int = 2, context: str | None = None
    ) -> None:
        if not isinstance(source, TaskSource):
            raise ConfigurationError(
                f"source is a {type(source).__name__}; a TaskSource is needed, such as "
                "FewShotTasks, FunctionTasks or MixedTasks."
            )
        check_integers(1, workers=workers, ahead=ahead)
        known = torch.multiprocessing.get_all_start_methods()
        if context not in (None, *known):
            raise ConfigurationError(f"context is {context!r}; accepted: None, {', '.join(known)}.")
        self.source = source
        self.workers, self.ahead, self.context = workers, ahead, context
        self._made: Iterator[Task | _Failure] | None = None
        self._place: tuple[int, int] | None = None

    @override
    def __next__(self) -> Task:
        """Return the next batch.

        Raises:
            WorkerError: A worker was killed.
            ConfigurationError: The source cannot be pickled, where it has to be.
        """
        try:
            if self._made is None or self._place != self._here():
                self.close()
                self._made = self._begin()
            batch = next(self._made)
        except RuntimeError as error:
            self.close()
            # Without its traceback, which refers to what ends the other workers when it is gone.
            raise WorkerError(
                f"a process that made tasks ahead was killed ({brief(error)}), as systems do that "
                "are short of memory; take fewer workers, or make fewer batches ahead."
            ) from error.with_traceback(None)
        except BaseException:
            self.close()
            raise
        if isinstance(batch, _Failure):
            # Others begin at the place of the source, as if this batch had not been asked for.
            self.close()
            batch.error.add_note(f"It was raised in a worker process:\n{batch.told}")
            raise batch.error
        self.source.next_task += self.source.tasks
        self._place = self._here()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the source: how far its batches were taken."""
        return self.source.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place that was stored here, or by the source itself.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            CheckpointError: It belongs to other batches.
        """
        self.source.load_state_dict(state_dict)

    def close(self) -> None:
        """End the workers; the next batch begins others."""
        # Nothing else refers to it, and it ends its processes when it is gone.
        self._made = None

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers.

        Args:
            error: Not used.
        """
        self.close()

    def _here(self) -> tuple[int, int]:
        return self.source.seed, self.source.next_task

    def _begin(self) -> Iterator[Any]:
        self._place = self._here()
        loader = DataLoader(
            _Batches(self.source),
            sampler=itertools.count(self.source.next_task, self.source.tasks),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self.ahead,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_interrupts,
            multiprocessing_context=self.context,
            # Else the seed of its workers, which goes unused, is drawn from the global one.
            generator=torch.Generator(),
        )
        try:
            with warnings.catch_warnings(), _interrupts_held():
                warnings.filterwarnings("ignore", "Got pickle error", UserWarning)
                return iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigurationError(
                f"this {type(self.source).__name__} cannot be sent to a process ({brief(error)}); "
                "give functions and classes of modules rather than local ones, or context='fork' "
                "where there is one."
            ) from error


class _Failure:
    """An error on its way from a worker."""

    def __init__(self, error: Exception) -> None:
        self.told = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = WorkerError(f"{type(error).__name__}: {error}")
        self.error = error


class _Batches(Dataset[Any]):
    """The batches of a source by the number of their first task; failures are returned."""

    def __init__(self, source: TaskSource) -> None:
        self.source = source

    @override
    def __getitem__(self, first: int) -> Task | _Failure:
        try:
            batch = self.source.batch(first, self.source.tasks)
            for tensor in itertools.chain(*batch):
                if tensor.requires_grad or tensor.device.type != "cpu":
                    fault = "requires a gradient" if tensor.requires_grad else "is on a device"
                    raise ConfigurationError(
                        f"a tensor of task {first} or later {fault}, which no process can send to "
                        "another; make tasks on the CPU, and detached."
                    )
            return batch
        except Exception as error:
            return _Failure(error)


def _as_it_is(batch: Any) -> Any:
    """Return a batch unchanged; the default makes lists of tuples."""
    return batch


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold the keyboard's interrupt back from processes that begin meanwhile.

    A worker would die of one that came before it ignores them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_interrupts(worker: int) -> None:
    """Leave the keyboard's interrupt to the process that learns, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
