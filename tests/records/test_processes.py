import os
import subprocess
import sys

import psutil
import pytest

from metatoolkit.records import home as processes
from metatoolkit.records.home import process_identity, process_lives, same_kernel


def test_a_process_lives_until_it_ends_whatever_the_clock_says():
    here = process_identity()
    assert here["pid"] == os.getpid() and here["user"] == os.getuid()
    assert process_lives(here) is True and same_kernel(here)
    if here["ticks"] is not None:
        # The clock was set by a day: what psutil computes from it is another time now.
        assert process_lives({**here, "started": here["started"] - 86_400}) is True
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = process_identity(child.pid)
    assert process_lives(other) is True
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert process_lives(other) is False and process_lives(other, ending=True) is True
    child.communicate()
    assert process_lives(other) is False
    with pytest.raises(psutil.NoSuchProcess):
        process_identity(child.pid)


def test_a_number_that_came_back_is_another_process():
    here = process_identity()
    if here["ticks"] is not None:
        assert process_lives({**here, "ticks": here["ticks"] + 1}) is False
    assert process_lives({**here, "ticks": None, "started": 1.0}) is False


def test_what_cannot_be_seen_from_here_is_not_judged(monkeypatch):
    here = process_identity()
    for name in ("host", "machine", "namespace"):
        assert process_lives({**here, name: "another"}) is None
    assert process_lives({**here, "boot": "an earlier one"}) is False
    assert not same_kernel({**here, "boot": "an earlier one"})
    assert process_lives({}) is None and process_lives({"host": here["host"]}) is False
    # What an earlier version noted down has fewer fields.
    assert process_lives({name: here[name] for name in ("pid", "host", "started")}) is True
    # Where the system has none of these files, the host's name and psutil remain.
    for name in ("_BOOT", "_MACHINE", "_NAMESPACE"):
        monkeypatch.setattr(processes, name, processes.Path("/nowhere"))
    bare = process_identity()
    assert process_lives({**bare, "ticks": None}) is True
    for odd in ({"pid": "x"}, {"pid": 10**30}, {"pid": None}, {"ticks": None, "started": "x"}):
        assert process_lives({**bare, **odd}) is False
