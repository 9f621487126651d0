"""Every test of an application records into a data directory of its own."""

import pytest

from metatoolkit.records.server import ManagedServer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    yield folder
    ManagedServer(folder).stop()


@pytest.fixture(autouse=True)
def records_home(home, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(home))
    monkeypatch.delenv("METATOOLKIT_MONGO_URI", raising=False)
