"""The training loop: meta steps and base steps, evaluation, checkpoint and resume."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from metatoolkit.batch_stream import BatchStream, Stateful
from metatoolkit.checkpoints import read_checkpoint, write_checkpoint
from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, tree_map
from metatoolkit.training.checks import check_losses, check_optimizer, resolve_device
from metatoolkit.training.snapshot import restore, snapshot

Log = Callable[[str, float, int], None]
_EPISODE = -8
Evaluate = Callable[["MetaTrainer"], Mapping[str, float]]


class MetaTrainer:
    """Alternates meta steps (λ follows its hypergradient) with base steps (θ learns).

    One outer step draws as many training batches as the estimator's horizon and one validation
    batch, moves λ, and takes one base step on each of these training batches. Without an
    estimator only θ learns, which is what baselines do.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        estimator: Hypergradient estimator, or ``None`` to leave λ alone.
        meta_optimizer: Optimizer of ``problem.meta``'s parameters; needed with an estimator.
        device: Where to run; ``None`` keeps the modules where they are. Moves them in place.
        seed: Seed of the trajectory (dropout, the noise of estimators).
        meta_every: λ moves in every so many outer steps, beginning with the first.
        order: Whether λ moves before θ (``"meta_first"``: the base step sees the new λ, as in
            Meta-Weight-Net) or after (``"inner_first"``).
        keep_lookahead: Take over the state that the estimator reached, instead of base steps of
            its own, in outer steps where λ moves; for unrolled horizons without a second pass. It
            needs an estimator that takes inner steps from the state it is given.
        episode: Number of inner steps after which θ starts over from where the trainer found it,
            with a random key of its own, rounded up to whole outer steps; ``None`` trains θ on and
            on. λ and its optimizer stay.

    Raises:
        ConfigurationError: Arguments contradict each other.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        estimator: Estimator | None = None,
        meta_optimizer: torch.optim.Optimizer | None = None,
        *,
        device: torch.device | str | None = None,
        seed: int = 0,
        meta_every: int = 1,
        order: Literal["meta_first", "inner_first"] = "meta_first",
        keep_lookahead: bool = False,
        episode: int | None = None,
    ) -> None:
        if (estimator is None) != (meta_optimizer is None):
            raise ConfigurationError(
                "estimator and meta_optimizer belong together: give both to learn λ, or neither "
                "to train θ alone."
            )
        if meta_every < 1:
            raise ConfigurationError(f"meta_every is {meta_every}; at least 1 is needed.")
        if episode is not None and episode < 1:
            raise ConfigurationError(f"episode is {episode}; at least 1 inner step is needed.")
        if order not in ("meta_first", "inner_first"):
            raise ConfigurationError(f"order is {order!r}; accepted: 'meta_first', 'inner_first'.")
        if keep_lookahead and order == "inner_first":
            raise ConfigurationError(
                "keep_lookahead=True needs order='meta_first': the look-ahead is the base step."
            )
        if meta_optimizer is not None:
            check_optimizer(problem, meta_optimizer)
        self.device = resolve_device(device)
        if self.device is not None:
            problem.to(self.device)
        self.problem = problem
        self.inner = inner
        self.estimator = estimator
        self.meta_optimizer = meta_optimizer
        self.meta_every = meta_every
        self.order = order
        self.keep_lookahead = keep_lookahead
        self.seed = seed
        self.episode = episode
        self.state: InnerState = inner.init(problem, seed)
        self.start = None if episode is None else self.state
        self.episodes_done = 0
        self.steps_done = 0
        self.seconds = 0.0
        self.history: list[tuple[str, float, int]] = []

    def meta_step(self, train_batches: list[Any], valid_batch: Any) -> dict[str, Tensor]:
        """Move λ once along its hypergradient.

        Args:
            train_batches: One training batch per inner step of the estimator's horizon.
            valid_batch: Batch for the outer loss.

        Returns:
            ``valid_loss`` and ``hypergradient_norm``, 0-d tensors.

        Raises:
            ConfigurationError: There is no estimator, or no look-ahead to keep.
        """
        if self.estimator is None or self.meta_optimizer is None:
            raise ConfigurationError("this trainer has no estimator, so λ cannot move.")
        result = self.estimator(self.problem, self.inner, self.state, train_batches, valid_batch)
        if self.keep_lookahead:
            if result.state.step == self.state.step:
                raise ConfigurationError(
                    f"keep_lookahead=True, but {type(self.estimator).__name__} returns the state "
                    "that it was given, so that θ would never move; leave keep_lookahead=False."
                )
            self.state = result.state
        for name, parameter in self.problem.meta_parameters().items():
            parameter.grad = result.gradient[name]
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad(set_to_none=True)
        norms = torch._foreach_norm(list(result.gradient.values()))
        return {
            "valid_loss": result.valid_loss,
            "hypergradient_norm": torch.linalg.vector_norm(torch.stack(norms)),
        }

    def base_step(self, batch: Any) -> Tensor:
        """Move θ once on a training batch; returns the training loss, a detached scalar.

        Args:
            batch: Training batch.
        """
        self.state, loss = self.inner.step(
            self.problem, self.state, self.problem.meta_parameters(), batch
        )
        return loss

    def fit(
        self,
        train_batches: Iterable[Any],
        valid_batches: Iterable[Any] | None = None,
        steps: int = 1,
        *,
        log: Log | None = None,
        log_every: int = 1,
        evaluate: Evaluate | None = None,
        evaluate_every: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 0,
        resume: bool = False,
        progress: bool = True,
        description: str = "training",
    ) -> dict[str, float]:
        """Train until ``steps`` outer steps are done, and load the result into the model.

        Args:
            train_batches: Batches for the inner loss; starts over when exhausted. One with
                ``state_dict`` and ``load_state_dict`` resumes at once, any other is replayed.
            valid_batches: Batches for the outer loss; not needed without an estimator.
            steps: Total number of outer steps, those before a resume included.
            log: Receives ``(name, value, step)`` for each metric; after a resume first those from
                before it, so that the record of a resumed run is complete.
            log_every: Losses are logged, and checked to be finite, every so many steps.
            evaluate: Called with this trainer, its state loaded into the model; returns metrics.
            evaluate_every: Steps between evaluations; the last step is always evaluated.
            checkpoint: File to store the training in.
            checkpoint_every: Steps between checkpoints; the last step is always stored.
            resume: Go on from ``checkpoint`` where that file exists.
            progress: Whether to show a progress bar.
            description: Words in front of the bar.

        Returns:
            The last value of each metric.

        Raises:
            ConfigurationError: Numbers are out of range, or validation batches are missing.
            CheckpointError: The checkpoint cannot be read or written, or belongs to another
                problem.
            NonFiniteError: A loss is NaN or infinite.
            DataError: There is no batch.
        """
        for name, number in (("steps", steps), ("log_every", log_every)):
            if number < 1:
                raise ConfigurationError(f"{name} is {number}; at least 1 is needed.")
        if self.estimator is not None and valid_batches is None:
            raise ConfigurationError("valid_batches is missing; the estimator needs them.")
        streams = {"train_batches": BatchStream("train_batches", train_batches)}
        if valid_batches is not None:
            streams["valid_batches"] = BatchStream("valid_batches", valid_batches)
        path = None if checkpoint is None else Path(checkpoint)
        if resume and path is not None and path.exists():
            self.load_checkpoint(path, streams)
        last = {name: value for name, value, _ in self.history}
        if log is not None:
            for entry in self.history:
                log(*entry)

        def report(values: Mapping[str, float | Tensor], step: int) -> None:
            for name, value in values.items():
                last[name] = float(value)
                self.history.append((name, last[name], step))
                if log is not None:
                    log(name, last[name], step)

        bar = tqdm(
            total=steps,
            initial=self.steps_done,
            desc=description,
            disable=not progress,
            dynamic_ncols=True,
            leave=False,
        )
        with bar:
            while self.steps_done < steps:
                started = time.perf_counter()
                metrics = self._outer_step(streams)
                self.seconds += time.perf_counter() - started
                self.steps_done += 1
                done = self.steps_done
                if done % log_every == 0 or done == steps:
                    report(metrics, done)
                    check_losses(last, metrics, done)
                    bar.set_postfix({n: f"{last[n]:.3g}" for n in metrics if "loss" in n})
                bar.update()
                due = evaluate_every > 0 and done % evaluate_every == 0
                if evaluate is not None and (due or done == steps):
                    self.problem.load(self.state)
                    report(evaluate(self), done)
                due = checkpoint_every > 0 and done % checkpoint_every == 0
                if path is not None and (due or done == steps):
                    self.save_checkpoint(path, streams)
        self.problem.load(self.state)
        return last

    def _outer_step(self, streams: dict[str, BatchStream]) -> dict[str, Tensor]:
        if self.episode is not None and self.state.step >= self.episode:
            assert self.start is not None
            self.episodes_done += 1
            key = fold_in(self.start.key, _EPISODE, self.episodes_done)
            self.state = dataclasses.replace(self.start, key=key)
        moves = self.estimator is not None and self.steps_done % self.meta_every == 0
        count = 1 if self.estimator is None else self.estimator.horizon
        batches = [self.place(streams["train_batches"].next()) for _ in range(count)]
        metrics: dict[str, Tensor] = {}
        if moves and self.order == "meta_first":
            metrics |= self.meta_step(batches, self.place(streams["valid_batches"].next()))
        if not (moves and self.keep_lookahead):
            losses = [self.base_step(batch) for batch in batches]
            metrics["train_loss"] = torch.stack(losses).mean()
        if moves and self.order == "inner_first":
            metrics |= self.meta_step(batches, self.place(streams["valid_batches"].next()))
        return metrics

    def place(self, batch: Any) -> Any:
        """Return a batch on the device that this trainer was given, if any.

        Args:
            batch: A batch, any pytree.
        """
        if self.device is None:
            return batch
        return tree_map(lambda tensor: tensor.to(self.device, non_blocking=True), batch)

    def save_checkpoint(
        self, path: str | os.PathLike[str], streams: Mapping[str, Stateful] | None = None
    ) -> None:
        """Store the whole training in one file, which is replaced atomically.

        Args:
            path: File to write.
            streams: Data iterators to store with it.

        Raises:
            CheckpointError: The file cannot be written; a former one is left as it was.
        """
        write_checkpoint(path, snapshot(self, streams or {}))

    def load_checkpoint(
        self, path: str | os.PathLike[str], streams: Mapping[str, Stateful] | None = None
    ) -> None:
        """Go on from a file that :meth:`save_checkpoint` wrote.

        Args:
            path: File to read.
            streams: Data iterators that go back to where they were.

        Raises:
            CheckpointError: The file cannot be read, or belongs to another problem.
        """
        restore(self, read_checkpoint(path), streams or {}, os.fspath(path))
