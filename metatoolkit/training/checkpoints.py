"""The file that holds a whole training: written atomically, read with a clear error."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatoolkit.errors import CheckpointError, brief

FORMAT = 1
_NUMPY = [
    np.zeros(1).__reduce__()[0],
    np.float64(1).__reduce__()[0],
    np.ndarray,
    np.dtype,
    *[getattr(np.dtypes, name) for name in np.dtypes.__all__],
]


def write_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a checkpoint beside the former one, which it then replaces at once.

    Args:
        path: File to write; its folder is made where it is missing.
        content: Tensors, numbers, strings, and containers of these.

    Raises:
        CheckpointError: The file cannot be written; a former one is left as it was.
    """
    target = Path(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        # torch reports a disk that fills up while it writes as a RuntimeError of its zip writer.
        raise CheckpointError(
            f"cannot write the checkpoint {target} ({error}). Free some space or give another file."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load_tensors(path: str | os.PathLike[str] | io.BytesIO) -> Any:
    """Load what ``torch.save`` wrote, on the CPU: tensors, arrays and plain containers, no code.

    Args:
        path: File to read.

    Raises:
        CheckpointError: The file cannot be read; the message is the reason alone, in one line.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(brief(error)) from error
    except Exception as error:
        # Of other files the unpickler fails in any way, or advises to have them run their code.
        raise CheckpointError("it is no file of tensors by torch.save") from error


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote, with its tensors on the CPU.

    Args:
        path: File to read.

    Raises:
        CheckpointError: The file cannot be read or holds something else.
    """
    try:
        content = load_tensors(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError("it holds something else, or comes from another version")
    except CheckpointError as error:
        raise CheckpointError(
            f"{os.fspath(path)} is no readable checkpoint ({error}); delete it, or start without "
            "resume."
        ) from error
    return content


def refuse_unreadable(content: Mapping[str, Any]) -> None:
    """Raise where a checkpoint could be written and never read again.

    Args:
        content: What would be written.

    Raises:
        CheckpointError: An entry is another object than a checkpoint is read with; it is named.
    """
    found = _unreadable(content, "")
    if found is None:
        return
    path, value = found
    raise CheckpointError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which could be written "
        "to a checkpoint but not be read again without running code of the file. Let state_dict "
        "return tensors, NumPy arrays, numbers, text, and dicts, lists, tuples and sets of these; "
        "for a random generator its state: generator.get_state(), rng.bit_generator.state or "
        "random.getstate()."
    )


def _unreadable(value: Any, path: str) -> tuple[str, Any] | None:
    """Return name and value of the innermost entry that cannot be read again."""
    buffer = io.BytesIO()
    try:
        torch.save(_without_data(value), buffer)
        buffer.seek(0)
        load_tensors(buffer)
    except (CheckpointError, pickle.PicklingError, TypeError, AttributeError):
        entries: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            entries = list(value.items())
        elif isinstance(value, list | tuple):
            entries = list(enumerate(value))
        for name, entry in entries:
            if (found := _unreadable(entry, f"{path}.{name}".removeprefix("."))) is not None:
                return found
        return path, value
    return None


def _without_data(value: Any) -> Any:
    """Return plain containers with tensors of no entries in the places of tensors."""
    if type(value) is dict:
        return {name: _without_data(entry) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_data(entry) for entry in value)
    return torch.empty(0) if type(value) is Tensor else value
