"""The loop of a training: outer steps, what is reported of them, evaluations and checkpoints."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm.auto import tqdm

from metatoolkit.errors import CheckpointError, ConfigurationError, NonFiniteError, RankError
from metatoolkit.training.checks import check_losses, check_watched
from metatoolkit.training.interruption import DeferredSignals
from metatoolkit.training.running_signal import SIGNAL_TO_NOISE

if TYPE_CHECKING:
    from metatoolkit.training.trainer import MetaTrainer

Entry = tuple[str, float, int]
Log = Callable[[str, float, int], None]
Evaluate = Callable[["MetaTrainer"], Mapping[str, float]]
Anneal = Callable[[float], object]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a training goes on and what happens on the way, as ``MetaTrainer.fit`` takes it."""

    steps: int
    anneal: Anneal | None
    log: Log | None
    log_every: int
    evaluate: Evaluate | None
    evaluate_every: int
    checkpoint: Path | None
    checkpoint_every: int
    progress: bool
    description: str


class Fit:
    """One call of ``MetaTrainer.fit``, its arguments checked and its streams open.

    Args:
        trainer: The trainer, which holds all that lasts.
        plan: What was asked for.
    """

    def __init__(self, trainer: MetaTrainer, plan: Plan) -> None:
        self.trainer = trainer
        leads = trainer.tasks is None or trainer.tasks.leads
        # Of several processes one reports, and writes checkpoints.
        self.plan = plan if leads else dataclasses.replace(plan, log=None, progress=False)
        self._writes = leads
        self.last = {name: value for name, value, _ in trainer.history}
        self._begun = trainer.steps_done

    def run(self) -> dict[str, float]:
        """Train, and load the result into the model; an interruption loads what was reached.

        Returns:
            The last value of each metric; with a best state that is kept, the values until then.
        """
        trainer = self.trainer
        try:
            if self.plan.log is not None:
                for entry in trainer.history:
                    self.plan.log(*entry)
            self._loop()
        except BaseException as error:
            self._save_what_was_reached(error)
            raise
        watch = trainer.watch
        best = None if watch is None else watch.best_state(trainer.problem)
        if watch is not None and best is not None:
            trainer.state = best
            history = [entry for entry in trainer.history if entry[2] <= watch.step]
            self.last = {name: value for name, value, _ in history}
        trainer.problem.load(trainer.state)
        return self.last

    def _loop(self) -> None:
        trainer, plan = self.trainer, self.plan
        bar = tqdm(
            total=plan.steps,
            initial=trainer.steps_done,
            desc=plan.description,
            disable=not plan.progress,
            dynamic_ncols=True,
            leave=False,
        )
        with bar, DeferredSignals() as signals:
            # One that was interrupted is made up for.
            if trainer.evaluation_due and plan.evaluate is not None:
                self._evaluate(plan.evaluate)
            while not self._ends():
                with signals.held_back():
                    entries = self._step()
                self._tell(entries)
                # What only watches may be infinite, and ends no training.
                watching = {SIGNAL_TO_NOISE, *(["hypergradient_norm"] * trainer.skip_nonfinite)}
                checked = [name for name, _, _ in entries if name not in watching]
                check_losses(self.last, checked, trainer.steps_done)
                if entries:
                    bar.set_postfix({n: f"{v:.3g}" for n, v, _ in entries if "loss" in n})
                bar.update()
                evaluated = trainer.evaluation_due
                if trainer.evaluation_due and plan.evaluate is not None:
                    self._evaluate(plan.evaluate)
                if self._ends() and not entries:
                    self._tell(self._note_losses())
                if trainer.watch is not None and entries and (evaluated or plan.evaluate is None):
                    check_watched(trainer.watch.settings.metric, self.last)
                if plan.checkpoint and self._writes and self._due(plan.checkpoint_every):
                    trainer.save_checkpoint(plan.checkpoint)

    def _step(self) -> list[Entry]:
        """Take an outer step, and return what of it is to be reported."""
        trainer, plan = self.trainer, self.plan
        started = time.perf_counter()
        if plan.anneal is not None:
            plan.anneal(trainer.steps_done / plan.steps)
        trainer.unreported |= trainer.outer_step()
        trainer.seconds += time.perf_counter() - started
        trainer.steps_done += 1
        entries = self._note_losses() if self._due(plan.log_every) else []
        trainer.evaluation_due = plan.evaluate is not None and self._due(plan.evaluate_every)
        return entries

    def _ends(self) -> bool:
        watch = self.trainer.watch
        return self.trainer.steps_done >= self.plan.steps or (watch is not None and watch.stopped)

    def _due(self, every: int) -> bool:
        return self._ends() or (every > 0 and self.trainer.steps_done % every == 0)

    def _note_losses(self) -> list[Entry]:
        """Note the latest losses that were not reported; λ may move in other steps than these."""
        losses, self.trainer.unreported = self.trainer.unreported, {}
        return self._note(losses)

    def _note(self, metrics: Mapping[str, float | Tensor]) -> list[Entry]:
        """Put metrics into the history, and show them to early stopping."""
        trainer = self.trainer
        entries = [(name, float(value), trainer.steps_done) for name, value in metrics.items()]
        trainer.history += entries
        values = {name: value for name, value, _ in entries}
        self.last |= values
        if trainer.watch is not None:
            trainer.watch.see(values, trainer.steps_done, trainer.problem, trainer.state)
        return entries

    def _tell(self, entries: list[Entry]) -> None:
        if self.plan.log is not None:
            for entry in entries:
                self.plan.log(*entry)

    def _evaluate(self, evaluate: Evaluate) -> None:
        trainer = self.trainer
        trainer.problem.load(trainer.state)
        values = evaluate(trainer)
        if not isinstance(values, Mapping):
            raise ConfigurationError(
                f"evaluate returned a {type(values).__name__}; a mapping from names of metrics to "
                "numbers is needed, an empty one where there is nothing to report."
            )
        trainer.evaluation_due = False
        self._tell(self._note(values))

    def _save_what_was_reached(self, error: BaseException) -> None:
        """Load the state that was reached, and store it where it can be gone on from."""
        trainer, path = self.trainer, self.plan.checkpoint
        try:
            trainer.problem.load(trainer.state)
        except Exception as failure:
            error.add_note(f"the model could not take over the state that was reached: {failure}")
        begun = trainer.steps_done == self._begun
        if path is None or begun or isinstance(error, NonFiniteError | CheckpointError):
            return
        # The process that writes checkpoints may be the one that is gone.
        if not self._writes and not isinstance(error, RankError):
            return
        try:
            trainer.save_checkpoint(path)
        except CheckpointError as failure:
            error.add_note(str(failure))
