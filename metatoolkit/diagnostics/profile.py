"""Where the steps of a training spend time and memory, and a trace of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad
from tqdm.auto import tqdm

from metatoolkit.diagnostics.measure import peak_memory_by
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import noise, products
from metatoolkit.hypergradients.step_graph import DifferentiatedStep, StepGraph
from metatoolkit.inner import updates
from metatoolkit.problem import BilevelProblem
from metatoolkit.stateless import backward

if TYPE_CHECKING:
    from metatoolkit.training import MetaTrainer

PHASES = {
    "data": "batches as the iterators give them",
    "forward": "evaluations of the losses",
    "backward": "gradients of losses",
    "HVP": "products with second derivatives, in either mode",
    "noise": "directions that are drawn",
    "inner optimizer": "updates of θ",
    "meta optimizer": "updates of λ",
    "other": "all else: checks, exchange of tensors, copies",
}
"""What a step is divided into, and what of it each part is."""


@dataclasses.dataclass(frozen=True)
class TrainingProfile:
    """What :func:`profile_training` found, of one step on average.

    Attributes:
        seconds: Time by phase, of which none counts what another does within it.
        calls: How often each phase was entered.
        peak_bytes: The most that tensors held in each phase beyond what was there before the step.
        steps: Number of steps that were timed.
    """

    seconds: dict[str, float]
    calls: dict[str, float]
    peak_bytes: dict[str, int]
    steps: int

    def rows(self) -> list[tuple[str, float, float, float, float]]:
        """Return phase, entries, milliseconds, share of the time and MiB, the whole step last."""
        total = sum(self.seconds.values())
        found = [
            (
                phase,
                self.calls[phase],
                1e3 * self.seconds[phase],
                self.seconds[phase] / total,
                self.peak_bytes[phase] / 2**20,
            )
            for phase in PHASES
        ]
        return [*found, ("step", 1.0, 1e3 * total, 1.0, max(self.peak_bytes.values()) / 2**20)]


def profile_training(
    trainer: MetaTrainer,
    train_batches: Iterable[Any],
    valid_batches: Iterable[Any] | None = None,
    *,
    steps: int = 5,
    anneal: Callable[[float], object] | None = None,
    trace: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainingProfile:
    """Train for a few steps, and tell where they spend time and memory.

    It trains: one step that is not looked at, since much is checked and chosen in it, ``steps``
    that are timed, one whose memory is watched, and one that is traced. Functions of this toolkit
    and ``torch.autograd.grad`` are replaced meanwhile, so that steps that nobody looks at take no
    longer. Time is processor time of this process, and on a GPU the time until its work is done.

    Args:
        trainer: The trainer, which goes on from where it is.
        train_batches: As :meth:`metatoolkit.MetaTrainer.fit` takes them.
        valid_batches: As it takes them.
        steps: Number of outer steps that are timed.
        anneal: As it takes it.
        trace: File for a trace in Chrome's format, which Perfetto opens; none by default.
        progress: Whether to show a progress bar.

    Raises:
        ConfigurationError: ``steps`` is less than 1, or the trainer moves no λ.
    """
    if steps < 1:
        raise ConfigurationError(f"steps is {steps}; at least 1 is needed.")
    if trainer.estimator is None:
        raise ConfigurationError(
            "the trainer has no estimator, so that there is no meta step to profile; give one."
        )
    clock = _Clock()
    train = _Watched(train_batches, clock)
    valid = None if valid_batches is None else _Watched(valid_batches, clock)
    bar = tqdm(total=steps + 2 + (trace is not None), desc="steps", disable=not progress)

    def step() -> None:
        done = trainer.steps_done + 1
        trainer.fit(train, valid, steps=done, anneal=anneal, progress=False)
        bar.update()

    with bar, _told(clock):
        step()
        clock.start()
        for _ in range(steps):
            step()
        seconds, calls = clock.stop()
        peaks = peak_memory_by(step, lambda: clock.phase)
        if trace is not None:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            clock.ranges = True
            with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
                step()
            profiler.export_chrome_trace(os.fspath(trace))
    return TrainingProfile(
        {phase: seconds.get(phase, 0.0) / steps for phase in PHASES},
        {phase: calls.get(phase, 0) / steps for phase in PHASES},
        {phase: peaks.get(phase, 0) for phase in PHASES},
        steps,
    )


class _Clock:
    """Adds up the time of nested phases, each without those within it."""

    def __init__(self) -> None:
        self.phase = "other"
        self.ranges = False
        self._on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._since = self._now()

    def stop(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return the seconds and the entries of each phase."""
        self._turn_to(self.phase)
        return dict(self._seconds), dict(self._calls)

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Count what happens to a phase."""
        before = self.phase
        # A phase that calls itself is entered once.
        self._calls[phase] = self._calls.get(phase, 0) + (phase != before)
        self._turn_to(phase)
        try:
            with torch.profiler.record_function(phase) if self.ranges else contextlib.nullcontext():
                yield
        finally:
            self._turn_to(before)

    def _turn_to(self, phase: str) -> None:
        now = self._now()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self._since
        self.phase, self._since = phase, now

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


class _Watched:
    """Batches whose drawing is a phase of its own."""

    def __init__(self, batches: Iterable[Any], clock: _Clock) -> None:
        self._batches = batches
        self._clock = clock

    def __iter__(self) -> Iterator[Any]:
        with self._clock.within("data"):
            batches = iter(self._batches)
        return _each(batches, self._clock, "data")


def _each(items: Iterator[Any], clock: _Clock, phase: str) -> Iterator[Any]:
    while True:
        with clock.within(phase):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


@contextlib.contextmanager
def _told(clock: _Clock) -> Iterator[None]:
    """Let a clock know of the phases, by other functions in the place of those that do them."""

    def phase(function: Callable[..., Any], name: Callable[..., str] | str) -> Callable[..., Any]:
        @functools.wraps(function)
        def told(*args: Any, **kwargs: Any) -> Any:
            with clock.within(name if isinstance(name, str) else name(*args, **kwargs)):
                return function(*args, **kwargs)

        return told

    def drawn(*args: Any, **kwargs: Any) -> Iterator[Any]:
        return _each(stream(*args, **kwargs), clock, "noise")

    stream, update = noise.stream_noise, updates.updated_state
    # The trainer's own module, which this package does not import.
    move = sys.modules["metatoolkit.training.meta_update"].MetaUpdate
    with contextlib.ExitStack() as stack:
        for owner, name, replaced in (
            (BilevelProblem, "_evaluate", phase(BilevelProblem._evaluate, _pass)),
            (torch.autograd, "grad", phase(torch.autograd.grad, _derivative)),
            (backward, "_engine_run_backward", phase(backward._engine_run_backward, _derivative)),
            (products, "_batched", phase(products._batched, "HVP")),
            # One pass through the outer loss and the steps would be both a gradient and a product.
            (StepGraph, "pull_back_outer", DifferentiatedStep.pull_back_outer),
            (move, "move", phase(move.move, "meta optimizer")),
            *((module, "stream_noise", drawn) for module in _holding(stream)),
            *(
                (module, "updated_state", phase(update, "inner optimizer"))
                for module in _holding(update)
            ),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replaced)
        yield


def _holding(function: Callable[..., Any]) -> list[Any]:
    """Return the modules of this toolkit that have a function, by its own name."""
    modules = [m for name, m in sys.modules.items() if name.startswith("metatoolkit.")]
    return [m for m in modules if vars(m).get(function.__name__) is function]


def _pass(*args: Any, **kwargs: Any) -> str:
    return "HVP" if forward_ad._current_level >= 0 else "forward"


def _derivative(outputs: Any, *args: Any, **kwargs: Any) -> str:
    """Tell gradients of losses, which are scalars, from products with a Jacobian of gradients."""
    several = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    scalars = all(output.numel() == 1 for output in several)
    return "backward" if scalars and forward_ad._current_level < 0 else "HVP"
