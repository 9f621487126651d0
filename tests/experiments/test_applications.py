import sys

import pytest

from metatoolkit.cli import main
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.experiments import applications as module
from metatoolkit.experiments.applications import check_experiment, load_application

INIT = "from applications.{name}.experiment import experiment as experiment\n"
EXPERIMENT = """from metatoolkit import records
experiment = records.experiment({called!r})
experiment.main(lambda: open({ran!r}, "w").close())
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Write an application into a folder that joins the package."""
    import applications

    monkeypatch.setattr(applications, "__path__", [*applications.__path__, str(tmp_path)])

    def written(name, called, init=INIT, experiment=EXPERIMENT):
        folder = tmp_path / name
        folder.mkdir()
        ran = tmp_path / f"{name}.ran"
        (folder / "__init__.py").write_text(init.format(name=name))
        (folder / "experiment.py").write_text(experiment.format(called=called, ran=str(ran)))
        return ran

    yield written
    for name in [one for one in sys.modules if one.startswith("applications.made_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "called", "parts", "told"),
    [
        ("made_other", "another", {}, "is called 'another'"),
        ("made_bare", "made_bare", {"init": "x = 1\n"}, "exports no experiment. Add: from app"),
        (
            "made_plain",
            "made_plain",
            {"experiment": "import sacred\n"
             "experiment = sacred.Experiment({called!r}, save_git_info=False)\n"
             "experiment.main(lambda: open({ran!r}, 'w').close())\n"},
            "would not be recorded",
        ),
    ],
)  # fmt: skip
def test_the_rules_of_applications_are_checked_before_anything_runs(
    make, home, monkeypatch, capsys, name, called, parts, told
):
    ran = make(name, called, **parts)
    assert main(["run", name]) == 2
    assert told in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=told.partition("'")[0]):
        check_experiment(f"applications.{name}.experiment")
    assert not ran.exists()


def test_an_application_that_follows_them_runs(make, home, monkeypatch):
    ran = make("made_well", "made_well")
    assert main(["run", "made_well", "-u", "-l", "CRITICAL"]) == 0
    assert ran.exists()


def test_what_is_there_follows_them():
    for name in module.applications():
        assert load_application(name).path == name
    with pytest.raises(UnknownNameError, match="label_noise"):
        load_application("label_nose")
    check_experiment("somewhere.else")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
