"""One outer step, which is taken up where an exception cut it short."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, NonFiniteError
from metatoolkit.randomness import Stream, fold_in, seeded
from metatoolkit.state import InnerState
from metatoolkit.training.batch_stream import BatchStream

if TYPE_CHECKING:
    from metatoolkit.training.trainer import MetaTrainer


class OuterStep:
    """Draws batches, moves λ and moves θ; what is done already is not done again.

    Args:
        trainer: The trainer.
        streams: Its streams of batches.
        keeps_places: Whether the places of the streams before the step are kept, which a checkpoint
            within the step needs.

    Attributes:
        places: States of the streams before the step, by name.
    """

    def __init__(
        self, trainer: MetaTrainer, streams: Mapping[str, BatchStream], keeps_places: bool
    ) -> None:
        self._streams = streams
        self._moves = trainer.estimator is not None and trainer.steps_done % trainer.meta_every == 0
        self._horizon = 1 if trainer.estimator is None else trainer.estimator.horizon
        self._train: list[Any] = []
        self._valid: list[Any] = []
        self._moved = not self._moves
        self._losses: list[Tensor] = []
        self._metrics: dict[str, Tensor] = {}
        self.places: dict[str, Any] = {}
        if keeps_places:
            self.places = {name: _kept(stream.state_dict()) for name, stream in streams.items()}

    def finish(self, trainer: MetaTrainer) -> dict[str, Tensor]:
        """Do what is left of the step, and return its losses by name.

        Args:
            trainer: The trainer.
        """
        self._draw(trainer)
        if trainer.order == "meta_first":
            self._move_meta(trainer)
        skipped = "skipped" in self._metrics
        if trainer.tasks is None and not skipped and not (self._moves and trainer.keep_lookahead):
            for batch in self._train[len(self._losses) :]:
                self._losses.append(trainer.base_step(batch))
            self._metrics["train_loss"] = torch.stack(self._losses).mean()
        self._move_meta(trainer)
        return self._metrics

    def _draw(self, trainer: MetaTrainer) -> None:
        """Draw training batches and a validation batch for each hypergradient, in turn.

        Where λ rests, the latter is dropped, so that the two streams stay in step. Across tasks
        these are batches of tasks instead.
        """
        while trainer.tasks is None and len(self._valid) < trainer.accumulate:
            while len(self._train) < (len(self._valid) + 1) * self._horizon:
                self._train.append(trainer.place(self._streams["train_batches"].next()))
            if trainer.estimator is None:
                self._valid.append(None)
                continue
            batch = self._streams["valid_batches"].next()
            self._valid.append(trainer.place(batch) if self._moves else None)
        while len(self._train) < trainer.accumulate:
            self._train.append(trainer.place(self._streams["train_batches"].next()))

    def _move_meta(self, trainer: MetaTrainer) -> None:
        if self._moved:
            return
        pairs: list[tuple[Any, Any]] = [(batch, None) for batch in self._train]
        if trainer.tasks is None:
            parts = range(0, len(self._train), self._horizon)
            supports = [self._train[first : first + self._horizon] for first in parts]
            pairs = list(zip(supports, self._valid, strict=True))
        assert trainer.estimator is not None
        before = trainer.estimator.state_dict()
        try:
            self._metrics |= trainer.meta_step(*pairs[0], *pairs[1:])
        except BaseException as error:
            # One of several calls may have been done.
            trainer.estimator.load_state_dict(before)
            if not (trainer.skip_nonfinite and isinstance(error, NonFiniteError)):
                raise
            self._skip(trainer, error)
        self._moved = True

    def _skip(self, trainer: MetaTrainer, error: NonFiniteError) -> None:
        """Move nothing, say so, and let θ start over."""
        warnings.warn(
            f"outer step {trainer.steps_done + 1} moves nothing, and θ starts over: {error}",
            stacklevel=2,
        )
        # What it took until it failed is not told; at least the inner steps were taken.
        trainer.passes += 3 * len(self._train)
        self._metrics = {"skipped": torch.ones(())}
        restart(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return what is done of the step; its batches are drawn again from :attr:`places`."""
        return {"moved": self._moved, "losses": self._losses, "metrics": self._metrics}

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            saved: What :meth:`state_dict` returned.
            device: Where the training runs.
        """
        self._moved = saved["moved"]
        self._losses = [loss.to(device) for loss in saved["losses"]]
        self._metrics = {name: value.to(device) for name, value in saved["metrics"].items()}


def start_over(trainer: MetaTrainer) -> None:
    """Let θ start over where as many inner steps were taken as the trainer was told.

    Args:
        trainer: The trainer.

    Raises:
        ConfigurationError: ``redraw`` returns no module with the parameters of the model.
    """
    if trainer.reset_every is not None and trainer.state.step >= trainer.reset_every:
        restart(trainer)


def restart(trainer: MetaTrainer) -> None:
    """Put θ back where a trainer with resets begins, with a random key of its own.

    Args:
        trainer: The trainer.

    Raises:
        ConfigurationError: ``redraw`` returns no module with the parameters of the model.
    """
    assert trainer.start is not None
    trainer.resets_done += 1
    key = fold_in(trainer.start.key, Stream.RESET, trainer.resets_done)
    trainer.state = trainer.start.replaced(key=key)
    if trainer.redraw is not None:
        trainer.state = _redrawn(trainer, trainer.redraw)


def _redrawn(trainer: MetaTrainer, redraw: Callable[[], nn.Module]) -> InnerState:
    """Return the state with the parameters of a module that is built anew."""
    state = trainer.state
    with seeded(fold_in(state.key, Stream.REDRAWN), []):
        module = redraw()
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"redraw returned a {type(module).__name__}; a module with the parameters of the model "
            "is needed, such as the model built anew."
        )
    drawn = {name: p.detach().clone() for name, p in module.named_parameters()}
    for name, before in state.parameters.items():
        if name not in drawn or drawn[name].shape != before.shape:
            found = tuple(drawn[name].shape) if name in drawn else "none of this name"
            raise ConfigurationError(
                f"redraw returned a module whose parameter {name!r} is {found}; that of the model "
                f"has the shape {tuple(before.shape)}."
            )
    parameters = {name: drawn[name].to(before) for name, before in state.parameters.items()}
    return state.replaced(parameters=parameters, optimizer=trainer.inner.init_slots(parameters))


def _kept(place: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a stream's place: some iterators go on with the dictionary they return."""
    own = place["batches"]
    plain = int | float | str | bytes | None
    if isinstance(own, dict) and all(isinstance(value, plain) for value in own.values()):
        # A deep copy would cost a fiftieth of a small base step.
        return {**place, "batches": dict(own)}
    return copy.deepcopy(place)
