"""Text that leaves a run: no credentials in it, nothing that a terminal obeys, on any stream."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import math
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from metatoolkit.errors import MetatoolkitError

HIDDEN = "***"

# No number of a computation, whatever stands before it: `pgpassword`, `client_secret`.
_SECRET = re.compile(
    r".*(?:password|passwd|passphrase)s?|.+_pwd|(?:.*_)?(?:secrets?|credentials?|authorization)"
    r"|(?:.*_)?(?:api|access|account|private|secret|signing|encryption|subscription|auth|ssh|hf"
    r"|openai|wandb)_?keys?",
    re.IGNORECASE,
)
# Tokens are credentials or pieces of text: `hf_token` is the one, `pad_token` the other.
_SECRET_TOKEN = re.compile(
    r"(?:.*_)?(?:access|auth|api|hf|hub|hugging_?face|bearer|refresh|session|oauth|jwt|github|gh"
    r"|gitlab|private|personal|deploy|wandb|openai|pypi|npm)_?tokens?",
    re.IGNORECASE,
)
_TEXT_TOKEN = re.compile(
    r"(?:.*_)?(?:pad|eos|bos|unk|sep|cls|mask|start|end|stop|special|next|first|last|image|audio"
    r"|new|prompt|decoder|word|sub|label)_token",
    re.IGNORECASE,
)
_OTHER = re.compile(r".*_token", re.IGNORECASE)
_RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w.+/=-]{6,}")
_MARKED = re.compile(r"[<\[{(|].*[>\])}|]")
_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[-. ．]")

# What follows a colon is a password, which may hold any sign, or a port. Of a database's address
# everything before the last @ goes.
_PASSWORD = re.compile(
    r"(?<=://)[^/\s'\"@:\[]*:(?!\d*(?:[/?#'\",)\]\s]|$))"
    r"(?:(?:(?!://)[^\s?'\"])*@|(?:(?!://)\S)*?@)"
)
_DATABASE_USER = re.compile(
    r"((?:mongodb|postgres|mysql|mariadb|mssql|oracle|redis|amqp)[\w+]*://)(?:(?!://)[^\s?'\"])*@",
    re.IGNORECASE,
)
_USER = re.compile(r"(?<=://)[^/\s'\"]+@")
_PARAMETER = re.compile(r"([?&;])([\w.%-]+)=([^&\s'\"#]+)")
_SECRET_PARAMETER = re.compile(
    r".*(?:token|key|sig|signature|password|passwd|pass|pwd|secret|credentials?|auth"
    r"|authmechanismproperties)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?\w+\s+)[^\s'\"]+", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"(?<![\w.?&-])(-{0,2}[A-Za-z_][\w.．-]*)=(\"[^\"]*\"|'[^']*'|[^\s;]+)")
# What writing to a standard stream fails with, where the disk behind it is full, say.
FAILING = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG)


def harmless(text: str, keep: str = "\n\t") -> str:
    """Put a blank for every control character, which a terminal would obey, but those to keep."""
    return "".join(one if one.isprintable() or one in keep else " " for one in text)


def text(value: Any) -> str:
    """Write plain data in one line of a few characters, harmless on a terminal."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "" if value is None else "nan"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, datetime.datetime):
        local = value.replace(tzinfo=datetime.UTC).astimezone()
        return local.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list):
        value = ", ".join(text(entry) for entry in value)
    # Text out of a database may hold escape sequences, which a terminal would obey.
    return harmless(str(value), keep="")


def say(message: str) -> None:
    """Print one line for the user on stderr: what happened and what follows from it."""
    print(f"metatoolkit: {harmless(message)}", file=sys.stderr, flush=True)


def prepare_streams() -> None:
    """Let printing fail neither where a stream is closed nor where it cannot write a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Open for as long as the process; the file takes the place of the closed one.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def answer(command: Callable[[], int], interrupted: str = "") -> int:
    """Carry out a command, and answer in one line what ends it.

    Args:
        command: The command; returns its exit code.
        interrupted: What to say after Ctrl-C.

    Returns:
        That code, 2 for an error of this toolkit, 130 after Ctrl-C, and 0 where the reader of the
        output, such as `head`, has seen enough.
    """
    prepare_streams()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except MetatoolkitError as error:
        print(f"error: {harmless(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return 130
    except BrokenPipeError:
        _give_up_output()
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in FAILING:
            raise
        _give_up_output()
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        return 2


def flush_output() -> None:
    """Write what is still to be printed, unless its reader has seen enough."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up_output()


def _give_up_output() -> None:
    """Keep Python from flushing once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def redact(text: str) -> str:
    """Take user names, passwords and tokens out of every URL and assignment in a text.

    ``scheme://user:password@host`` becomes ``scheme://host``, and what is given to a secret's name,
    as in ``--password=...``, becomes ``***``.
    """
    if "://" in text:
        text = _PASSWORD.sub("", _DATABASE_USER.sub(r"\1", text))
        text = _PARAMETER.sub(_hide_parameter, _USER.sub("", text))
    if "uthorization" in text:
        text = _HEADER.sub(r"\1***", text)
    return _ASSIGNMENT.sub(_hide_given, text) if "=" in text else text


def is_secret(key: str, value: Any) -> bool:
    """Say whether what is stored under a key is a credential, which must not be recorded.

    Where the name does not tell, the look of the value does.
    """
    kind = _kind(key)
    if kind is None or value is None or isinstance(value, bool) or value == "":
        return False
    if kind == "secret":
        return True
    if isinstance(value, dict):
        return kind == "tokens" and bool(value)
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(one, str) and is_secret(key, one) for one in value)
    if not isinstance(value, str) or _MARKED.fullmatch(value):
        return False
    return kind in ("tokens", "token") or _RANDOM.fullmatch(value) is not None


@functools.lru_cache(maxsize=10_000)
def _kind(key: str) -> str | None:
    name = _WORD_BEGINS.sub("_", key.strip().lstrip("-"))
    if _SECRET.fullmatch(name):
        return "secret"
    if _TEXT_TOKEN.fullmatch(name):
        return None
    if _SECRET_TOKEN.fullmatch(name):
        return "tokens"
    # A word of a language too, or somebody's own.
    return "token" if name.lower() == "token" else "unknown" if _OTHER.fullmatch(name) else None


def is_secret_option(word: Any) -> bool:
    """Say whether a word of a command line, such as ``--password``, announces a credential."""
    return isinstance(word, str) and word.startswith("-") and is_secret(word, "x")


def _hide_parameter(found: re.Match[str]) -> str:
    secret = _SECRET_PARAMETER.fullmatch(found[2])
    return f"{found[1]}{found[2]}={HIDDEN}" if secret else found[0]


def _hide_given(found: re.Match[str]) -> str:
    name = found[1].replace("．", ".").rpartition(".")[2]
    return f"{found[1]}={HIDDEN}" if is_secret(name, found[2].strip("\"'")) else found[0]
