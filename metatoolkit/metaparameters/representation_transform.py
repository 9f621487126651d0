"""Representation transformation network (MetaXL): λ bends the hidden states of one language."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metatoolkit.errors import ConfigurationError, ShapeError, UnsupportedError
from metatoolkit.metaparameters.registry import modules


@modules.register()
class RepresentationTransform(nn.Module):
    """Maps hidden states h to h + α_l g f(h), a gated bottleneck with a residual connection.

    MetaXL (Xia et al. 2021, arXiv 2104.07908, section 2.2). With o = W₂ ReLU(W₁ h + b₁) + b₂ of
    size d + 1, f is made of the first d entries and the gate g is the sigmoid of the last one. The
    input of f and g is detached, so that the encoder below learns through the residual connection
    alone. With several layers each has a network of its own and α = softmax of one number per
    layer (:attr:`weights`); all layers are transformed in one pass, where the public code takes
    one pass per layer and weights their losses. With one layer α is 1 and no parameter.

    :meth:`attach` puts it into an encoder by forward hooks. There it does nothing outside of
    :meth:`active`, so that source sentences are transformed and target sentences are not. It does
    not become a submodule of the encoder, and its parameters never become inner parameters.

    Cost of a layer: 2 d b products per token with the bottleneck b, against about 12 d² of a
    transformer layer. It has 2 d b + 2 b + d + 1 parameters: 591,361 for d = 768 and b = 384.

    Args:
        size: Size d of the hidden states.
        bottleneck: Size b of the hidden layer; ``None`` for d / 2.
        layers: Number of layers that are transformed.

    Raises:
        ConfigurationError: A number is less than 1.

    Example:
        >>> transform = RepresentationTransform(size=8, bottleneck=4)
        >>> transform(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, size: int, bottleneck: int | None = None, layers: int = 1) -> None:
        super().__init__()
        bottleneck = max(1, size // 2) if bottleneck is None else bottleneck
        for name, number in (("size", size), ("bottleneck", bottleneck), ("layers", layers)):
            if number < 1:
                raise ConfigurationError(f"{name} is {number}; at least 1 is needed.")
        self.size = size
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(size, bottleneck), nn.ReLU(), nn.Linear(bottleneck, size + 1))
            for _ in range(layers)
        )
        for module in self.networks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
        self.alpha = nn.Parameter(torch.zeros(layers)) if layers > 1 else None
        self._active = False
        self._tokens: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def weights(self) -> Tensor:
        """Weights α of the layers, of shape (layers,); they sum to 1."""
        if self.alpha is None:
            return next(self.parameters()).new_ones(1)
        return torch.softmax(self.alpha, dim=0)

    def forward(self, hidden: Tensor, layer: int = 0, tokens: Tensor | None = None) -> Tensor:
        """Return the transformed hidden states.

        Args:
            hidden: Hidden states of shape (..., size).
            layer: Number of the network, from 0, among the layers that are transformed.
            tokens: Which to transform, boolean of a shape that expands to ``hidden.shape[:-1]``
                after dimensions of size 1 at its end; ``None`` for all.

        Returns:
            Hidden states of the same shape and type.

        Raises:
            ShapeError: The hidden states have another size, or ``tokens`` does not fit.
        """
        if hidden.dim() < 1 or hidden.shape[-1] != self.size:
            raise ShapeError(
                f"hidden states have shape {tuple(hidden.shape)}; this transform takes "
                f"(..., {self.size})."
            )
        network = self.networks[layer]
        # The encoder may compute in another precision than this network.
        output = network(hidden.detach().to(next(network.parameters()).dtype))
        change = torch.sigmoid(output[..., -1:]) * output[..., :-1]
        if self.alpha is not None:
            change = self.weights[layer] * change
        if tokens is not None:
            change = change * self._mask(tokens, hidden)
        return hidden + change.to(hidden.dtype)

    @staticmethod
    def _mask(tokens: Tensor, hidden: Tensor) -> Tensor:
        missing = hidden.dim() - 1 - tokens.dim()
        mask = tokens.reshape(*tokens.shape, *([1] * missing))
        try:
            return mask.expand(hidden.shape[:-1]).unsqueeze(-1)
        except RuntimeError as error:
            raise ShapeError(
                f"tokens have shape {tuple(tokens.shape)}, hidden states {tuple(hidden.shape)}; "
                "one entry per sentence, (batch,), or per token, (batch, tokens), is needed."
            ) from error

    @contextlib.contextmanager
    def active(self, tokens: Tensor | None = None) -> Iterator[None]:
        """Switch the transform on in the encoder that it is attached to, for the body.

        Args:
            tokens: Which tokens are of the source language, boolean of shape (batch,) or
                (batch, tokens); ``None`` for all of what passes the encoder.

        Yields:
            Nothing.
        """
        before = self._active, self._tokens
        self._active, self._tokens = True, tokens
        try:
            yield
        finally:
            self._active, self._tokens = before

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        layers: Sequence[int] = (-1,),
        bottleneck: int | None = None,
        stack: str | None = None,
    ) -> RepresentationTransform:
        """Put a new transform behind layers of an encoder, and return it.

        Args:
            model: An encoder of Hugging Face's transformers, with a head or without (BERT,
                XLM-RoBERTa, DistilBERT, ...), or any module with one stack of equal layers, such
                as :class:`torch.nn.TransformerEncoder`.
            layers: Which layers' outputs to transform, from 0; negative ones count from the last.
            bottleneck: As in the class.
            stack: Name in ``model`` of the ``ModuleList`` that holds the layers, for instance
                ``"bert.encoder.layer"``; ``None`` finds it.

        Returns:
            The transform, on the device of the model, of its type, in the order of ``layers``.

        Raises:
            UnsupportedError: The layers cannot be found.
            ConfigurationError: A layer does not exist or is named twice, or ``stack`` is no list
                of layers.
        """
        if isinstance(layers, int):
            raise ConfigurationError(f"layers is {layers}; give a list: [{layers}].")
        found = find_layers(model, stack)
        chosen = [_position(index, len(found)) for index in layers]
        if not chosen or len(set(chosen)) < len(chosen):
            raise ConfigurationError(
                f"layers is {list(layers)}; at least one is needed, and none twice."
            )
        modules = [found[index] for index in chosen]
        reference = next(modules[0].parameters())
        transform = cls(_hidden_size(model, modules[0]), bottleneck, len(chosen))
        transform.to(device=reference.device, dtype=reference.dtype)
        for number, module in enumerate(modules):
            handle = module.register_forward_hook(_Hook(transform, number))
            transform._handles.append(handle)
        return transform

    def remove(self) -> None:
        """Take the transform out of the encoder that it was attached to."""
        while self._handles:
            self._handles.pop().remove()


