"""What is taken of a run's process: output, signals, git state, sources, packages and GPUs."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from metatoolkit.records.home import AppendedFile
from metatoolkit.records.terminal import redact

GIT_SECONDS = 5.0
_METADATA = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)\.(?:dist-info|egg-info)")
_FOREIGN = ("/site-packages/", "/dist-packages/")


class _Nowhere(io.TextIOBase):
    """In the place of a stream that was closed before the program began."""

    def write(self, text: str | bytes) -> int:
        return len(text)

    @property
    def buffer(self) -> _Nowhere:
        return self


class _Stream:
    """A stream that also writes to the spool; everything else is the original's."""

    def __init__(self, original: Any, tee: OutputTee) -> None:
        self._original = original
        self._tee = tee

    def write(self, text: str | bytes) -> int:
        written = None
        # A reader such as `head` may have seen enough; the run goes on all the same.
        with contextlib.suppress(BrokenPipeError):
            written = self._original.write(text)
        self._tee.keep(text)
        return len(text) if written is None else int(written)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._original.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    @property
    def buffer(self) -> Any:
        return _Stream(self._original.buffer, self._tee)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class KeptInMemory:
    """Output that waits for the experiment's own filter before it is written."""

    def __init__(self) -> None:
        self._data = bytearray()

    def append(self, data: bytes) -> None:
        """Add output."""
        self._data += data

    def read(self, offset: int) -> bytes:
        """Return the output from a place on."""
        return bytes(self._data[offset:])


class OutputTee:
    """Captures ``sys.stdout``, ``sys.stderr`` and what is logged to them.

    Sacred's own capture keeps output in memory, from where a killed run loses it, and its
    ``sys`` mode may lose what is printed while a heartbeat reads.

    Args:
        output: The spool's file, or what stands between.
        logger: Sacred's logger, which need not be a registered one.
    """

    closed = False

    def __init__(
        self, output: AppendedFile | KeptInMemory, logger: logging.Logger | None = None
    ) -> None:
        self._output = output
        self._logger = logger
        self._offset = 0
        self._active = False
        self._originals: tuple[Any, Any] | None = None
        self._streams: tuple[_Stream, _Stream] | None = None
        self._handlers: list[tuple[Any, Any]] = []

    def install(self) -> None:
        """Begin to capture."""
        self._originals = (sys.stdout, sys.stderr)
        # Python has None in the place of a closed stream, and lets a program print to it.
        out, err = (_Nowhere() if one is None else one for one in self._originals)
        self._streams = (_Stream(out, self), _Stream(err, self))
        self._active = True
        sys.stdout, sys.stderr = self._streams
        for handler in self._stream_handlers():
            for original, replacement in zip(self._originals, self._streams, strict=True):
                if handler.stream is original:
                    self._handlers.append((handler, original))
                    handler.setStream(replacement)

    def remove(self) -> None:
        """Stop capturing; streams that somebody else has replaced meanwhile are left alone."""
        self._active = False
        if self._streams is None or self._originals is None:
            return
        if sys.stdout is self._streams[0]:
            sys.stdout = self._originals[0]
        if sys.stderr is self._streams[1]:
            sys.stderr = self._originals[1]
        for handler, stream in self._handlers:
            handler.setStream(stream)

    def keep(self, text: str | bytes) -> None:
        """Add a piece of output."""
        if self._active and text:
            data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
            self._output.append(bytes(data))

    def get(self) -> str:
        """Return what is new since the last call, as Sacred asks its own captures for it."""
        data = self._output.read(self._offset)
        self._offset += len(data)
        return data.decode("utf-8", "replace")

    def _stream_handlers(self) -> list[logging.StreamHandler[Any]]:
        loggers: list[Any] = [self._logger, logging.root, *logging.root.manager.loggerDict.values()]
        handlers = [one for logger in loggers for one in getattr(logger, "handlers", [])]
        unique = {id(one): one for one in handlers if isinstance(one, logging.StreamHandler)}
        return list(unique.values())


