"""Features that the passes of one hypergradient share: what stands before all that is perturbed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.detached import DETACHING
from metatoolkit.hypergradients.holding import CUTTING, READERS
from metatoolkit.hypergradients.trajectory import valid_key
from metatoolkit.problem import BilevelProblem, Loss
from metatoolkit.randomness import Place, fold_in, go_to, place
from metatoolkit.state import InnerState, Tensors, tree_map

Prefix = Callable[[nn.Module, nn.Module, Any], Any]
"""Function ``(model, meta, batch) -> batch of features``, with which the losses go on."""


def share_prefix(
    prefix: Prefix,
    problem: BilevelProblem,
    state: InnerState,
    meta: Tensors,
    perturbed: Collection[str],
    batch: Any,
    valid_batch: Any,
) -> tuple[BilevelProblem, Any, Any]:
    """Compute the features of both batches once, without a graph.

    The validation batch passes the prefix in the mode of the outer loss. Each loss goes on with the
    random numbers where the prefix left them, in every pass anew: its dropout masks are those of
    a loss that begins with the prefix and is given the batch itself.

    Args:
        prefix: The function.
        problem: The bilevel problem.
        state: Detached state; its θ and buffers are those of the prefix.
        meta: Meta-parameters by name.
        perturbed: Names of the inner parameters that differ from pass to pass.
        batch: Training batch.
        valid_batch: Batch for the outer loss.

    Returns:
        A problem whose losses take the features, the features of the training batch and those of
        the validation batch. Cost: one pass of the prefix for each batch.

    Raises:
        ConfigurationError: The features depend on λ or on a perturbed parameter, or were made
            under ``torch.inference_mode``.
    """
    shared = _keyed(problem)
    train = _Pass(prefix, problem, "train")
    valid = _Pass(prefix, problem, "valid")
    key = fold_in(state.key, state.step)
    features = train.run(state, meta, perturbed, batch, key)
    valid_features = valid.run(state, meta, perturbed, valid_batch, valid_key(state))
    shared.train_loss = train.resume(problem.train_loss)
    shared.valid_loss = valid.resume(problem.valid_loss)
    return shared, features, valid_features


def _keyed(problem: BilevelProblem) -> BilevelProblem:
    """Return a copy whose losses draw all their random numbers from the key from the start.

    Otherwise they would come from there only once a loss was seen to draw them, and the place
    where the prefix left them would be the user's own.
    """
    copied = copy.copy(problem)
    copied._passes = copy.copy(problem._passes)
    copied._passes.always_seeded = True
    return copied


class _Pass:
    """One pass of the prefix, and the place in the random numbers where it ended."""

    def __init__(
        self, prefix: Prefix, problem: BilevelProblem, kind: Literal["train", "valid"]
    ) -> None:
        self._prefix = prefix
        self._kind = kind
        self._problem = _keyed(problem)
        # The problem evaluates losses alone: this one leaves the features behind.
        setattr(self._problem, f"{kind}_loss", self._compute)
        self._features: Any = None
        self._read: list[Tensor] = []
        self._place: Place | None = None

    def run(
        self, state: InnerState, meta: Tensors, perturbed: Collection[str], batch: Any, key: int
    ) -> Any:
        """Return the features, detached."""
        # With these leaves alone no graph grows, unless the features depend on one of them.
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in meta.items()}
        parameters = {
            name: tensor.detach().requires_grad_(name in perturbed)
            for name, tensor in state.parameters.items()
        }
        evaluate = getattr(self._problem, f"evaluate_{self._kind}")
        with torch.enable_grad():
            evaluate(parameters, leaves, state.buffers, batch, key)
        inner = {name: parameters[name] for name in parameters if name in perturbed}
        _refuse_dependence([self._features, self._read], leaves, inner)
        features, self._features, self._read = self._features, None, []
        return tree_map(Tensor.detach, features)

    def _compute(self, model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
        with _SeeThrough() as seen:
            self._features = self._prefix(model, meta, batch)
        self._read = seen.read
        self._place = place(self._problem.devices())
        return torch.zeros(())

    def resume(self, loss: Loss) -> Loss:
        """Return the loss, with random numbers from where the prefix ended."""

        def resumed(model: nn.Module, meta: nn.Module, batch: Any) -> Tensor:
            if self._place is not None:
                go_to(self._place)
            return loss(model, meta, batch)

        return resumed


class _SeeThrough(TorchFunctionMode):
    """Lets neither ``detach`` nor ``no_grad`` hide what depends on what.

    Attributes:
        read: Tensors with a graph that were read as numbers or copied without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        if func in DETACHING:
            return args[0].view_as(args[0])
        name = getattr(func, "__name__", "")
        if name in READERS or name in CUTTING:
            given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.read += [leaf.view_as(leaf) for leaf in given if leaf.requires_grad]
            if name in READERS:
                # NumPy reads no tensor with a graph.
                args = tree_map(Tensor.detach, args)
        return func(*args, **(kwargs or {}))


def _refuse_dependence(features: Any, meta: Tensors, inner: Tensors) -> None:
    tensors = [leaf for leaf in tree_leaves(features) if isinstance(leaf, Tensor)]
    if any(tensor.is_inference() for tensor in tensors):
        raise ConfigurationError(
            "prefix computes under torch.inference_mode, where it cannot be seen what its features "
            "depend on; leave that out, for no graph grows, or use torch.no_grad."
        )
    outputs = [tensor.sum() for tensor in tensors if tensor.requires_grad]
    if not outputs:
        return
    total = torch.stack([output.double() for output in outputs]).sum()
    for what, leaves, remedy in (
        ("the meta-parameters", meta, "move what λ enters from the prefix to the losses"),
        (
            "inner parameters that are perturbed,",
            inner,
            "name in perturb only parameters that the losses use after the prefix",
        ),
    ):
        found = torch.autograd.grad(
            total, list(leaves.values()), retain_graph=True, allow_unused=True
        )
        names = [name for name, g in zip(leaves, found, strict=True) if g is not None]
        if names:
            raise ConfigurationError(
                f"prefix depends on {what} {', '.join(names[:5])}"
                f"{', ...' if len(names) > 5 else ''}, so that its features are not the same for "
                f"all candidates: {remedy}."
            )
