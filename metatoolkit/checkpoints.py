"""The file that holds a whole training: written atomically, read with a clear error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metatoolkit.errors import CheckpointError, brief

FORMAT = 1


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


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """Load what ``torch.save`` wrote, on the CPU: tensors and plain containers, never code.

    Args:
        path: File to read.

    Raises:
        CheckpointError: The file cannot be read; the message is the reason alone, in one line.
    """
    try:
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
