"""A whole training as plain content of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metatoolkit.errors import CheckpointError
from metatoolkit.state import InnerState
from metatoolkit.training.batch_stream import Stateful
from metatoolkit.training.checkpoints import refuse_unreadable

if TYPE_CHECKING:
    from metatoolkit.training.trainer import MetaTrainer


def snapshot(trainer: MetaTrainer, streams: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return all that a training needs to go on bitwise.

    Args:
        trainer: The trainer.
        streams: Data iterators.

    Raises:
        CheckpointError: A part keeps a state that could not be read again.
    """
    content = {
        "kinds": {role: type(part).__name__ for role, part in _parts(trainer).items()},
        "steps_done": trainer.steps_done,
        "seconds": trainer.seconds,
        "passes": trainer.passes,
        "history": trainer.history,
        "unreported": {name: float(value) for name, value in trainer.unreported.items()},
        "evaluation_due": trainer.evaluation_due,
        "watch": trainer.watch and trainer.watch.state_dict(),
        "state": trainer.state.state_dict(),
        "start": trainer.start and trainer.start.state_dict(),
        "episodes_done": trainer.resets_done,
        "meta": trainer.problem.meta.state_dict(),
        "meta_optimizer": trainer.meta_optimizer and trainer.meta_optimizer.state_dict(),
        "meta_scheduler": trainer.meta_scheduler and trainer.meta_scheduler.state_dict(),
        "signal": _signal(trainer) and _signal(trainer).state_dict(),
        "estimator": trainer.estimator and trainer.estimator.state_dict(),
        "tasks": trainer.tasks and trainer.tasks.state_dict(),
        "streams": {name: _place(trainer, name, stream) for name, stream in streams.items()},
        "unfinished": trainer.unfinished and trainer.unfinished.state_dict(),
    }
    foreign = ("streams", "estimator", "meta_optimizer", "meta_scheduler", "meta")
    refuse_unreadable({name: content[name] for name in foreign})
    return content


def _place(trainer: MetaTrainer, name: str, stream: Stateful) -> dict[str, Any]:
    """Return the place of a stream, within an outer step the one before it."""
    places = {} if trainer.unfinished is None else trainer.unfinished.places
    return places[name] if name in places else stream.state_dict()


def restore(
    trainer: MetaTrainer, content: Mapping[str, Any], streams: Mapping[str, Stateful], source: str
) -> None:
    """Take a training back to a snapshot.

    Args:
        trainer: A trainer of the same problem, inner learner and estimator.
        content: What :func:`snapshot` returned, its tensors on any device.
        streams: Data iterators that go back to where they were.
        source: Where the content comes from, for messages.

    Raises:
        CheckpointError: The snapshot belongs to another problem or to other components.
    """
    saved = InnerState.from_state_dict(content["state"])
    if _layout(saved) != _layout(trainer.state):
        raise CheckpointError(
            f"{source} belongs to another model or inner learner; give another file, or the "
            "configuration that it was written with."
        )
    _check_parts(trainer, content, source)
    buffers = dict(trainer.problem.meta.named_buffers())
    stored = {f"meta.{n}": content["meta"][n] for n in buffers if n in content["meta"]}
    trainer.problem.load_buffers(stored)
    try:
        trainer.problem.meta.load_state_dict(content["meta"])
    except RuntimeError as error:
        raise CheckpointError(f"{source} belongs to other meta-parameters: {error}") from error
    device = next(iter(trainer.state.parameters.values())).device
    trainer.state = saved.to(device)
    trainer.resets_done = content["episodes_done"]
    if trainer.reset_every is not None and content["start"] is not None:
        trainer.start = InnerState.from_state_dict(content["start"]).to(device)
    if trainer.meta_optimizer is not None:
        try:
            trainer.meta_optimizer.load_state_dict(content["meta_optimizer"])
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{source} belongs to another meta_optimizer: {error}") from error
    if trainer.meta_scheduler is not None:
        trainer.meta_scheduler.load_state_dict(content["meta_scheduler"])
    if trainer.estimator is not None:
        trainer.estimator.load_state_dict(content["estimator"])
    if trainer.tasks is not None:
        trainer.tasks.load_state_dict(content["tasks"])
    signal = _signal(trainer)
    if signal is not None and content.get("signal") is not None:
        signal.load_state_dict(content["signal"], device)
    if trainer.watch is not None and content.get("watch") is not None:
        trainer.watch.load_state_dict(content["watch"], device)
    for name, stream in streams.items():
        if name in content["streams"]:
            stream.load_state_dict(content["streams"][name])
    trainer.steps_done = content["steps_done"]
    trainer.seconds = content["seconds"]
    trainer.passes = content.get("passes", 0)
    trainer.history = [(name, value, step) for name, value, step in content["history"]]
    trainer.unfinished = None
    if content.get("unfinished") is not None:
        trainer.begin_step().load_state_dict(content["unfinished"], device)
    trainer.unreported = dict(content.get("unreported", {}))
    trainer.evaluation_due = content.get("evaluation_due", False)


def _signal(trainer: MetaTrainer) -> Any:
    return trainer.meta_update and trainer.meta_update.signal


def _parts(trainer: MetaTrainer) -> dict[str, Any]:
    """Return the components whose state a snapshot holds, by role; those that are there."""
    parts = {
        "inner": trainer.inner,
        "estimator": trainer.estimator,
        "meta_optimizer": trainer.meta_optimizer,
        "meta_scheduler": trainer.meta_scheduler,
        "tasks": trainer.tasks,
    }
    return {role: part for role, part in parts.items() if part is not None}


def _check_parts(trainer: MetaTrainer, content: Mapping[str, Any], source: str) -> None:
    parts = _parts(trainer)
    stored = content.get("kinds")
    for role in ("inner", "estimator", "meta_optimizer", "meta_scheduler", "tasks"):
        now = type(parts[role]).__name__ if role in parts else "None"
        if stored is not None:
            before = stored.get(role, "None")
        elif role == "inner" or (content.get(role) is None) == (role not in parts):
            continue
        else:
            before = "None" if content.get(role) is None else "another one"
        if before != now:
            raise CheckpointError(
                f"{source} was written with {role}={before}, this trainer has {role}={now}; give "
                "the stored one, or start without resume."
            )


def _layout(state: InnerState) -> tuple[Any, ...]:
    """Return what must agree of two states of one training."""
    tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in state.parameters.items()}
    return tensors, set(state.optimizer), set(state.buffers)
