"""One move of λ: clipping of the hypergradient, the meta-optimizer, its scheduler."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metatoolkit.errors import ConfigurationError
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import Tensors
from metatoolkit.training.checks import described
from metatoolkit.training.running_signal import SIGNAL_TO_NOISE, RunningSignal

_LOOKED_AT = 10
"""Moves of λ in which a part of it that never has a gradient is looked for."""


class MetaUpdate:
    """Moves λ along hypergradients; ``.grad`` fields are afterwards what they were before.

    Args:
        problem: Problem with the meta-parameters.
        optimizer: Optimizer of the meta-parameters.
        scheduler: Scheduler of the optimizer's learning rate, stepped after each move, or
            ``None``.
        clip_norm: Largest norm of the hypergradient over all meta-parameters, or ``None``.
        signal_window: About how many moves signal and noise are averaged over, or ``None``.

    Raises:
        ConfigurationError: The optimizer is none of the meta-parameters alone, the scheduler is
            another optimizer's, or the norm is not above 0.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None = None,
        clip_norm: float | None = None,
        signal_window: int | None = None,
    ) -> None:
        _check_optimizer(problem, optimizer)
        _check_scheduler(optimizer, scheduler)
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise ConfigurationError(
                f"clip_norm is {clip_norm}; a finite number above 0 is needed, or None."
            )
        self.problem = problem
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip_norm = clip_norm
        self.signal = None if signal_window is None else RunningSignal(signal_window)
        self._moves = 0
        self._reached: Tensor | None = None

    def move(self, gradients: Sequence[Tensors], valid_loss: Tensor) -> dict[str, Tensor]:
        """Move λ once along the mean of hypergradients.

        Args:
            gradients: One hypergradient by name for each meta batch.
            valid_loss: Mean outer loss, which ``ReduceLROnPlateau`` looks at.

        Returns:
            ``hypergradient_norm``, that of the mean before it is clipped, and from the second move
            on ``hypergradient_signal_to_noise``, if there is a window; 0-d tensors.
        """
        names = list(self.problem.meta_parameter_names)
        mean = [gradients[0][name] for name in names]
        for further in gradients[1:]:
            mean = list(torch._foreach_add(mean, [further[name] for name in names]))
        if len(gradients) > 1:
            mean = list(torch._foreach_div(mean, len(gradients)))
        norms = torch.stack(torch._foreach_norm(mean))
        norm = torch.linalg.vector_norm(norms)
        if self._moves < _LOOKED_AT:
            self._look_for_idle_ones(norms)
        if self.signal is not None:
            self.signal.see(mean)
        if self.clip_norm is not None:
            # As torch.nn.utils.clip_grad_norm_ does it.
            factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            mean = list(torch._foreach_mul(mean, factor))
        held = [(p, p.grad) for group in self.optimizer.param_groups for p in group["params"]]
        try:
            for parameter, _ in held:
                parameter.grad = None
            live = self.problem.meta_parameters()
            for name, gradient in zip(names, mean, strict=True):
                live[name].grad = gradient
            self.optimizer.step()
        finally:
            for parameter, gradient in held:
                parameter.grad = gradient
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(float(valid_loss))
        elif self.scheduler is not None:
            self.scheduler.step()
        metrics = {"hypergradient_norm": norm}
        if self.signal is not None and self.signal.ratio is not None:
            metrics[SIGNAL_TO_NOISE] = self.signal.ratio
        return metrics

    def _look_for_idle_ones(self, norms: Tensor) -> None:
        """Warn of meta-parameters whose hypergradient was zero in each of the first moves."""
        self._moves += 1
        moved = norms != 0
        self._reached = moved if self._reached is None else self._reached | moved
        if self._moves < _LOOKED_AT or bool(self._reached.all()):
            return
        pairs = zip(self.problem.meta_parameter_names, self._reached.tolist(), strict=True)
        idle = [name for name, reached in pairs if not reached]
        warnings.warn(
            f"the hypergradient of {', '.join(idle[:5])} was exactly zero in the first "
            f"{_LOOKED_AT} moves of λ: no loss depends on it, or its path is cut off by detach(), "
            "torch.no_grad() or a dead unit. If that is meant, freeze it with "
            "requires_grad_(False) before the problem is made.",
            stacklevel=2,
        )


def _check_optimizer(problem: BilevelProblem, optimizer: torch.optim.Optimizer) -> None:
    remedy = "make it from problem.meta.parameters()"
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigurationError(
            f"meta_optimizer is {described(optimizer)}; a torch.optim.Optimizer is needed: "
            f"{remedy}, for instance torch.optim.Adam(problem.meta.parameters(), lr=1e-3)."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigurationError(
            f"meta_optimizer is {described(optimizer)}, whose step evaluates the objective again "
            "through a closure; a meta step has one hypergradient. Use SGD, Adam or another "
            "optimizer whose step needs no closure."
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ConfigurationError(
            "meta_optimizer is SparseAdam, but hypergradients are dense; use Adam."
        )
    own = {id(live): name for name, live in problem.meta_parameters().items()}
    frozen = {id(p) for p in problem.meta.parameters() if not p.requires_grad}
    given = [p for group in optimizer.param_groups for p in group["params"]]
    held = {id(parameter) for parameter in given}
    if not own.keys() & held:
        raise ConfigurationError(f"meta_optimizer holds none of the meta-parameters; {remedy}.")
    foreign = [p for p in given if id(p) not in own and id(p) not in frozen]
    if foreign:
        inner = {id(p): name for name, p in problem.model.named_parameters()}
        told = ", ".join(
            repr(inner[id(p)]) if id(p) in inner else f"one of shape {tuple(p.shape)}"
            for p in foreign[:5]
        )
        raise ConfigurationError(
            f"meta_optimizer holds parameters that are no meta-parameters ({told}); {remedy} "
            "alone: the inner learner moves the model's."
        )
    missing = [name for identity, name in own.items() if identity not in held]
    if missing:
        raise ConfigurationError(
            f"meta_optimizer lacks the meta-parameters {', '.join(missing[:5])}, which would never "
            f"move; {remedy}, or freeze these with requires_grad_(False) before the problem is "
            "made."
        )


def _check_scheduler(optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None) -> None:
    if scheduler is None:
        return
    if not isinstance(scheduler, LRScheduler):
        raise ConfigurationError(
            f"meta_scheduler is {described(scheduler)}; a scheduler of "
            "torch.optim.lr_scheduler is needed, or None."
        )
    if scheduler.optimizer is not optimizer:
        raise ConfigurationError(
            "meta_scheduler belongs to another optimizer; make it from the meta_optimizer that the "
            "trainer is given."
        )
