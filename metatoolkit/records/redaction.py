"""Credentials: taken out of what is recorded and of what is said."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]+@")
_SECRET_OPTIONS = re.compile(
    r"([?&](?:tlsCertificateKeyFilePassword|authMechanismProperties|password|token)=)[^&\s]+",
    re.IGNORECASE,
)
SECRET_KEY = re.compile(
    r"(?:.*_)?(?:password|passwd|passphrase|secret|credentials?|api_?key|access_?key|private_?key"
    r"|(?:access|auth|api|hf|hub|bearer)_?token|token)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Take user names, passwords and tokens out of every URL in a text.

    Args:
        text: Any text.

    Returns:
        The text with ``scheme://user:password@host`` as ``scheme://host``.
    """
    return _SECRET_OPTIONS.sub(r"\1***", _CREDENTIALS.sub("", text))


def hide_assignment(word: Any) -> Any:
    """Hide what is assigned to a secret's name, as in ``api.password=...``.

    Args:
        word: A word of a command line.

    Returns:
        The word, with ``***`` as the value of a secret.
    """
    if isinstance(word, str) and "=" in word:
        name = word.partition("=")[0]
        if SECRET_KEY.fullmatch(name.replace("．", ".").rpartition(".")[2].strip()):
            return f"{name}={HIDDEN}"
    return word
