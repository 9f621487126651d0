"""The file that holds a whole training: written atomically, read with a clear error."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metatoolkit.errors import CheckpointError

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


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote, with its tensors on the CPU.

    Args:
        path: File to read.

    Raises:
        CheckpointError: The file cannot be read or holds something else.
    """
    reason: object
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.PickleError) as error:
        reason = error
    else:
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return content
        reason = "it holds something else, or comes from another version"
    raise CheckpointError(
        f"{os.fspath(path)} is no readable checkpoint ({reason}); delete it, or start without "
        "resume."
    )