class Terminated(KeyboardInterrupt):
    """A signal asked the run to end, and gives its number.

    A KeyboardInterrupt, so that ``except Exception`` in a training loop does not swallow it.
    """

    STATUS = "INTERRUPTED"

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class TerminationSignals:
    """Turns termination signals into :class:`Terminated` for as long as a run lasts."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.ending = False
        self._former: dict[int, Any] = {}
        self._pid = os.getpid()

    def install(self) -> None:
        """Begin; does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            # nohup's SIG_IGN, or a handler of the application's own, stays in force.
            if signal.getsignal(number) is signal.SIG_DFL:
                self._former[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """End; the signals do again what they did before."""
        if threading.current_thread() is threading.main_thread():
            for number, former in self._former.items():
                signal.signal(number, former)
            self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked worker has inherited the handler, and the run is not its own.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.ending:
            # The run is over, and its last words are being written.
            return
        self.received = signal.Signals(number).name
        raise Terminated(number)


def git_state(directory: Path) -> dict[str, Any] | None:
    """Describe the git repository that a directory lies in.

    Args:
        directory: The experiment's directory.

    Returns:
        ``url`` (without credentials), ``commit``, ``dirty`` and ``root``; None where there is no
        git, no repository, no commit, or a repository that git does not trust.
    """
    root = _git(directory, "rev-parse", "--show-toplevel")
    commit = _git(directory, "rev-parse", "--verify", "HEAD")
    if root is None or commit is None:
        return None
    url = _git(directory, "config", "--get", "remote.origin.url")
    status = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {
        "url": redact(url) if url else f"git:/{root}",
        "commit": commit,
        "dirty": bool(status) if status is not None else None,
        "root": root,
    }


def _git(directory: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def source_files(roots: list[Path]) -> list[Path]:
    """List the Python files below directories that are loaded, installed packages left out."""
    library = sysconfig.get_paths()["stdlib"] + os.sep
    inside = tuple(f"{root}{os.sep}" for root in roots)
    found = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if not isinstance(name, str) or not name.endswith(".py"):
            continue
        if name.startswith(library) or any(folder in name for folder in _FOREIGN):
            continue
        real = _resolved(os.path.abspath(name))
        if real.startswith(inside):
            found.add(real)
    return [Path(path) for path in sorted(found) if os.path.isfile(path)]


# Runs in one process look at the same files again and again.
_resolved = functools.cache(os.path.realpath)


def package_versions() -> list[str]:
    """List the installed packages that are loaded now, as ``name==version``, sorted."""
    loaded = {name.partition(".")[0] for name in list(sys.modules)}
    installed = _installed()
    versions = {version for module in loaded for version in installed.get(module, ())}
    return sorted(versions, key=str.lower)


@functools.cache
def _installed() -> dict[str, list[str]]:
    """Map the name of every importable module to the packages that bring it.

    It is read from the folders' names and the lists of files: parsing the metadata of a few
    hundred packages would hold up the start of every run for a second.
    """
    installed: dict[str, list[str]] = {}
    seen: set[str] = set()
    for directory in dict.fromkeys(sys.path):
        try:
            entries = sorted(os.listdir(directory or "."))
        except OSError:
            continue
        for entry in entries:
            match = _METADATA.fullmatch(entry)
            if match and match["name"].lower() not in seen:
                seen.add(match["name"].lower())
                package = f"{match['name']}=={match['version']}"
                for module in _modules(os.path.join(directory, entry), match["name"]):
                    installed.setdefault(module, []).append(package)
    return installed


def _modules(metadata: str, package: str) -> set[str]:
    """List the top-level modules of an installed package."""
    modules = {package.replace("-", "_")}
    try:
        with open(os.path.join(metadata, "RECORD"), encoding="utf-8") as file:
            for line in file:
                path = line.partition(",")[0].strip('"')
                first, slash, _ = path.partition("/")
                if slash or first.endswith((".py", ".so", ".pyd")):
                    modules.add(first if slash else first.partition(".")[0])
    except OSError:
        # An egg-info folder has no such list; its own name has to do.
        return modules
    return modules


def gpu_information() -> dict[str, Any] | None:
    """Describe the GPUs that this process uses.

    Asking for a GPU that is not in use would start CUDA, which takes seconds and memory on it.

    Returns:
        The version of CUDA and per GPU its model, its memory and the peak of what tensors took of
        it, in MiB, in Sacred's layout; None where no GPU has been used so far.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        peak = torch.cuda.max_memory_allocated(index)
        if peak:
            gpus.append(
                {
                    "model": properties.name,
                    "total_memory": int(properties.total_memory // 2**20),
                    "peak_memory": int(peak // 2**20),
                }
            )
    return {"cuda": torch.version.cuda, "gpus": gpus} if gpus else None
