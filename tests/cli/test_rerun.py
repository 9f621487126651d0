"""Runs that are repeated from what the database says, which may be anything."""

import json
import os
import runpy
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from metatoolkit import records
from metatoolkit.cli import main, rerun
from metatoolkit.records.files import upload
from metatoolkit.records.sacred_compat import RERUN_VARIABLE
from tests.records.conftest import common_server, database, home, mongod, server

__all__ = ["common_server", "database", "home", "mongod", "server"]

SCRIPT = """
    from metatoolkit import records

    experiment = records.experiment("again")
    experiment.add_config(
        {"method": "plain", "seed": 1, "opt": {"lr": 0.1, "api_key": "hunter2"}, "none": None}
    )

    @experiment.command
    def other(opt, seed, none):
        return {"lr": opt["lr"], "seed": seed, "key": opt["api_key"] == "hunter2"}

    @experiment.main
    def main():
        return {}

    if __name__ == "__main__":
        experiment.run_commandline()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "again.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


def record(script, *words):
    """What `python script words` does, in this process."""
    runpy.run_path(str(script))["experiment"].run_commandline([script.name, *words])


@pytest.fixture
def reruns_here(monkeypatch):
    """Scripts are started in this process; a process of its own has the application below."""

    def start(words, check, env):
        with monkeypatch.context() as patch:
            patch.setenv(RERUN_VARIABLE, env[RERUN_VARIABLE])
            patch.setattr(sys, "argv", words[1:])
            try:
                runpy.run_path(words[1], run_name="__main__")
            except SystemExit as stop:
                return subprocess.CompletedProcess(words, int(stop.code or 0))
        return subprocess.CompletedProcess(words, 0)

    # In this module alone, since a run asks git by the same function.
    monkeypatch.setattr(rerun, "subprocess", SimpleNamespace(run=start))


def test_a_run_is_repeated_with_its_configuration(server, script, capsys, reruns_here):
    record(script, "other", "with", "opt.lr=0.25", "seed=7", "method=a.b")
    capsys.readouterr()
    assert main(["runs", "rerun", "1"]) == 2
    told = capsys.readouterr().err
    assert "--script" in told and str(script) in told
    assert main(["runs", "rerun", "1", "--script", str(script)]) == 0
    assert main(["runs", "rerun", "1", "--script", str(script), "--with", "seed=8"]) == 0
    assert "left to their defaults: opt.api_key" in capsys.readouterr().err
    with records.connect() as connection:
        first, second, third = connection.find().sort("id")
        assert first.config == second.config
        assert first.result == second.result == {"lr": 0.25, "seed": 7, "key": True}
        assert third.result["seed"] == 8
        assert third.document["meta"]["comment"] == f"rerun of {first.uuid}"
        assert first.document["command"] == third.document["command"] == "other"


def test_planted_documents_start_nothing(database, script, tmp_path, capsys):
    flag = tmp_path / "flag"
    for number, document in enumerate(
        [
            {"experiment": {"name": "label_noise/../../evil", "mainfile": str(script)}},
            {"experiment": {"name": "; touch flag", "base_dir": "/", "mainfile": "x"}},
            {"experiment": "text", "command": ["touch"]},
        ]
    ):
        database["runs"].insert_one({"_id": number, "status": "COMPLETED", **document})
        assert main(["runs", "rerun", str(number)]) == 2
    planted = {"_id": 9, "command": "--file_storage=flag", "status": "COMPLETED", "experiment": {}}
    database["runs"].insert_one(planted)
    assert main(["runs", "rerun", "9", "--script", str(script)]) == 2
    assert "no usable command" in capsys.readouterr().err
    assert not flag.exists() and not os.path.exists("flag")


ODD = """
    from metatoolkit import records

    experiment = records.experiment("odd")
    experiment.add_config(
        {
            "table": {1: "one", 2: {3: 0.5}, "1": "text", None: 1, 2.5: "half"},
            "rows": [{1: 2}, {"b": (1, 2)}],
            "none": None,
            "nan": float("nan"),
            "text": "",
            "seed": 1,
        }
    )

    @experiment.main
    def main(_config, table, rows, none, text):
        return {"seen": repr((dict(table), list(rows))), "length": len(text)}

    if __name__ == "__main__":
        experiment.run_commandline()
