"""A call of an estimator as tensors, and all else that tells it from others of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metatoolkit.hypergradients.fingerprints import PLAIN, Fingerprints
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, tree_map

if TYPE_CHECKING:
    from metatoolkit.hypergradients.base import Estimator

Key = dict[str, Any]
"""What a call is made of beside the values of its tensors, by what it is, in words."""


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of one call, the state detached."""

    estimator: Estimator
    problem: BilevelProblem
    inner: InnerLearner
    state: InnerState
    train_batches: Sequence[Any]
    valid_batch: Any

    def given(self) -> tuple[list[Tensor], Key, list[Any]]:
        """Return the tensors of the call, what tells it from others of its kind, and pins.

        Pins are objects that the key names by their identity, which holds as long as they live.
        """
        leaves = _Leaves()
        state, prints = self.state, Fingerprints()
        slots = state.optimizer
        tensors = [state.parameters, *slots.values(), state.buffers]
        names = [(slot, *values) for slot, values in slots.items()]
        for named in tensors:
            for tensor in named.values():
                leaves.add_tensor(tensor)
        problem = self.problem
        live = problem.meta_parameters().values()
        # What varies most comes first: it is what is told of.
        key: Key = {
            "the inner state": (
                tuple(leaves.told),
                (*state.parameters,),
                (*state.buffers,),
                tuple(names),
                tuple(state.missed.items()),
                type(state.key),
            ),
        }
        leaves.told = []
        for batch in self.train_batches:
            leaves.add(batch)
        leaves.add(self.valid_batch)
        key["the batches"] = tuple(leaves.told)
        key["the meta-parameters"] = tuple(map(layout, live))
        key["the modes and attributes of the modules"] = (
            prints.of_modules(problem.model),
            prints.of_modules(problem.meta),
        )
        key["the losses and what they close over"] = (
            prints.of(problem.train_loss),
            prints.of(problem.valid_loss),
            prints.of(problem.initial),
            (problem.identity, type(problem), problem.blocks, problem.valid_mode),
            (tuple(problem.micro_batched.sizes.items()), problem.micro_batched.weighings),
        )
        key["the options of the estimator"] = prints.of_estimator(self.estimator)
        key["the inner learner"] = (type(self.inner), prints.of_attributes(self.inner))
        key["settings of PyTorch"] = _settings()
        key["objects in the batches"] = leaves.strange
        return leaves.tensors, key, prints.pins

    def exchanged(self, others: Sequence[Tensor]) -> Call:
        """Return the call with other tensors in the places of those that :meth:`given` returned.

        Args:
            others: As many tensors.
        """
        remaining = iter(others)

        def other(tensor: Tensor) -> Tensor:
            del tensor
            return next(remaining)

        return dataclasses.replace(
            self,
            state=self.state.map(other),
            train_batches=[tree_map(other, batch) for batch in self.train_batches],
            valid_batch=tree_map(other, self.valid_batch),
        )


def layout(tensor: Tensor) -> tuple[Any, ...]:
    """Return what code that is made for a tensor depends on, beside its values.

    Args:
        tensor: A tensor of any kind.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return "other", id(tensor)
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class _Leaves:
    """The tensors of trees, in the order of ``tree_map``, and all else in them."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.told: list[Any] = []
        self.strange = ""

    def add_tensor(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        self.told.append(layout(tensor))
        return tensor

    def add_object(self, leaf: Any) -> Any:
        self.told.append((type(leaf), leaf) if type(leaf) in PLAIN else type(leaf))
        if type(leaf) not in PLAIN:
            self.strange = self.strange or type(leaf).__name__
        return leaf

    def add(self, tree: Any) -> None:
        kind = type(tree)
        if kind is Tensor:
            self.add_tensor(tree)
        elif kind is tuple or kind is list:
            # The most frequent batches by themselves: a pytree takes ten times as long.
            self.told.append((kind, len(tree)))
            for part in tree:
                self.add(part)
        elif kind in PLAIN:
            self.told.append((kind, tree))
        else:
            self.told.append(kind)
            if kind is dict:
                self.told.append(tuple(tree))
            tree_map(self.add_tensor, tree, on_object=self.add_object)


def _settings() -> tuple[Any, ...]:
    autocast = [
        (torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        for device in ("cpu", "cuda")
    ]
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        *autocast,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    )
