import gc
import os
from pathlib import Path

import pytest

# Before anything imports them: no test opens a window or asks a model hub.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
# Nor does one write to the database of whoever runs the tests.
for name in ("METATOOLKIT_MONGO_URI", "METATOOLKIT_DB_PORT"):
    os.environ.pop(name, None)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved in a test, by the name of their file."""
    from tests.drawings import Drawn

    return Drawn(monkeypatch)


@pytest.fixture
def jobs_here(monkeypatch):
    """Jobs of a command run in this process; those of test_jobs.py start others."""
    from metatoolkit.experiments import jobs

    def run(chosen, _processes):
        return ((place, jobs.run_job(job)) for place, job in enumerate(chosen))

    monkeypatch.setattr(jobs, "_in_processes", run)


@pytest.fixture(scope="session", autouse=True)
def patience():
    """A crowded machine may take long for what an idle one does at once."""
    from metatoolkit.records import address, push_thread, query

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(address, "SELECTION_SECONDS", 30.0)
        patch.setattr(push_thread, "START_WAIT_SECONDS", 60.0)
        patch.setattr(push_thread, "END_WAIT_SECONDS", 60.0)
        patch.setattr(address, "ANSWER_SECONDS", 30.0)
        patch.setattr(query, "SYNC_SECONDS", 60.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_sources():
    """A run in this process records the test's own file alone, not each of a thousand modules."""
    from metatoolkit.records import capture

    list_files, root = capture.source_files, Path(__file__).parent.parent

    def source_files(roots: list[Path]) -> list[Path]:
        own = root / os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
        return [path for path in list_files(roots) if path == own or root not in path.parents]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "source_files", source_files)
        yield


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: a time in them, as in gzip, differs between processes."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names that differ from process to process, which several workers cannot share."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(
            f"{unstable[0]} is named by the address of a parameter: drop ids=repr, or give names."
        )


def pytest_collection_finish() -> None:
    """Keep what is imported by now, most of all that lives, out of later searches for garbage."""
    gc.collect()
    gc.freeze()
