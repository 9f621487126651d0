"""Every test of an application records into a data directory of its own."""

import runpy
import sys
from pathlib import Path

import pytest

from metatoolkit.experiments import run as recorded
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


@pytest.fixture(scope="module")
def rendered():
    """Names of the figures that the runs of a file have rendered."""
    return set()


@pytest.fixture(autouse=True)
def drafts(request, rendered, monkeypatch):
    """Render a figure of each name once in a file, and in each test that reads what is drawn.

    Rendering is half of what a small run takes; the others are made up but not rendered.
    """
    from matplotlib.figure import Figure

    seen = set() if "drawn" in request.fixturenames else rendered
    render = Figure.savefig

    def savefig(figure, path, *arguments, **options):
        name = Path(path).name
        if name in seen:
            Path(path).write_bytes(b"\x89PNG, not rendered")
        else:
            seen.add(name)
            render(figure, path, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    """A step is timed once: no test here reads the time."""
    monkeypatch.setattr(recorded, "_REPEATS", 1)


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Call with an application and words: what `python -m` ends with and tells as errors."""

    def run(application, *words):
        monkeypatch.setattr(sys, "argv", [application, *words])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(f"applications.{application}", run_name="__main__")
        return stopped.value.code, capsys.readouterr().err

    return run


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
