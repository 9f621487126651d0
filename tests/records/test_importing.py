import json
import math
from pathlib import Path

import pytest

from metatoolkit import records
from metatoolkit.cli import main
from metatoolkit.errors import ConfigurationError
from metatoolkit.records.edits import import_folder
from metatoolkit.records.sacred_compat import import_sacred


@pytest.fixture
def stored(tmp_path):
    """Two runs of stock Sacred in files, one of which failed."""
    sacred = import_sacred()
    from sacred.observers import FileStorageObserver

    folder = tmp_path / "runs"
    experiment = sacred.Experiment("filed", interactive=True, save_git_info=False)
    experiment.add_config({"seed": 1, "pair": (1, 2), "nested": {"a": None, "b_c": 3}})
    experiment.add_source_file(__file__)

    @experiment.main
    def body(_run, seed):
        for step in range(4):
            _run.log_scalar("loss", seed / (step + 1), 10 * step)
        _run.log_scalar("odd", math.nan)
        print("printed")
        path = tmp_path / "weights.bin"
        path.write_bytes(b"weights %d" % seed)
        _run.add_artifact(str(path))
        if seed == 2:
            raise ValueError("the reason")
        return {"accuracy": 0.5}

    experiment.observers.append(FileStorageObserver(folder))
    options = {"--capture": "sys"}
    experiment.run(config_updates={"seed": 1}, options=options)
    with pytest.raises(ValueError, match="the reason"):
        experiment.run(config_updates={"seed": 2}, options=options)
    return folder


def test_runs_in_files_are_brought_in_once(server, stored, capsys, tmp_path):
    before = sorted((path, path.stat().st_mtime_ns) for path in stored.rglob("*"))
    assert main(["records", "import", str(stored)]) == 0
    assert "imported: 2 runs; there already: 0" in capsys.readouterr().out
    assert main(["records", "import", str(stored)]) == 0
    assert "imported: 0 runs; there already: 2" in capsys.readouterr().out
    assert main(["records", "import", str(stored / "1")]) == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in stored.rglob("*")) == before
    with records.connect() as connection:
        good, bad = connection.find(experiment="filed").sort("config.seed")
        assert (good.status, bad.status) == ("COMPLETED", "FAILED")
        assert good.config == {"seed": 1, "pair": [1, 2], "nested": {"a": None, "b_c": 3}}
        assert good.result == {"accuracy": 0.5} and bad.result is None
        assert good.metrics["loss"].tolist() == [1.0, 0.5, 1 / 3, 0.25]
        assert good.metrics["loss"].index.tolist() == [0, 10, 20, 30]
        assert math.isnan(good.metrics["odd"].iloc[0])
        entry = json.loads((stored / "1" / "run.json").read_text())
        assert good.document["start_time"].isoformat()[:22] == entry["start_time"][:22]
        assert good.document["duration"] > 0
        assert "printed" in good.output and good.artifacts["weights.bin"].read() == b"weights 1"
        (source,) = [one for name, one in good.sources.items() if name.endswith("importing.py")]
        assert source.read() == Path(__file__).read_bytes()
        assert "ValueError: the reason" in bad.fail_trace
        for expression, count in {
            "metrics.loss.last == 0.25": 1,
            "contains(reason, 'the reason') and metrics.loss.at[10] == 1": 1,
            "'weights.bin' in artifacts": 2,
            "contains(output, 'printed') and result.accuracy == 0.5": 1,
        }.items():
            assert len(connection.find(expression)) == count, expression
    assert main(["runs", "sources", str(good.id), "--save", str(tmp_path / "code")]) == 0
    assert list((tmp_path / "code").rglob("test_importing.py"))


def test_files_elsewhere_and_damaged_folders_are_left_out(home, stored, monkeypatch, capsys):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    secret = stored.parent / "secret"
    secret.write_text("secret")
    entry = json.loads((stored / "1" / "run.json").read_text())
    entry["artifacts"] += ["../../secret", "/etc/passwd"]
    entry["experiment"]["sources"] = [["a.py", "../secret"]]
    entry["status"], entry["heartbeat"] = "RUNNING", "2020-01-01T00:00:00"
    (stored / "1" / "run.json").write_text(json.dumps(entry))
    (stored / "2" / "run.json").write_text("{")
    done = import_folder(stored, home)
    assert [path.name for path in done.added] == ["1"] and list(done.failed) == [stored / "2"]
    with records.connect() as connection:
        (run,) = connection.find(experiment="filed")
        assert list(run.artifacts) == ["weights.bin"] and run.sources == {}
        assert run.status != "COMPLETED"
        assert not any(b"secret" in path.read_bytes() for path in home.rglob("files/*"))
    with pytest.raises(ConfigurationError, match="holds no runs"):
        import_folder(home)


def test_a_run_that_goes_on_is_not_taken_over(home, stored, monkeypatch):
    from metatoolkit.records.spool import utcnow

    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    entry = json.loads((stored / "1" / "run.json").read_text())
    entry["status"], entry["heartbeat"] = "RUNNING", utcnow().isoformat()
    (stored / "1" / "run.json").write_text(json.dumps(entry))
    done = import_folder(stored / "1", home)
    assert [path.name for path in done.live] == ["1"] and not done.added
