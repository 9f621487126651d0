import os
import subprocess
import sys
import textwrap

import pytest

from metatoolkit import records
from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.records import capture
from metatoolkit.records.terminal import redact

from .experiments import count_up, make

SCRIPT = """
    import sys, time
    from metatoolkit import records
    from metatoolkit.errors import UnknownNameError

    experiment = records.experiment("script")
    experiment.add_config({"method": "evograd", "values": 5, "seed": 1})

    @experiment.main
    def main(_run, method, values):
        if method == "unknown":
            raise UnknownNameError("method", method, ["evograd"])
        for step in range(values):
            _run.log_scalar("loss", step, step)
        print("printed by the run")
        return {"values": values}

    if __name__ == "__main__":
        experiment.run_commandline()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


def execute(path, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **environment},
        cwd=path.parent,
    )


def git(directory, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True)


def test_a_script_records_its_source_output_and_git_state(script, server):
    git(script.parent, "init", "-q")
    git(script.parent, "add", "script.py")
    git(script.parent, "commit", "-qm", "first")
    git(script.parent, "remote", "add", "origin", "https://me:token@example.org/x.git")
    done = execute(script, "with", "values=7")
    assert done.returncode == 0, done.stderr
    with records.connect() as connection:
        run = connection.find("config.values == 7")[0]
        details = run.details()
        assert run.result == {"values": 7}
        # Sacred's log lines belong to the output, the last one too.
        assert "printed by the run\n" in run.output and "Completed after" in run.output
        repository = details["experiment"]["repositories"][0]
        assert repository["url"] == "https://example.org/x.git"
        assert len(repository["commit"]) == 40 and repository["dirty"] is False
        assert [name for name, _ in details["experiment"]["sources"]] == ["script.py"]
        assert "gpus" not in details["host"]
    assert "CUDA" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "closed",
    [
        pytest.param("<&-", marks=pytest.mark.slow),
        pytest.param(">&-", marks=pytest.mark.slow),
        pytest.param("2>&-", marks=pytest.mark.slow),
        "<&- >&- 2>&-",
    ],
)
def test_a_run_needs_no_open_streams(script, home, closed):
    """As a service or a job in the background may start it."""
    command = f"exec {sys.executable} {script.name} {closed}"
    environment = {**os.environ, "METATOOLKIT_MONGOD": ""}
    done = subprocess.run(["bash", "-c", command], env=environment, cwd=script.parent, timeout=240)
    assert done.returncode == 0
    with records.connect() as connection:
        (run,) = connection.find()
        assert run.status == "COMPLETED" and "printed by the run\n" in run.output
        assert run.metrics["loss"].tolist() == [0, 1, 2, 3, 4]


def test_mistakes_on_the_command_line_end_with_one_line(script):
    environment = {"METATOOLKIT_MONGOD": ""}
    done = execute(script, "with", "method=unknown", **environment)
    assert done.returncode == 2
    assert "error: unknown method 'unknown'" in done.stderr
    assert "Traceback" not in done.stderr
    done = execute(script, **environment, METATOOLKIT_HOME=str(script / "below"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: cannot write ")
    assert "METATOOLKIT_HOME" in done.stderr and "Traceback" not in done.stderr


def test_unknown_entries_are_named_with_the_nearest():
    experiment = make(count_up, learning_rate=0.1)
    with pytest.raises(UnknownNameError, match="Did you mean 'learning_rate'"):
        experiment.run(config_updates={"learnin_rate": 1.0})
    experiment.add_named_config("paper", {"learning_rate": 1.0})
    with pytest.raises(UnknownNameError, match="Did you mean 'paper'"):
        experiment.run(named_configs=["papr"])


@pytest.mark.parametrize("value", ["abc", [1], True])
def test_a_value_of_another_type_is_refused_before_the_run(value, home):
    experiment = make(count_up, lr=0.1)
    with pytest.raises(ConfigurationError, match="'lr' takes a value of type float"):
        experiment.run(config_updates={"lr": value})
    assert not (home / "spool").exists()


@pytest.mark.parametrize("value", [1, None])
def test_numbers_and_none_are_accepted(value, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    assert make(count_up, lr=0.1).run(config_updates={"lr": value}).config["lr"] == value


def test_an_experiment_that_was_made_elsewhere_is_recorded_once(monkeypatch, server):
    from metatoolkit.records.sacred_compat import import_sacred

    sacred = import_sacred()
    experiment = sacred.Experiment("plain", interactive=True, save_git_info=False)
    experiment.main(count_up)
    assert records.record(experiment) is records.record(experiment)
    done = experiment.run()
    with records.connect() as connection:
        assert connection[records.run_id(done)].experiment == "plain"
        assert len(connection.find()) == 1


def test_a_run_that_is_not_recorded_has_no_id():
    experiment = make(count_up)
    done = experiment.run(options={"--unobserved": True})
    assert records.run_uuid(done) is None and records.run_id(done) is None


def test_git_is_never_in_the_way(tmp_path, monkeypatch):
    assert capture.git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert capture.git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert capture.git_state(tmp_path) is None


def test_credentials_are_stripped():
    for text, wanted in {
        "https://token@host/x": "https://host/x",
        "mongodb://u:p@ss@h1:1,h2:2/db?a=b": "mongodb://h1:1,h2:2/db?a=b",
        "mongodb+srv://u:p@h/?tlsCertificateKeyFilePassword=x&b=c": "mongodb+srv://h/?"
        "tlsCertificateKeyFilePassword=***&b=c",
        "write to me@host": "write to me@host",
    }.items():
        assert redact(text) == wanted


def test_sacred_is_imported_without_pkg_resources():
    code = (
        "import sys; sys.modules['pkg_resources'] = None; del sys.modules['pkg_resources']\n"
        "from metatoolkit.records.sacred_compat import import_sacred\n"
        "sacred = import_sacred(); assert 'pkg_resources' not in sys.modules\n"
        "from sacred.observers import MongoObserver\n"
        "from sacred import dependencies\n"
        "assert dependencies.pkg_resources.working_set.by_key['sacred'].version\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], check=True, timeout=240
    )


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "abc", True])
def test_a_seed_that_cannot_seed_is_refused_in_one_line(seed):
    experiment = make(count_up)
    with pytest.raises(ConfigurationError, match=f"seed is {seed!r}; an integer from 0 to"):
        experiment.run(config_updates={"seed": seed})


def test_what_a_hook_fills_in_does_not_reach_the_next_run():
    experiment = make(lambda: None, nested={"x": None, "y": [1]}, method="a")

    @experiment.config_hook
    def fill(config, command_name, logger):
        return {"nested": {"x": config["method"]}} if config["nested"]["x"] is None else {}

    for method in ("a", "b", "a"):
        assert experiment.resolve({"method": method})["nested"] == {"x": method, "y": [1]}
