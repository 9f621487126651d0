"""A whole training as plain content of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metatoolkit.batch_stream import Stateful
from metatoolkit.errors import CheckpointError
from metatoolkit.state import InnerState

if TYPE_CHECKING:
    from metatoolkit.training.trainer import MetaTrainer


def snapshot(trainer: MetaTrainer, streams: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return all that a training needs to go on bitwise.

    Args:
        trainer: The trainer, between two outer steps.
        streams: Data iterators.
    """
    return {
        "steps_done": trainer.steps_done,
        "seconds": trainer.seconds,
        "history": trainer.history,
        "state": trainer.state.state_dict(),
        "start": trainer.start and trainer.start.state_dict(),
        "episodes_done": trainer.episodes_done,
        "meta": trainer.problem.meta.state_dict(),
        "meta_optimizer": trainer.meta_optimizer and trainer.meta_optimizer.state_dict(),
        "estimator": trainer.estimator and trainer.estimator.state_dict(),
        "streams": {name: stream.state_dict() for name, stream in streams.items()},
    }


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
        CheckpointError: The snapshot belongs to another problem.
    """
    saved = InnerState.from_state_dict(content["state"])
    shapes = {name: tensor.shape for name, tensor in trainer.state.parameters.items()}
    if shapes != {name: tensor.shape for name, tensor in saved.parameters.items()} or set(
        saved.optimizer
    ) != set(trainer.state.optimizer):
        raise CheckpointError(
            f"{source} belongs to another model or inner learner; give another file, or the "
            "configuration that it was written with."
        )
    try:
        trainer.problem.meta.load_state_dict(content["meta"])
    except RuntimeError as error:
        raise CheckpointError(f"{source} belongs to other meta-parameters: {error}") from error
    device = next(iter(trainer.state.parameters.values())).device
    trainer.state = saved.to(device)
    trainer.episodes_done = content["episodes_done"]
    if trainer.episode is not None and content["start"] is not None:
        trainer.start = InnerState.from_state_dict(content["start"]).to(device)
    if trainer.meta_optimizer is not None and content["meta_optimizer"] is not None:
        trainer.meta_optimizer.load_state_dict(content["meta_optimizer"])
    if trainer.estimator is not None and content["estimator"] is not None:
        trainer.estimator.load_state_dict(content["estimator"])
    for name, stream in streams.items():
        if name in content["streams"]:
            stream.load_state_dict(content["streams"][name])
    trainer.steps_done = content["steps_done"]
    trainer.seconds = content["seconds"]
    trainer.history = [(name, value, step) for name, value, step in content["history"]]
