"""`metatoolkit profile`: a table and a trace, or what is missing."""

import json

import pytest
import torch

from metatoolkit.cli import main


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    # The number of threads is the whole process's.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_a_step_is_told_by_phase(tmp_path, capsys):
    assert main(["profile", "label_noise", "--steps", "2", "with", "method=evograd"]) == 0
    told = capsys.readouterr().out
    cells = {line.split()[0]: line.split() for line in told.splitlines() if line}
    assert cells["phase"][:4] == ["phase", "entered", "ms", "share"]
    shares = [float(cells[name][3].rstrip("%")) for name in ("forward", "backward", "noise")]
    assert min(shares) > 0 and cells["step"][3] == "100%" and cells["HVP"][1] == "0"
    assert "label_noise.json" in told and "perfetto" in told
    assert json.loads((tmp_path / "label_noise.json").read_text())["traceEvents"]
    # Nothing is recorded.
    assert not list((tmp_path / "home").rglob("*.json"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["label_noise", "with", "method=plain"], "label_noise with method=plain has no estimator"),
        (["meta_step_cost"], "no function assemble"),
        (["label_nois"], "Did you mean"),
        (["label_noise", "with", "steeps=3"], "steeps"),
        (["label_noise", "--steps", "0"], "--steps is 0"),
        (["label_noise", "--trace", "no/such/folder.json"], "there is no folder no/such"),
    ],
)
def test_what_cannot_be_profiled_says_why(words, told, capsys, tmp_path):
    assert main(["profile", *words]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))