@dataclasses.dataclass
class _Hook:
    """Forward hook of one layer; a class, so that an encoder that holds it can be stored."""

    transform: RepresentationTransform
    number: int

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        transform = self.transform
        if not transform._active:
            return output
        if isinstance(output, Tensor):
            return transform(output, self.number, transform._tokens)
        return (transform(output[0], self.number, transform._tokens), *output[1:])


def find_layers(model: nn.Module, stack: str | None = None) -> nn.ModuleList:
    """Return the stack of layers of an encoder.

    It is the one ``ModuleList`` of equal modules with parameters that lies in no other such list
    and, where ``model.config`` tells the number of layers, has this length. Of a model with
    encoder and decoder it is the encoder's.

    Args:
        model: Any module.
        stack: Name of the list in ``model``; ``None`` finds it.

    Raises:
        UnsupportedError: There is no such list, or there are several.
        ConfigurationError: ``stack`` names no list of layers.
    """
    named = dict(model.named_modules())
    if stack is not None:
        given = named.get(stack)
        if not isinstance(given, nn.ModuleList) or len(given) == 0:
            lists = [name for name, module in named.items() if isinstance(module, nn.ModuleList)]
            raise ConfigurationError(
                f"stack is {stack!r}, which names no list of layers of {type(model).__name__}; "
                f"its lists are: {', '.join(lists) or 'none'}."
            )
        return given
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        encoder: Any = model
        named = dict(encoder.get_encoder().named_modules())
    count = getattr(config, "num_hidden_layers", None)
    found: dict[str, nn.ModuleList] = {}
    for name, module in named.items():
        nested = any(name.startswith(f"{outer}.") for outer in found)
        if not nested and _is_stack(module) and count in (None, len(module)):
            found[name] = module
    if len(found) != 1:
        what = f"several: {', '.join(found)}" if found else "none"
        length = "" if count is None else f" of length {count}"
        raise UnsupportedError(
            f"{type(model).__name__} should hold one ModuleList{length} of equal layers, but "
            f"there is {what}. Pass stack='...', the name of the list that holds the layers."
        )
    return next(iter(found.values()))


def _is_stack(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList) or len(module) == 0:
        return False
    kinds = {type(layer) for layer in module}
    matrices = [sum(p.dim() == 2 for p in layer.parameters()) for layer in module]
    return len(kinds) == 1 and min(matrices) > 1


def _position(index: Any, count: int) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or not -count <= index < count:
        raise ConfigurationError(
            f"layers holds {index!r}; the encoder has {count} layers: integers from {-count} to "
            f"{count - 1} are accepted."
        )
    return index % count


def _hidden_size(model: nn.Module, layer: nn.Module) -> int:
    """Return d from the configuration, or from the last normalization of a layer."""
    size = getattr(getattr(model, "config", None), "hidden_size", None)
    if isinstance(size, int):
        return size
    norms = [module for module in layer.modules() if isinstance(module, nn.LayerNorm)]
    if not norms:
        raise UnsupportedError(
            f"{type(model).__name__} has no config.hidden_size and its layers no LayerNorm, so "
            "that the size of the hidden states is unknown; give the model a config with one."
        )
    return int(norms[-1].normalized_shape[-1])
