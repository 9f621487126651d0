"""When a training ends before its last step, and which of its states is kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from metatoolkit.errors import CheckpointError, ConfigurationError
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.training.task_rules import TaskRules


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """End a training whose metric gets no better.

    The metric is looked at whenever it is reported: ``train_loss`` and ``valid_loss`` at each
    ``log_every``, those of ``evaluate`` at each ``evaluate_every``.

    Args:
        metric: Name of the metric.
        patience: Number of reports in a row without a better value after which training ends.
        mode: Whether a lower value is better (``"min"``) or a higher one (``"max"``).
        min_delta: How much better a value must be than the best so far to count.
        keep_best: Whether θ and λ end as they were at the best report, rather than at the last
            step. It holds a copy of both.

    Raises:
        ConfigurationError: A number is out of range, or ``mode`` is unknown.

    Example:
        >>> EarlyStopping("valid_accuracy", patience=5, mode="max").keep_best
        True
    """

    metric: str
    patience: int = 5
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    keep_best: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise ConfigurationError(f"metric is {self.metric!r}; the name of a metric is needed.")
        if self.patience < 1:
            raise ConfigurationError(f"patience is {self.patience}; at least 1 is needed.")
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f"mode is {self.mode!r}; accepted: 'min', 'max'.")
        if not 0 <= self.min_delta < math.inf:
            raise ConfigurationError(
                f"min_delta is {self.min_delta}; a finite number of at least 0 is needed."
            )


class Watch:
    """What early stopping has seen of a training.

    Args:
        settings: What to watch.

    Attributes:
        value: Best value so far; ``None`` before the first.
        step: Outer steps that were done then.
        waited: Reports since then.
    """

    def __init__(self, settings: EarlyStopping) -> None:
        self.settings = settings
        self.value: float | None = None
        self.step = 0
        self.waited = 0
        self._state: InnerState | None = None
        self._meta: Tensors = {}

    @property
    def stopped(self) -> bool:
        """Whether the training is to end."""
        return self.waited >= self.settings.patience

    def see(
        self, values: Mapping[str, float], step: int, problem: BilevelProblem, state: InnerState
    ) -> None:
        """Take note of reported metrics; a value that is not finite is not a better one.

        Args:
            values: Metrics by name; nothing happens where the watched one is missing.
            step: Number of outer steps done.
            problem: Problem whose λ is kept if this is the best.
            state: Inner state that is kept if this is the best.
        """
        if self.settings.metric not in values:
            return
        value = values[self.settings.metric]
        sign = 1 if self.settings.mode == "max" else -1
        better = math.isfinite(value) and (
            self.value is None or sign * (value - self.value) > self.settings.min_delta
        )
        if not better:
            self.waited += 1
            return
        self.value, self.step, self.waited = value, step, 0
        if self.settings.keep_best:
            self._state = state
            self._meta = {n: p.detach().clone() for n, p in _moved(problem).items()}

    def best_state(self, problem: BilevelProblem) -> InnerState | None:
        """Put the best λ into the problem, and return the best inner state.

        Args:
            problem: Problem whose meta-parameters are overwritten.

        Returns:
            The state, or ``None`` where none is kept; λ then stays.
        """
        if self._state is None:
            return None
        with torch.no_grad():
            for name, live in _moved(problem).items():
                live.copy_(self._meta[name])
        return self._state

    def state_dict(self) -> dict[str, Any]:
        """Return plain content for a checkpoint."""
        return {
            "metric": self.settings.metric,
            "mode": self.settings.mode,
            "value": self.value,
            "step": self.step,
            "waited": self.waited,
            "state": self._state and self._state.state_dict(),
            "meta": self._meta,
        }

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            saved: What :meth:`state_dict` returned.
            device: Where the training runs.

        Raises:
            CheckpointError: Another metric was watched.
        """
        before, now = ((s["metric"], s["mode"]) for s in (saved, dataclasses.asdict(self.settings)))
        if before != now:
            raise CheckpointError(
                f"the stored training watched {before[0]!r} ({before[1]}), early_stopping asks for "
                f"{now[0]!r} ({now[1]}); give the stored ones, or start without resume."
            )
        self.value, self.step, self.waited = saved["value"], saved["step"], saved["waited"]
        if saved["state"] is not None and self.settings.keep_best:
            self._state = InnerState.from_state_dict(saved["state"]).to(device)
            self._meta = dict(saved["meta"])


def _moved(problem: BilevelProblem) -> Tensors:
    """Return what a training moves of λ, by the optimizer or by rules of its parts."""
    return problem.meta_parameters() | TaskRules(problem.meta).parameters()
