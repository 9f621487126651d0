"""BatchNorm per inner step (MAML++): λ is a scale and a shift for each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from typing_extensions import override

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.metaparameters.placement import attach_at
from metatoolkit.metaparameters.task_rule import TaskRule
from metatoolkit.state import InnerState, Tensors


class StepCounter(nn.Module):
    """Counts the inner steps that were begun, for layers that differ from step to step.

    The count is a buffer of the inner state, and 0 in the initial one.
    """

    begin_at_zero: ClassVar[tuple[str, ...]] = ("steps",)
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0), persistent=False)

    def advance(self) -> None:
        """Count one more step."""
        self.steps = self.steps + 1

    def row(self, rows: Tensor) -> Tensor:
        """Return the row of the step that was begun last; of the last row where there are fewer.

        Args:
            rows: Tensor of shape (T, ...), a row for each step.
        """
        return rows.index_select(0, self._place(len(rows)))[0]

    def marks(self, rows: Tensor) -> Tensor:
        """Return which row :meth:`row` returns, of shape (T,).

        Args:
            rows: Tensor of shape (T, ...).
        """
        return torch.arange(len(rows), device=rows.device) == self._place(len(rows))

    def _place(self, count: int) -> Tensor:
        return (self.steps - 1).clamp(0, count - 1).reshape(1)


class StepBatchNorm(nn.Module):
    """BatchNorm with a scale, a shift and running statistics for each of T inner steps.

    From Antoniou et al. 2019, arXiv 1810.09502, section 4 (BNRS and BNWB). In train mode the
    statistics are those of the batch, in eval mode the running ones of the step. The outer loss
    after a step is of that step, and so is any pass before the next one begins.

    Args:
        norm: Layer whose scale, shift and statistics each step begins with.
        steps: Number of inner steps T.
        counter: What tells the step; all layers of a network share it.

    Raises:
        ConfigurationError: The layer keeps no running statistics with a fixed momentum.

    Attributes:
        weight: Scales, of shape (T, channels), or ``None``.
        bias: Shifts, likewise.
        running_mean: Running means, of shape (T, channels); no gradient moves them.
        running_var: Running variances, likewise.
    """

    begin_at_zero: ClassVar[tuple[str, ...]] = ("seen", "seen_mean", "seen_var")
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    seen: Tensor
    seen_mean: Tensor
    seen_var: Tensor

    def __init__(self, norm: _BatchNorm, steps: int, counter: StepCounter) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None or norm.momentum is None:
            raise ConfigurationError(
                f"{norm} keeps no running statistics, or their plain mean; BatchNorm per step "
                "needs track_running_stats=True and a number as momentum."
            )
        self.eps, self.momentum, self.counter = norm.eps, norm.momentum, counter
        for name in ("weight", "bias", "running_mean", "running_var"):
            first: Tensor | None = getattr(norm, name)
            rows = None
            if first is not None:
                learned = first.requires_grad
                rows = nn.Parameter(first.detach().repeat(steps, 1), requires_grad=learned)
            self.register_parameter(name, rows)
        like = self.get_parameter("running_mean")
        zeros = {"seen": like.new_zeros(steps), "seen_mean": like, "seen_var": like}
        for name, tensor in zeros.items():
            self.register_buffer(name, torch.zeros_like(tensor.detach()), persistent=False)
        self.train(norm.training)

    def forward(self, features: Tensor) -> Tensor:
        """Return the normalized features, of the same shape.

        Args:
            features: Tensor of shape (batch, channels, ...).
        """
        row = self.counter.row
        scale, shift = (None if part is None else row(part) for part in (self.weight, self.bias))
        means, variances = map(self.get_parameter, ("running_mean", "running_var"))
        if not self.training:
            mean, variance = row(means), row(variances)
            return F.batch_norm(features, mean, variance, scale, shift, eps=self.eps)
        normalized = F.batch_norm(features, None, None, scale, shift, True, eps=self.eps)
        dims = [0, *range(2, features.dim())]
        variance, mean = torch.var_mean(features.detach(), dims)
        marks = self.counter.marks(means)
        self.seen = torch.where(marks, torch.ones_like(self.seen), self.seen)
        self.seen_mean = torch.where(marks[:, None], mean, self.seen_mean)
        self.seen_var = torch.where(marks[:, None], variance, self.seen_var)
        return normalized

    def extra_repr(self) -> str:
        """Return number of steps, channels and the constants."""
        steps, channels = self.seen_mean.shape
        return f"{channels}, steps={steps}, eps={self.eps}, momentum={self.momentum}"


class StepBatchNorms(TaskRule):
    """All layers of a network that are BatchNorm per step.

    Made by :func:`insert_step_batch_norms`. Scales and shifts are λ. Running statistics move after
    each meta step towards the mean, over its tasks, of those that each inner step met on its
    training batch; the outer loss moves none. The training loss must call :meth:`begin_step`.

    Args:
        layers: Layers by their names in the network, in its order.
        counter: The counter that they share.
    """

    def __init__(self, layers: Mapping[str, StepBatchNorm], counter: StepCounter) -> None:
        super().__init__()
        self.counter = counter
        # A module without attributes of its own: no name of a network's layers is taken in it.
        self.layers = nn.Module()
        for name, layer in layers.items():
            attach_at(self.layers, name, layer)
        self._names = list(layers)

    def begin_step(self) -> None:
        """Go on to the next step; to be called once, first of all, in the training loss."""
        self.counter.advance()

    @override
    def observe(self, start: InnerState, final: InnerState) -> Tensors:
        """Return which steps were taken, and mean and variance at each, by layer.

        Raises:
            UnsupportedError: The training loss did not begin as many steps as were taken, or the
                network is a part of another.
        """
        count = f"model.{self._names[0]}.counter.steps"
        if count not in final.buffers:
            raise UnsupportedError(
                f"the inner state has no buffer {count!r}: insert step batch norms into the model "
                "of the problem itself, not into a part of it."
            )
        begun, taken = int(final.buffers[count] - start.buffers[count]), final.step - start.step
        if begun != taken:
            raise UnsupportedError(
                f"{begun} steps of BatchNorm were begun in {taken} inner steps; call begin_step() "
                "of the StepBatchNorms once in each training loss, and in no other."
            )
        return {
            f"{kind}.{name}": final.buffers[f"model.{name}.{kind}"]
            for name in self._names
            for kind in StepBatchNorm.begin_at_zero
        }

    @override
    def take_in(self, total: Tensors, tasks: int) -> None:
        del tasks
        for name in self._names:
            layer = self.layers.get_submodule(name)
            assert isinstance(layer, StepBatchNorm)
            count = total[f"seen.{name}"][:, None]
            for kind in ("mean", "var"):
                running = layer.get_parameter(f"running_{kind}")
                mean = total[f"seen_{kind}.{name}"] / count.clamp(min=1)
                running.copy_(torch.where(count > 0, running.lerp(mean, layer.momentum), running))


def insert_step_batch_norms(model: nn.Module, steps: int) -> StepBatchNorms:
    """Put BatchNorm per inner step in the place of each BatchNorm layer of a network.

    Memory: T times the scales, shifts and statistics of the layers, and T times the statistics in
    each inner state.

    Args:
        model: Network; changed in place.
        steps: Number of inner steps T.

    Returns:
        The layers as one module.

    Raises:
        ConfigurationError: ``steps`` is below 1, there is no such layer, or one cannot be replaced.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> meta = insert_step_batch_norms(model, steps=5)
        >>> [(n, tuple(p.shape)) for n, p in meta.named_parameters() if p.requires_grad]
        [('layers.1.weight', (5, 4)), ('layers.1.bias', (5, 4))]
    """
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; at least 1 is needed.")
    counter = StepCounter()
    layers: dict[str, StepBatchNorm] = {}
    replaced: dict[nn.Module, StepBatchNorm] = {}
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if not name or isinstance(module, nn.SyncBatchNorm | _LazyNormBase) or _is_followed(module):
            raise ConfigurationError(
                f"{name or 'model'} ({type(module).__name__}) cannot be replaced by BatchNorm per "
                "step; a BatchNorm layer of a network is needed, that has seen its number of "
                "channels and has no hooks."
            )
        layers[name] = replaced[module] = StepBatchNorm(module, steps, counter)
    if not layers:
        raise ConfigurationError(
            f"model ({type(model).__name__}) has no BatchNorm layer that could be one per step."
        )
    counter.to(next(iter(layers.values())).seen.device)
    # A layer that stands in several places stands there again.
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in replaced:
                setattr(parent, key, replaced[child])
    return StepBatchNorms(layers, counter)


def _is_followed(module: nn.Module) -> bool:
    """Return whether a hook or a layer of others stands on a layer."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._modules)
