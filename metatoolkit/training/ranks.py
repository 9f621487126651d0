"""The processes of a distributed run, which share the tasks of each batch."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from metatoolkit.errors import ConfigurationError, RankError, brief
from metatoolkit.hypergradients.base import Cost, Hypergradient
from metatoolkit.hypergradients.products import as_real, as_vector
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.training.task_batches import TaskBatch, tensors_of
from metatoolkit.training.task_rules import TaskRules

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOSSES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_REMEDY = (
    "start the program by torchrun --nproc-per-node 2 program.py, say, and call mt.join_ranks()"
)


def started_processes() -> int:
    """Return how many processes torchrun started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_ranks(seconds: float = 300.0, backend: str | None = None) -> tuple[int, int]:
    """Join the processes that torchrun started, so that they can share tasks.

    Args:
        seconds: How long to wait for the others, here and in each exchange afterwards.
        backend: Backend of ``torch.distributed``; by default gloo, or nccl where each process has
            a GPU of its own, which becomes the current one.

    Returns:
        The rank of this process and the number of processes.

    Raises:
        ConfigurationError: This process was not started by torchrun.
        RankError: Not all of the others come.
    """
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} is not set in the environment: {_REMEDY}.")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if backend is None:
        each = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
        backend = "nccl" if each and dist.is_nccl_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(local)
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"rank {os.environ['RANK']} waited {seconds:g} s for "
            f"{os.environ['WORLD_SIZE']} processes in all, and not all of them joined "
            f"({brief(error)}). Look at what the others print, and at MASTER_ADDR and MASTER_PORT "
            "where they run on several machines."
        ) from error
    return dist.get_rank(), dist.get_world_size()


class Ranks:
    """The processes of the default group of ``torch.distributed``.

    Attributes:
        rank: Number of this process.
        count: Number of processes.

    Raises:
        ConfigurationError: There is no such group.
    """

    def __init__(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigurationError(
                f"sharded=True, but torch.distributed has no process group: {_REMEDY}."
            )
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._compared = False

    def mean(
        self,
        problem: BilevelProblem,
        begun: tuple[InnerState, TaskBatch],
        run: Callable[[range], Hypergradient],
        rules: TaskRules | None = None,
    ) -> Hypergradient:
        """Return the mean over all tasks, of which each process runs a contiguous part.

        Gradients, losses and failures take one all-reduce. The cost that is told is that of this
        process, and so are the states.

        Args:
            problem: The bilevel problem.
            begun: Initial state and batch of tasks, the same in all processes.
            run: Returns the mean over tasks of some numbers, which this process runs.
            rules: Parts of λ with rules of their own, if there are any.

        Raises:
            RankError: Another process failed, is gone, or has other tasks or parameters.
        """
        start, batch = begun
        if not self._compared:
            moved = {} if rules is None else rules.parameters()
            self._compare(problem, start, batch, moved)
            self._compared = True
        edges = [rank * batch.count // self.count for rank in (self.rank, self.rank + 1)]
        share, failure, result = range(*edges), None, None
        # Of the shapes that all processes know, also those that have no task.
        observed = rules.observe(start, start) if rules else {}
        try:
            result = run(share) if share else None
        except Exception as error:
            failure = error
        meta = problem.meta_parameters()
        gradients = {name: torch.zeros_like(tensor) for name, tensor in meta.items()}
        losses = torch.zeros(batch.count)
        if result is not None:
            gradients = {name: len(share) * g for name, g in result.gradient.items()}
            found = result.details["task_losses"]
            losses = found.new_zeros(batch.count)
            losses[share.start : share.stop] = found
            observed = result.details.get("observed", {})
        failed, kinds = torch.zeros(self.count), torch.zeros(len(_LOSSES))
        failed[self.rank] = failure is not None
        if result is not None:
            kinds[_LOSSES.index(losses.dtype)] = 1
        leaves, spec = tree_flatten(observed)
        total = self._summed([failed, kinds, losses, *gradients.values(), *leaves], failure)
        ranks = total[0].nonzero().flatten().tolist()
        if failure is not None:
            raise failure
        if ranks:
            raise RankError(
                f"rank {ranks[0]} failed, so that rank {self.rank} ends, too: look at what that "
                "process prints."
            )
        types = [_LOSSES[place] for place in total[1].nonzero().flatten().tolist()]
        losses = total[2].to(functools.reduce(torch.promote_types, types))
        mean = {
            name: (sum_ / batch.count).to(tensor)
            for (name, tensor), sum_ in zip(meta.items(), total[3:], strict=False)
        }
        told: dict[str, Any] = {} if result is None else dict(result.details)
        if leaves:
            sums = [s.to(leaf) for s, leaf in zip(total[-len(leaves) :], leaves, strict=True)]
            told["observed"] = tree_unflatten(sums, spec)
        return Hypergradient(
            gradient=mean,
            valid_loss=losses.mean(),
            state=start,
            cost=Cost(forward=0, backward=0) if result is None else result.cost,
            details={**told, "task_losses": losses, "share": share},
        )

    def _summed(self, parts: list[Tensor], failure: Exception | None) -> list[Tensor]:
        """Return the sums of tensors over all processes, by one all-reduce.

        It is in double precision, whatever the types: one that has no task knows no loss's type.
        """
        flat = as_vector((part.detach() for part in parts), torch.float64, parts[-1].device)
        with _others_are_there(failure):
            dist.all_reduce(flat)
        sums = []
        for part, total in zip(parts, flat.split([as_real(p).numel() for p in parts]), strict=True):
            entry = total.view(as_real(part).shape)
            sums.append(torch.complex(*entry.unbind(-1)) if part.is_complex() else entry)
        return sums

    def _compare(
        self, problem: BilevelProblem, start: InnerState, batch: TaskBatch, moved: Tensors
    ) -> None:
        """Raise unless all processes begin with the same λ, θ, random key and tasks."""
        tasks = [batch.task(number) for number in range(batch.count)]
        mine = {
            "the meta-parameters": _digest([problem.meta_parameters(), moved]),
            "the initial inner parameters": _digest([dict(start.parameters), dict(start.buffers)]),
            "the random key (the seed of the trainer)": str(start.key),
            "the number of tasks": str(batch.count),
            "the tasks (the seed of their source)": _digest([list(task) for task in tasks]),
        }
        everyone: list[Any] = [None] * self.count
        with _others_are_there(None):
            dist.all_gather_object(everyone, mine)
        for rank, other in enumerate(everyone):
            differ = [name for name, value in mine.items() if other[name] != value]
            if differ:
                raise RankError(
                    f"{differ[0]} differ between rank {self.rank} and rank {rank}; all processes "
                    "must begin alike and draw the same batches, of which each runs its part: "
                    "give them the same seeds."
                )


@contextlib.contextmanager
def _others_are_there(failure: Exception | None) -> Iterator[None]:
    """Tell what it means where an exchange between processes fails."""
    try:
        yield
    except RuntimeError as error:
        if failure is not None:
            raise failure from error
        raise RankError(
            f"a process of the run is gone or no longer answers ({brief(error)}). What was reached "
            "is in the checkpoint, where one was asked for: resume from it, with any number of "
            "processes."
        ) from error


def _digest(tree: Any) -> str:
    """Return a digest of the types, shapes and values of the tensors of a tree."""
    hashed = hashlib.sha256()
    for tensor in tensors_of(tree):
        plain = tensor.detach().cpu().contiguous()
        hashed.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        hashed.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
