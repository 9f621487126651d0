"""What is loaded from the Hugging Face hub, and what is said where it cannot be reached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from metatoolkit.errors import DataError, brief, optional_import

_SECONDS = 5


def check_connection(name: str | os.PathLike[str], remedy: str) -> None:
    """Raise at once where the hub cannot be reached; its client would try for half a minute.

    Args:
        name: What is to be loaded.
        remedy: What else the user can do, for the message.

    Raises:
        DataError: There is no connection within 5 seconds. In offline mode (``HF_HUB_OFFLINE=1``)
            nothing is tried.
    """
    with optional_import(f"loading {name}"):
        import requests
        from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        requests.head(constants.ENDPOINT, timeout=_SECONDS)
    except requests.RequestException as error:
        raise DataError(
            f"{constants.ENDPOINT} cannot be reached to load {name} ({type(error).__name__}). "
            f"{remedy}"
        ) from error


def load_pretrained(loader: Any, name: str, kind: str) -> Any:
    """Load a tokenizer or a model from a folder, the local cache, or else the hub.

    Args:
        loader: Class with ``from_pretrained``, for instance ``transformers.AutoTokenizer``.
        name: Name on the hub, or a folder.
        kind: What it is, for the message.

    Returns:
        What ``from_pretrained`` returns.

    Raises:
        DataError: It cannot be loaded.
    """
    with optional_import(f"loading {name}"):
        from huggingface_hub import constants

    remedy = (
        f"Give a folder that holds the {kind}, as save_pretrained writes it, get it with a "
        "network, or pass None to make a small one on the spot."
    )
    try:
        return loader.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        local = Path(name).is_dir() or Path(name).is_absolute()
        if local or constants.HF_HUB_OFFLINE:
            raise DataError(
                f"the {kind} {name!r} cannot be loaded: {brief(error)} {remedy}"
            ) from error
    check_connection(f"the {kind} {name!r}", remedy)
    try:
        return loader.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(f"the {kind} {name!r} cannot be loaded: {brief(error)} {remedy}") from error
