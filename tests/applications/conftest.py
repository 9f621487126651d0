"""Every test of an application records into a data directory of its own."""

import pytest

from metatoolkit.records.server import ManagedServer
from metatoolkit.training import MetaTrainer


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    yield folder
    ManagedServer(folder).stop()


@pytest.fixture(autouse=True)
def records_home(home, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(home))
    monkeypatch.delenv("METATOOLKIT_MONGO_URI", raising=False)


@pytest.fixture
def interrupt():
    """Call with a function that trains, and the number of steps after which it is interrupted."""

    def train(run, steps):
        original = MetaTrainer.meta_step

        def stop(self, *arguments):
            if self.steps_done == steps:
                raise KeyboardInterrupt
            return original(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MetaTrainer, "meta_step", stop)
            with pytest.raises(KeyboardInterrupt):
                run()

    return train
