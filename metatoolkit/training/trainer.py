"""The trainer: meta steps and base steps over streams of batches, checkpoint and resume."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from metatoolkit.errors import ConfigurationError, from_former_name
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.compilation import Compile, begin
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.graphs import refuse_inference_mode
from metatoolkit.training.across_tasks import across_tasks
from metatoolkit.training.batch_stream import BatchStream, Stateful
from metatoolkit.training.checkpoints import read_checkpoint, write_checkpoint
from metatoolkit.training.checks import (
    check_batches,
    check_components,
    check_lookahead,
    check_nothing_looks,
    check_numbers,
    check_rhythm,
    check_steps_left,
    check_stopping,
    checked_device,
    warn_of_forgotten_start,
)
from metatoolkit.training.early_stopping import EarlyStopping, Watch
from metatoolkit.training.fit import Anneal, Evaluate, Fit, Log, Plan
from metatoolkit.training.meta_update import MetaUpdate
from metatoolkit.training.outer_step import OuterStep, start_over
from metatoolkit.training.placement import placed
from metatoolkit.training.snapshot import restore, snapshot
from metatoolkit.training.task_batching import Mode, TaskBatching


class MetaTrainer:
    """Alternates meta steps (λ follows its hypergradient) with base steps (θ learns).

    One outer step draws as many training batches as the estimator's horizon and one validation
    batch, moves λ, and takes one base step on each of these training batches. The validation batch
    is drawn, and dropped, in outer steps where λ rests, too, so that two streams whose batches
    belong together (the support and query sets of tasks) stay in step. Without an estimator only θ
    learns, which is what baselines do.

    With ``tasks`` it learns across tasks: an outer step draws a batch of tasks, takes the mean of
    their hypergradients, each from the initial state, and moves λ. θ stays that initial state.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        estimator: Hypergradient estimator, or ``None`` to leave λ alone.
        meta_optimizer: Optimizer of ``problem.meta``'s parameters; needed with an estimator. A
            ``.grad`` that one of them has stays as it is.
        meta_scheduler: Scheduler of the meta-optimizer's learning rate, stepped after each move of
            λ; it is part of checkpoints. ``ReduceLROnPlateau`` is given the outer loss.
        clip_norm: Largest norm of the hypergradient over all of λ, to which a longer one is scaled;
            the metric ``hypergradient_norm`` is the norm before.
        device: Where to run; ``None`` keeps the modules where they are. Moves them in place.
        seed: Seed of the trajectory (dropout, the noise of estimators).
        meta_every: λ moves in every so many outer steps, beginning with the first.
        accumulate: Meta batches for each move of λ. An outer step then draws so many times the
            training batches and as many validation batches, and λ moves along the mean of their
            hypergradients, all taken at the same θ and λ; base steps see all training batches.
        order: Whether λ moves before θ (``"meta_first"``: θ sees the new λ) or ``"inner_first"``.
        keep_lookahead: Where λ moves, take over the state that the estimator reached instead of
            base steps of its own; it needs an estimator that takes inner steps.
        reset_every: Inner steps, rounded up to whole outer steps, after which θ starts over where
            it began, with a random key of its own; ``None`` for never. λ and its optimizer stay.
        redraw: Called, with random generators of its own, whenever θ starts over; returns a module
            whose parameters θ starts from, such as the model built anew.
        skip_nonfinite: Whether a NaN or infinite hypergradient moves nothing, with a warning, and θ
            starts over, instead of an error (as is a norm too large for its type).
        episode: The former name of ``reset_every``, which warns.
        tasks: For learning across tasks, how those of a batch run; see :func:`over_tasks`.
        compile: Whether hypergradients are compiled as a whole; sets ``estimator.compile``.

    Raises:
        ConfigurationError: Arguments contradict each other.

    Attributes:
        passes: Forward passes spent: 3 for a base step, and ``cost.passes`` for a hypergradient.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        estimator: Estimator | None = None,
        meta_optimizer: torch.optim.Optimizer | None = None,
        *,
        meta_scheduler: LRScheduler | None = None,
        clip_norm: float | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        meta_every: int = 1,
        accumulate: int = 1,
        order: Literal["meta_first", "inner_first"] = "meta_first",
        keep_lookahead: bool = False,
        reset_every: int | None = None,
        redraw: Callable[[], nn.Module] | None = None,
        skip_nonfinite: bool = False,
        signal_window: int | None = None,
        episode: int | None = None,
        tasks: TaskBatching | Mode | None = None,
        compile: Compile = False,
    ) -> None:
        refuse_inference_mode()
        reset_every = from_former_name("episode", episode, "reset_every", reset_every)
        check_components(inner, estimator, meta_optimizer, meta_scheduler)
        rhythm = (meta_every, order, keep_lookahead, reset_every)
        given = (tasks is not None, redraw is not None, skip_nonfinite)
        check_rhythm(estimator, *rhythm, accumulate, *given)
        self.tasks = across_tasks(problem, inner, estimator, tasks)
        self.meta_update = None
        if meta_optimizer is not None:
            options = (meta_scheduler, clip_norm, signal_window)
            self.meta_update = MetaUpdate(problem, meta_optimizer, *options)
        else:
            check_nothing_looks(clip_norm=clip_norm, signal_window=signal_window)
        self.device = checked_device(device)
        if self.device is not None:
            problem.to(self.device)
        self.problem, self.inner, self.estimator = problem, inner, estimator
        begin(estimator, compile)
        self.meta_optimizer, self.meta_scheduler = meta_optimizer, meta_scheduler
        self.meta_every, self.accumulate = meta_every, accumulate
        self.order, self.keep_lookahead, self.seed = order, keep_lookahead, seed
        self.reset_every, self.redraw, self.skip_nonfinite = reset_every, redraw, skip_nonfinite
        self.state: InnerState = inner.init(problem, seed)
        self.start = None if reset_every is None else self.state
        self.resets_done = self.steps_done = self.passes = 0
        self.seconds = 0.0
        self.history: list[tuple[str, float, int]] = []
        self.unreported: dict[str, Tensor | float] = {}
        self.evaluation_due = False
        self.watch: Watch | None = None
        self.unfinished: OuterStep | None = None
        self._streams: dict[str, BatchStream] = {}
        self._keeps_places = False

    def meta_step(
        self, train_batches: Any, valid_batch: Any = None, *further: tuple[Any, Any]
    ) -> dict[str, Tensor]:
        """Move λ once along its hypergradient, or the mean of several.

        Args:
            train_batches: One training batch per inner step; with ``tasks`` a batch of tasks.
            valid_batch: Batch for the outer loss; ``None`` with ``tasks``.
            further: Further meta batches: training batches and validation batch of each.

        Returns:
            ``valid_loss`` and what :meth:`MetaUpdate.move` returns, 0-d tensors.

        Raises:
            ConfigurationError: There is no estimator, or no look-ahead to keep.
        """
        if self.estimator is None or self.meta_update is None:
            raise ConfigurationError("this trainer has no estimator, so λ cannot move.")
        gradients, losses, told = list[Tensors](), list[Tensor](), list[Mapping[str, Any]]()
        for train, valid in [(train_batches, valid_batch), *further]:
            if self.tasks is None:
                result = self.estimator(self.problem, self.inner, self.state, train, valid)
            else:
                result = self.tasks(train, self.state, self.resets_done + len(losses) + 1)
                told.append(result.details)
            self.passes += result.cost.passes
            gradients.append(result.gradient)
            losses.append(result.valid_loss)
        if self.keep_lookahead:
            check_lookahead(self.estimator, self.state, result.state)
            self.state = result.state
        valid_loss = torch.stack(losses).mean()
        metrics = {"valid_loss": valid_loss, **self.meta_update.move(gradients, valid_loss)}
        if self.tasks is not None:
            self.resets_done += len(losses)
            self.state = self.tasks.begin(self.state, told)
        return metrics

    def base_step(self, batch: Any) -> Tensor:
        """Move θ once on a training batch; returns the training loss, a detached scalar.

        Args:
            batch: Training batch.
        """
        self.state, loss = self.inner.step(
            self.problem, self.state, self.problem.meta_parameters(), batch
        )
        self.passes += 3
        return loss

    def fit(
        self,
        train_batches: Iterable[Any],
        valid_batches: Iterable[Any] | None = None,
        steps: int = 1,
        *,
        anneal: Anneal | None = None,
        log: Log | None = None,
        log_every: int = 1,
        evaluate: Evaluate | None = None,
        evaluate_every: int = 0,
        early_stopping: EarlyStopping | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 0,
        resume: bool = False,
        progress: bool = True,
        description: str = "training",
    ) -> dict[str, float]:
        """Train until ``steps`` outer steps are done, and load the result into the model.

        A further call goes on: from the state that was reached, and with the data where they were
        if it is given the same iterable; another one is read from its beginning. Ctrl-C and other
        signals wait for the end of the outer step, a second one does not. Whatever ends a training
        early, the state that was reached is loaded into the model and stored in ``checkpoint``
        before the exception goes on; a further call, or a resume, takes up the very step.

        Args:
            train_batches: Batches for the inner loss, or of tasks; starts over when exhausted.
                With ``state_dict`` and ``load_state_dict`` it resumes at once, else is drawn again.
            valid_batches: Batches for the outer loss; none without an estimator or with ``tasks``.
            steps: Total number of outer steps, those of former calls and before a resume included.
            anneal: Called before each outer step with the share of ``steps`` that is done, such as
                ``Algorithm.anneal``; what it sets should follow from that alone.
            log: Receives ``(name, value, step)`` of each metric; after a resume those before, too.
            log_every: Losses are logged, and checked to be finite, every so many steps.
            evaluate: Called with this trainer, its state loaded into the model; returns metrics.
            evaluate_every: Steps between evaluations; the last step is always evaluated.
            early_stopping: Ends the training when a metric gets no better; see its class.
            checkpoint: File to store the training in.
            checkpoint_every: Steps between checkpoints; the last step is always stored.
            resume: Go on from ``checkpoint`` where that file exists.
            progress: Whether to show a progress bar.
            description: Words in front of the bar.

        Returns:
            The last value of each metric; where early stopping keeps the best state, of those
            reported until then.

        Raises:
            ConfigurationError: Numbers are out of range, batches missing, ``steps`` done already.
            UnsupportedError: It is called in ``torch.inference_mode``.
            CheckpointError: The checkpoint is of another problem, or cannot be read or written.
            NonFiniteError: A loss is NaN or infinite.
            DataError: There is no batch.
        """
        refuse_inference_mode()
        check_numbers(steps=steps, log_every=log_every)
        check_batches(train_batches, valid_batches, self.estimator, self.tasks)
        check_stopping(early_stopping, evaluate is not None, evaluate_every)
        path = None if checkpoint is None else Path(checkpoint)
        self._keeps_places = path is not None
        resumes = resume and path is not None and path.exists()
        self._open_stream("train_batches", train_batches)
        self._open_stream("valid_batches", valid_batches)
        self.watch = None if early_stopping is None else Watch(early_stopping)
        if resumes and path is not None:
            self.load_checkpoint(path)
        if path is not None:  # What cannot be stored is told before the training, not after it.
            snapshot(self, self._streams)
        check_steps_left(steps, self.steps_done, resumes)
        if steps > 1 and self.tasks is None:
            warn_of_forgotten_start(self.problem, self.estimator, self.reset_every)
        plan = Plan(
            steps,
            anneal=anneal,
            log=log,
            log_every=log_every,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            checkpoint=path,
            checkpoint_every=checkpoint_every,
            progress=progress,
            description=description,
        )
        return Fit(self, plan).run()

    def _open_stream(self, name: str, batches: Iterable[Any] | None) -> None:
        """Go on with the stream over these very batches, or begin one."""
        if batches is None:
            self._streams.pop(name, None)
        elif name not in self._streams or self._streams[name].batches is not batches:
            self._streams[name] = BatchStream(name, batches)
            # Its batches are of the streams from before.
            self.unfinished = None

    def outer_step(self) -> dict[str, Tensor]:
        """Take one outer step of :meth:`fit`, or finish one that was cut short; returns losses."""
        if self.unfinished is None:
            start_over(self)
            self.begin_step()
        assert self.unfinished is not None
        metrics = self.unfinished.finish(self)
        self.unfinished = None
        return metrics

    def begin_step(self) -> OuterStep:
        """Make the outer step that :meth:`outer_step` finishes, and return it."""
        self.unfinished = OuterStep(self, self._streams, self._keeps_places)
        return self.unfinished

    def place(self, batch: Any) -> Any:
        """Return a batch on the device that this trainer was given, if any.

        Args:
            batch: Any nesting of containers, dataclasses, tensors, and objects with ``to``.

        Raises:
            DataError: It holds an object with tensors that cannot be moved.
        """
        return batch if self.device is None else placed(batch, self.device)

    def save_checkpoint(
        self, path: str | os.PathLike[str], streams: Mapping[str, Stateful] | None = None
    ) -> None:
        """Store the whole training in one file, which is replaced atomically.

        Args:
            path: File to write.
            streams: Data iterators to store with it; ``None`` for those of :meth:`fit`.

        Raises:
            CheckpointError: The file cannot be written; a former one is left as it was.
        """
        write_checkpoint(path, snapshot(self, self._streams if streams is None else streams))

    def load_checkpoint(
        self, path: str | os.PathLike[str], streams: Mapping[str, Stateful] | None = None
    ) -> None:
        """Go on from a file that :meth:`save_checkpoint` wrote.

        Args:
            path: File to read.
            streams: Data iterators that go back to where they were; ``None`` for those of
                :meth:`fit`.

        Raises:
            CheckpointError: The file cannot be read, or belongs to another problem.
        """
        streams = self._streams if streams is None else streams
        restore(self, read_checkpoint(path), streams, os.fspath(path))
