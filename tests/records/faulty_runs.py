"""What the processes of the fault suite do: each records a run of its own kind."""

import os
import resource
import time
from pathlib import Path

from metatoolkit import records

from .experiments import make

VALUES = 100
PAUSE = 0.015


def _note(folder, name, value):
    new = folder / f"{name}.new"
    new.write_text(str(value))
    new.replace(folder / name)


def record(folder, body, **config):
    """Record a run, and note by how much longer it took than its own body."""
    taken = []

    def main(_run):
        _note(folder, "uuid", records.run_uuid(_run))
        begun = time.monotonic()
        try:
            return body(_run, folder)
        finally:
            taken.append(time.monotonic() - begun)

    begun = time.monotonic()
    try:
        return make(main, **config).run()
    finally:
        _note(folder, "extra", time.monotonic() - begun - sum(taken))


def log_values(_run, folder, values=VALUES, pause=PAUSE):
    # The note is taken after the value: a kill in between leaves one value more than noted.
    for step in range(values):
        _run.log_scalar("loss", float(step), step)
        _note(folder, "sent", step + 1)
        time.sleep(pause)
    return {"accuracy": 0.9}


def plain(folder):
    record(folder, log_values)


def slow_start(folder):
    """Log only once the test says so."""

    def body(_run, folder):
        while not (folder / "go").exists():
            time.sleep(0.01)
        return log_values(_run, folder)

    record(folder, body)


def heavy(folder):
    """Log, and add an artifact that a full disk cannot take."""

    def body(_run, folder):
        while not (folder / "go").exists():
            time.sleep(0.01)
        path = folder / "weights.bin"
        path.write_bytes(os.urandom(30_000_000))
        _run.add_artifact(path)
        return log_values(_run, folder)

    record(folder, body)


def endless(folder):
    def body(_run, folder):
        return log_values(_run, folder, values=10**6, pause=0.005)

    record(folder, body)


def failing(folder):
    def body(_run, folder):
        log_values(_run, folder, pause=0)
        raise ValueError("the reason")

    try:
        record(folder, body)
    except ValueError:
        return


def limited(folder):
    """Hit a limit on the size of files, which is how a full disk looks to one process."""

    def body(_run, folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        try:
            return log_values(_run, folder, values=400, pause=0.002)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    record(folder, body)


def filling(folder):
    """Fill the disk that the spool lies on."""

    def body(_run, folder):
        filler = Path(os.environ["METATOOLKIT_HOME"]) / "filler"
        try:
            with open(filler, "wb", buffering=0) as file:
                while file.write(b"x" * 65536):
                    pass
        except OSError as error:
            _note(folder, "full", error.strerror)
        return log_values(_run, folder, values=400, pause=0.002)

    record(folder, body)


def verbose(folder):
    def body(_run, folder):
        for number in range(18 * 1024):
            print(f"{number:>6} {'x' * 1016}")
        return log_values(_run, folder, pause=0)

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    record(folder, body)


def odd_kinds():
    import numpy
    import torch

    return [
        float("nan"), float("inf"), -float("inf"), 2**70, -(2**63), 10**400, True, 0.1 + 0.2,
        torch.tensor(0.5), torch.tensor(0.25, dtype=torch.bfloat16, requires_grad=True),
        numpy.float32(0.125), numpy.int64(7), numpy.array(3.0), torch.arange(3), 5e-324,
    ]  # fmt: skip


PLAIN_KINDS = [
    float("nan"), float("inf"), -float("inf"), float(2**70), -(2**63), float("inf"), True,
    0.1 + 0.2, 0.5, 0.25, 0.125, 7, 3.0, [0, 1, 2], 5e-324,
]  # fmt: skip


def odd(folder):
    def body(_run, folder):
        kinds = odd_kinds()
        for step, value in enumerate(kinds):
            _run.log_scalar("loss", value, step)
        _note(folder, "sent", len(kinds))
        return {"nan": float("nan"), "huge": 2**70, "tensor": kinds[8]}

    record(folder, body)


HOSTILE_NAMES = ["a.b", "$c", "$where", "a.$.b", "．", "", " ", "x\0y", "é", "\ud800", "_id", "0"]


def dotted(folder):
    def body(_run, folder):
        for name in HOSTILE_NAMES:
            _run.log_scalar(name, 1.0, 0)
            _run.info[name] = {name: 1}
        _note(folder, "sent", len(HOSTILE_NAMES))
        return {name: 1.0 for name in HOSTILE_NAMES}

    record(folder, body)


def gated(folder):
    gate = folder.parent / "gate"
    while not gate.exists():
        time.sleep(0.001)

    def body(_run, folder):
        return log_values(_run, folder, values=20, pause=0.002)

    record(folder, body, number=int(folder.name))


def backwards(folder):
    import datetime

    from metatoolkit.records import document

    real_time, real_now = time.time, document.utcnow
    shift = [0.0]
    time.time = lambda: real_time() - shift[0]
    document.utcnow = lambda: real_now() - datetime.timedelta(seconds=shift[0])

    def body(_run, folder):
        for step in range(VALUES):
            shift[0] += 600.0
            _run.log_scalar("loss", float(step), step)
            _note(folder, "sent", step + 1)
            time.sleep(0.002)

    record(folder, body)
