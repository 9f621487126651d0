"""The page of questions: every command on it is executed, and answers its question."""

import datetime
import os
import re
import shlex
import subprocess
from pathlib import Path

import pymongo
import pytest

from metatoolkit import records
from metatoolkit.cli import main, rerun
from metatoolkit.records.sacred_compat import RERUN_VARIABLE
from metatoolkit.records.server import ManagedServer
from metatoolkit.records.spool import utcnow

from .conftest import kill_server

PAGE = Path(__file__).parent.parent.parent / "docs" / "questions.md"
TEXT = PAGE.read_text("utf-8")
COMMANDS = re.findall(r"^\$ metatoolkit (.*)$", TEXT, re.MULTILINE)
# What the answers to these commands must hold; the others must be answered at all.
ANSWERS = {
    "runs best result.test_accuracy --experiment": ["run                   6", "0.93"],
    "runs best valid_loss --min": ["metrics['valid_loss'].min  0.2"],
    "runs group": ["evograd        0.92  0.01  3"],
    "runs compare": ["config.method         plain  evograd"],
    "runs plot --metric": ["curves.png"],
    "runs report": ["report.html"],
    "runs sources 6 --save": ["code/", "test_questions.py"],
    "runs artifacts 6 checkpoint.pt": ["checkpoints/checkpoint.pt"],
    "runs list --where \"status in": ["PROBABLY_DEAD", "8"],
    "runs list --where \"start_time == 'last tuesday'": ["2   label_noise  NVIDIA H200"],
    "runs list --where \"status == 'FAILED'": ["FAILED"],
    "runs show 7": ["ValueError: the reason", "printed before the end"],
    "runs list --where \"'paper' in tags\"": ["6 ", "3 "],
    "runs note": ["the one in table 2"],
    "runs tail": ["valid_loss  step 4"],
    "runs rm": ["deleted: 7"],
}  # fmt: skip


@pytest.fixture(scope="module")
def answered(mongod, tmp_path_factory):
    """Runs like those that the page speaks of: six good ones, one that failed, a dead one."""
    home = tmp_path_factory.mktemp("questions")
    former = os.environ.get("METATOOLKIT_HOME")
    os.environ["METATOOLKIT_HOME"] = str(home)

    def body(_run, method, seed):
        for step in range(5):
            scale = 2.0 if method == "plain" else 1.0
            _run.log_scalar("valid_loss", scale / (step + 1) + 0.01 * (seed - 1), step)
        path = home / "checkpoint.pt"
        path.write_bytes(b"weights")
        _run.add_artifact(path)
        print("printed before the end")
        if method == "broken":
            raise ValueError("the reason")
        return {"test_accuracy": {"plain": 0.7, "evograd": 0.9}[method] + 0.01 * seed}

    experiment = records.experiment("label_noise", interactive=True)
    experiment.add_config({"method": "plain", "seed": 1, "lr": 0.1})
    experiment.main(body)
    try:
        for method in ("plain", "evograd"):
            for seed in (1, 2, 3):
                experiment.run(config_updates={"method": method, "seed": seed})
        with pytest.raises(ValueError, match="the reason"):
            experiment.run(config_updates={"method": "broken"})
        with pymongo.MongoClient(ManagedServer(home).running_uri()) as client:
            runs = client.get_default_database()["runs"]
            today = datetime.datetime.now().replace(hour=12)
            tuesday = today - datetime.timedelta(days=(today.weekday() - 2) % 7 + 1)
            then = tuesday.astimezone(datetime.UTC).replace(tzinfo=None)
            gpu = {"gpus": [{"model": "NVIDIA H200", "total_memory": 143_771}]}
            runs.update_one({"_id": 2}, {"$set": {"start_time": then, "host.gpus": gpu}})
            long_ago = utcnow() - datetime.timedelta(days=30)
            runs.insert_one({"_id": 8, "status": "RUNNING", "start_time": long_ago})
        yield home
    finally:
        kill_server(home)
        if former is None:
            del os.environ["METATOOLKIT_HOME"]
        else:
            os.environ["METATOOLKIT_HOME"] = former


def test_every_command_of_the_page_answers(answered, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METATOOLKIT_HOME", str(answered))
    monkeypatch.chdir(tmp_path)
    started = []

    real = subprocess.run

    def start(command, **options):
        if command[0] == "git":
            return real(command, **options)
        started.append(command)
        # As a run does that has taken the configuration over.
        Path(options["env"][RERUN_VARIABLE]).unlink()
        return subprocess.CompletedProcess(command, 0)

    waiting = dict(ANSWERS)
    assert len(COMMANDS) > 25
    for command in COMMANDS:
        words = shlex.split(command)
        with monkeypatch.context() as patch:
            if words[1] == "rerun":
                # The command that it would start; that it does start is tested elsewhere.
                patch.setattr(rerun.subprocess, "run", start)
            assert main(words) == 0, command
        shown = capsys.readouterr().out
        assert shown or words[1] == "rerun", command
        for beginning in [one for one in waiting if command.startswith(one)]:
            for wanted in waiting.pop(beginning):
                assert wanted in shown, (command, shown)
    assert not waiting
    assert [one[3:5] for one in started if "run" in one] == [["run", "label_noise"]] * 2
    assert started[-1][-1] == "seed=4"
    for name in ("curves.png", "two.svg", "report.html", "table.tex", "runs.csv", "runs.parquet"):
        assert (tmp_path / name).stat().st_size > 100, name
    assert (tmp_path / "checkpoints" / "checkpoint.pt").read_bytes() == b"weights"

    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["best"].id == 6 and len(names["table"]) == 3 and len(names["curve"]) == 5
    assert (tmp_path / "compared.png").exists()
    names["runs"].close()
    names["comparison"].runs[0].store.database.client.close()


def test_the_page_names_every_field_and_command():
    from metatoolkit.cli import build_parser
    from metatoolkit.records.expressions import FUNCTIONS
    from metatoolkit.records.fields import FIELDS

    for name in [*FUNCTIONS, *(name for name in FIELDS if name not in ("meta", "resumed_from"))]:
        assert f"`{name}" in TEXT, name
    words = " ".join(COMMANDS)
    runs = build_parser()._subparsers._group_actions[0].choices["runs"]
    for name in runs._subparsers._group_actions[0].choices:
        assert f"runs {name}" in words, name