"""


@pytest.fixture
def odd(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(textwrap.dedent(ODD))
    return path


def test_a_configuration_comes_back_equal(server, odd, reruns_here):
    long = "t" * 1_200_000
    record(odd, "with", "none={'b': [1, 'x y=']}", f"text='{long}'", "seed=7")
    assert main(["runs", "rerun", "1", "--script", str(odd)]) == 0
    with records.connect() as connection:
        first, second = connection.find().sort("id")
        assert repr(first.config) == repr(second.config)
        assert first.config["text"] == {"artifact": "config.text.json"}
        assert first.result == second.result and second.result["length"] == len(long)
        table = {1: "one", 2: {3: 0.5}, "1": "text", None: 1, 2.5: "half"}
        assert eval(second.result["seen"]) == (table, [{1: 2}, {"b": [1, 2]}])


def test_nothing_that_a_document_holds_is_executed_or_written_to(
    database, odd, tmp_path, capfd, reruns_here
):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    evil = {"py/reduce": [{"py/type": "os.unlink"}, {"py/tuple": [str(victim)]}]}
    upload(database, "evil", [json.dumps({"a": [evil]}).encode()])
    document = {
        "_id": 1,
        "status": "COMPLETED",
        "experiment": {"name": "odd"},
        "command": "main",
        "run_uuid": "a\0b\x1b[2J",
        "artifacts": [{"name": "config.text.json", "file_id": "evil"}],
        "config": {"text": {"artifact": "config.text.json"}},
    }
    database["runs"].insert_one(document)
    for config, told in [
        (document["config"], "py/reduce"),
        ({"none": evil}, "py/reduce"),
        ({"none": b"bytes"}, "is not plain data"),
        ({"none": str(victim)}, "because a record names it"),
    ]:
        database["runs"].update_one({"_id": 1}, {"$set": {"config": config}})
        assert main(["runs", "rerun", "1", "--script", str(odd)]) == 2
        assert told in capfd.readouterr().err
    assert victim.read_text() == "precious"
    assert main(["runs", "rerun", "1", "--script", str(odd), "--with", f"none={victim}"]) == 0
    assert victim.read_text() == "precious"
    with records.connect() as connection:
        assert connection["latest"].config["none"] == str(victim)
        assert connection["latest"].document["meta"]["comment"] == "rerun of a b [2J"


def test_an_applications_checkpoint_stays_its_own(database, tmp_path, capfd):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    config = {"checkpoint": str(victim), "steps": "not a number"}
    document = {"experiment": {"name": "label_noise"}, "command": "main", "config": config}
    database["runs"].insert_one({"_id": 1, "status": "COMPLETED", **document})
    # The wrong entry ends it before anything is trained.
    assert main(["runs", "rerun", "1"]) == 2
    told = capfd.readouterr().err
    assert "left to their defaults: checkpoint" in told and "steps" in told
    assert victim.read_text() == "precious"


def test_a_script_that_records_nothing_is_said(database, tmp_path, capsys):
    script = tmp_path / "nothing.py"
    script.write_text("")
    database["runs"].insert_one({"_id": 1, "status": "COMPLETED", "config": {}})
    assert main(["runs", "rerun", "1", "--script", str(script)]) == 2
    assert "no experiment that is recorded" in capsys.readouterr().err
    database["runs"].update_one({}, {"$set": {"command": "with"}})
    assert main(["runs", "rerun", "1", "--script", str(script)]) == 2
    assert "no usable command" in capsys.readouterr().err


def test_what_is_hidden_is_left_out_wherever_it_is():
    config = {"a": {"b": "***", "c": 1}, "d": [1, ["--password=***"]], "e": "x"}
    wanted = ({"a": {"c": 1}, "e": "x"}, ["a.b", "d"])
    assert rerun._without_hidden(config) == wanted
    assert rerun._without_hidden({"text": {"too_large": "config.text.json"}}) == ({}, ["text"])
