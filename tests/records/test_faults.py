"""Whatever breaks: every recorded value is in the database afterwards, exactly once."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from metatoolkit import records
from metatoolkit.records.clean import clean_text

from . import faults, faulty_runs
from .conftest import kill_server
from .faults import External, Figures, Worker, figures, note_figures, same, sync_all

KILLING = [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL, signal.SIGABRT,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGALRM,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU,
    signal.SIGSYS,
]  # fmt: skip
# One that Python answers, one that the recording answers, and two that end a process at once.
FEW = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV]


@pytest.fixture
def external(tmp_path, mongod, monkeypatch):
    # A short path, so that the socket lies in the directory, and is the same after a restart.
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        directory = Path(name)
        made = External(directory)
        monkeypatch.setenv("METATOOLKIT_MONGO_URI", made.uri)
        yield made
        kill_server(directory)


@pytest.fixture
def check():
    def check(found):
        note_figures(found)
        found.check()

    return check


@pytest.mark.slow
def test_nothing_fails(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.join()
    check(figures("nothing fails", worker, external))


def test_the_server_is_killed_and_comes_back(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.wait_for(30)
    external.kill()
    time.sleep(0.5)
    external.back()
    worker.join()
    check(figures("server killed in mid-run, back after half a second", worker, external))


@pytest.mark.slow
def test_the_server_is_killed_for_good(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.wait_for(30)
    external.kill()
    worker.join()
    external.back()
    limit = faults.END_LIMIT
    check(figures("server killed in mid-run, back after the run", worker, external, limit=limit))


@pytest.mark.slow
def test_the_server_is_killed_at_the_last_moment(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.wait_for(faulty_runs.VALUES)
    external.kill()
    worker.join()
    external.back()
    limit = faults.END_LIMIT
    check(figures("server killed as the run ends", worker, external, limit=limit))


@pytest.mark.slow
def test_the_server_is_killed_right_after_the_run(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.join()
    external.kill()
    external.back()
    check(figures("server killed right after the run", worker, external))


@pytest.mark.slow
def test_the_server_is_down_at_the_start(external, tmp_path, check):
    external.kill()
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.join()
    external.back()
    limit = faults.START_LIMIT + faults.END_LIMIT
    check(figures("server down from start to end", worker, external, limit=limit))


@pytest.mark.slow
def test_the_server_comes_up_in_mid_run(external, tmp_path, check):
    external.kill()
    worker = Worker(tmp_path / "run", faulty_runs.slow_start)
    worker.wait_for_start()
    external.back()
    (tmp_path / "run" / "go").touch()
    worker.join()
    limit = faults.START_LIMIT
    check(figures("server down at the start, up in mid-run", worker, external, limit=limit))


@pytest.mark.slow
def test_the_server_is_frozen(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.wait_for(30)
    external.freeze()
    worker.join()
    external.thaw()
    limit = faults.END_LIMIT
    check(figures("server frozen (SIGSTOP) in mid-run", worker, external, limit=limit))


@pytest.mark.slow
def test_the_server_refuses_writes(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.wait_for(30)
    never = {"never": {"$exists": True}}
    with external.database() as database:
        for name in ("runs", "metrics"):
            database.command("collMod", name, validator=never)
        worker.join()
        for name in ("runs", "metrics"):
            database.command("collMod", name, validator={})
    limit = faults.END_LIMIT
    check(figures("server refuses writes from mid-run on", worker, external, limit=limit))


@pytest.mark.slow
def test_the_servers_disk_is_full(tmp_path, mongod, monkeypatch, check):
    with (
        tempfile.TemporaryDirectory(prefix="mt-") as name,
        faults.small_disk(Path(name) / "disk", 200) as mounted,
    ):
        if not mounted:
            pytest.skip("no small file system can be mounted here")
        directory = Path(name) / "disk"
        external = External(directory)
        monkeypatch.setenv("METATOOLKIT_MONGO_URI", external.uri)
        try:
            worker = Worker(tmp_path / "run", faulty_runs.heavy)
            worker.wait_for_start()
            filler = directory / "filler"
            with pytest.raises(OSError, match="No space"), open(filler, "wb", 0) as file:
                while file.write(b"x" * 1_000_000):
                    pass
            (tmp_path / "run" / "go").touch()
            worker.join()
            filler.unlink()
            # It ends by itself where its journal cannot grow, sooner or later.
            external.kill()
            external.back()
            limit = faults.END_LIMIT
            check(figures("disk of the server full from mid-run on", worker, external, limit=limit))
            with records.connect(external.uri) as connection:
                kept = connection[worker.uuid].artifacts["weights.bin"].read()
            assert kept == (tmp_path / "run" / "weights.bin").read_bytes()
        finally:
            kill_server(directory)


def test_the_disk_of_the_spool_is_full(external, home, tmp_path, check):
    # Room for the sources of whatever other tests loaded: the disk is full from mid-run on only.
    with faults.small_disk(home, 16) as mounted:
        if not mounted:
            pytest.skip("no small file system can be mounted here")
        worker = Worker(tmp_path / "run", faulty_runs.filling)
        worker.join()
        assert worker.note("full") == "No space left on device"
        check(figures("disk of the spool full from mid-run on", worker, external))


@pytest.mark.slow
def test_the_spool_may_not_grow(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.limited)
    worker.join()
    check(figures("files of the spool limited to 4 kB (RLIMIT_FSIZE)", worker, external))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "signals", [FEW, pytest.param(KILLING, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_every_signal_ends_a_run_and_no_record(external, tmp_path, check, signals):
    workers = {one: Worker(tmp_path / one.name, faulty_runs.endless) for one in signals}
    try:
        for number, worker in workers.items():
            worker.wait_for(20)
            worker.kill(number)
        for worker in workers.values():
            worker.join()
    finally:
        for worker in workers.values():
            worker.process.kill()
    for number, worker in workers.items():
        with records.connect(external.uri) as connection:
            run = connection[worker.uuid]
            assert "Started" in run.output
            if number in (signal.SIGTERM, signal.SIGHUP):
                assert run.details()["status_note"] == f"ended by {number.name}"
            elif number != signal.SIGINT:
                assert f"process {worker.process.pid} on" in run.details()["status_note"]
        name = f"run killed by {number.name}"
        check(figures(name, worker, external, "INTERRUPTED", killed=True))


@pytest.mark.slow
def test_run_and_server_are_killed_together(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.endless)
    worker.wait_for(50)
    external.kill()
    worker.kill(signal.SIGKILL)
    worker.join()
    external.back()
    name = "server and run killed (SIGKILL) together"
    check(figures(name, worker, external, "INTERRUPTED", killed=True))


def test_an_exception_ends_the_run(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.failing)
    worker.join()
    check(figures("exception in the run", worker, external, "FAILED"))


@pytest.mark.slow
def test_eighteen_megabytes_of_output(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.verbose)
    worker.join()
    check(figures("18 MB of output: the values", worker, external))
    with records.connect(external.uri) as connection:
        run = connection[worker.uuid]
        lines = run.artifacts["cout.txt"].read().decode().splitlines()
        found = [line for line in lines if line.endswith("x" * 1016)]
        right = [int(line.split()[0]) for line in found] == list(range(18 * 1024))
        assert len(run.output) < 1_100_000
    name = "18 MB of output: the lines"
    check(Figures(name, 18 * 1024, len(found) if right else -1, run.status, "COMPLETED"))


@pytest.mark.slow
def test_values_of_every_kind(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.odd)
    worker.join()
    sync_all(tmp_path / "home", external.uri)
    with external.database() as database:
        document = database["runs"].find_one({"run_uuid": worker.uuid})
        values = database["metrics"].find_one({"run_id": document["_id"]})["values"]
    wanted = faulty_runs.PLAIN_KINDS
    found = sum(same([one], [other]) for one, other in zip(values, wanted, strict=True))
    assert faults.isnan(document["result"]["nan"])
    assert document["result"]["huge"] == float(2**70) and document["result"]["tensor"] == 0.5
    name = "NaN, infinities, tensors, huge integers"
    check(Figures(name, len(wanted), found, document["status"], "COMPLETED", worker.extra))


@pytest.mark.slow
def test_names_with_dots_and_dollars(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.dotted)
    worker.join()
    sync_all(tmp_path / "home", external.uri)
    wanted = [clean_text(name) for name in faulty_runs.HOSTILE_NAMES]
    with external.database() as database:
        document = database["runs"].find_one({"run_uuid": worker.uuid})
        found = list(database["metrics"].find({"run_id": document["_id"]}))
    assert len(document["result"]) == len(wanted) == len(document["info"]) - 1
    assert all(metric["values"] == [1.0] for metric in found)
    names = {metric["name"] for metric in found}
    status = document["status"]
    right = len(found) if names == set(wanted) else -1
    name = "names with dots, dollars, null characters"
    check(Figures(name, len(wanted), right, status, "COMPLETED", worker.extra))


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_eight_processes_start_at_once(external, tmp_path, check):
    workers = [Worker(tmp_path / "runs" / str(number), faulty_runs.gated) for number in range(8)]
    time.sleep(0.5)
    (tmp_path / "runs" / "gate").touch()
    for worker in workers:
        worker.join()
    each = [figures("", worker, external) for worker in workers]
    with records.connect(external.uri) as connection:
        runs = connection.find().runs()
        assert sorted(run.id for run in runs) == list(range(1, 9))
        assert sorted(run.config["number"] for run in runs) == list(range(8))
    check(
        Figures(
            "8 processes start at once",
            sum(one.sent for one in each),
            sum(one.found for one in each),
            ", ".join({one.status for one in each}),
            "COMPLETED",
            # Eight starts share the machine's cores.
            max(one.extra for one in each),
            faults.START_LIMIT,
        )
    )


@pytest.mark.slow
def test_the_clock_goes_backwards(external, tmp_path, check):
    worker = Worker(tmp_path / "run", faulty_runs.backwards)
    worker.join()
    check(figures("clock goes back by ten minutes at every value", worker, external))
    with records.connect(external.uri) as connection:
        document = connection[worker.uuid].document
    assert document["stop_time"] >= document["start_time"] and document["duration"] >= 0


@pytest.mark.slow
def test_the_managed_server_is_killed_and_the_run_restarts_it(home, mongod, tmp_path, check):
    from metatoolkit.records.server import ManagedServer

    server = ManagedServer(home)
    server.start()
    worker = Worker(tmp_path / "run", faulty_runs.plain)
    worker.wait_for(30)
    os.kill(server.status()["pid"], signal.SIGKILL)
    worker.join()
    limit = faults.END_LIMIT
    check(figures("managed server killed in mid-run", worker, External(home), limit=limit))
