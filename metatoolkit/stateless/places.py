"""Where the tensors of a model and of the module that holds λ stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

Place = tuple[dict[str, Any], str]
"""A dictionary of a module, and the key under which a tensor stands there."""


class Places:
    """The places of all parameters and buffers of two modules, ties included.

    Args:
        model: The model; its names begin with ``"model."``.
        meta: Module that holds λ; its names begin with ``"meta."``. It may be a part of ``model``.

    Attributes:
        sites: Places of each tensor, by name.
        buffer_names: Names of the buffers, each tensor once.
        zero_names: Names of those that are zeros in an initial state: what modules list by their
            own names in an attribute ``begin_at_zero``, since it tells of a trajectory.
        recurrent: Modules that read their weights from a list of their own.
        empty: Places that hold no tensor.
        computed: Places of tensors that a hook computes in each pass from other parameters, as
            the older weight_norm, spectral_norm and pruning do.
        structure: Names with their ties and whether each requires a gradient.
    """

    def __init__(self, model: nn.Module, meta: nn.Module) -> None:
        self._roots = {"model": model, "meta": meta}
        modules = list({id(m): m for root in self._roots.values() for m in root.modules()}.values())
        self.recurrent = [module for module in modules if isinstance(module, nn.RNNBase)]
        self.empty: list[Place] = []
        sites: dict[int, list[Place]] = {}
        for module in modules:
            for store in (module._parameters, module._buffers):
                for key, tensor in store.items():
                    if tensor is None:
                        self.empty.append((store, key))
                    else:
                        sites.setdefault(id(tensor), []).append((store, key))
        self.computed = [place for module in modules for place in _computed(module)]
        self.sites: dict[str, list[Place]] = {}
        self.buffer_names: list[str] = []
        self.zero_names: set[str] = set()
        zeros = {id(m._buffers[key]) for m in modules for key in getattr(m, "begin_at_zero", ())}
        self.structure: dict[str, tuple[int, bool]] = {}
        first: dict[int, int] = {}
        buffers: set[int] = set()
        for name, tensor, is_buffer in self._named():
            self.sites[name] = sites[id(tensor)]
            index = first.setdefault(id(tensor), len(first))
            self.structure[name] = (index, tensor.requires_grad and not is_buffer)
            if is_buffer:
                if id(tensor) not in buffers:
                    buffers.add(id(tensor))
                    self.buffer_names.append(name)
                    self.zero_names.update([name] if id(tensor) in zeros else [])

    def _named(self) -> Iterator[tuple[str, Tensor, bool]]:
        for root, module in self._roots.items():
            for name, parameter in module.named_parameters(prefix=root):
                yield name, parameter, False
            for name, buffer in module.named_buffers(prefix=root):
                yield name, buffer, True

    def tensor(self, name: str) -> Tensor:
        """Return the tensor that stands in a place now.

        Args:
            name: Name of a parameter or a buffer.
        """
        store, key = self.sites[name][0]
        return store[key]

    def replace(self, name: str, tensor: Tensor) -> None:
        """Let another tensor stand where one does, ties included.

        Args:
            name: Name of a parameter or a buffer.
            tensor: The other tensor.
        """
        for store, key in self.sites[name]:
            store[key] = tensor

    def name(self, place: Place) -> str:
        """Return the name of a place of a parameter or a buffer.

        Args:
            place: The place.
        """
        for root, module in self._roots.items():
            for prefix, part in module.named_modules(prefix=root):
                if place[0] is part._parameters or place[0] is part._buffers:
                    return f"{prefix}.{place[1]}"
        return place[1]

    def changes(self, present: Places) -> str:
        """Return in words what is different in places that were looked up later.

        Args:
            present: The same modules' places.
        """
        before, now = self.structure, present.structure
        words = {
            "new": [name for name in now if name not in before],
            "gone": [name for name in before if name not in now],
            "frozen": [n for n in now if n in before and before[n][1] and not now[n][1]],
            "no longer frozen": [n for n in now if n in before and now[n][1] and not before[n][1]],
        }
        found = [f"{what}: {', '.join(names[:5])}" for what, names in words.items() if names]
        return "; ".join(found) or "parameters are tied in another way"


def _computed(module: nn.Module) -> Iterator[Place]:
    for hook in module._forward_pre_hooks.values():
        for attribute in ("name", "_tensor_name"):
            key = getattr(hook, attribute, None)
            if isinstance(key, str) and isinstance(vars(module).get(key), Tensor):
                yield vars(module), key
