"""Applications that lie outside the repository: one file, a folder, an installed distribution."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

from metatoolkit import records
from metatoolkit.cli import main
from metatoolkit.errors import ConfigurationError
from metatoolkit.experiments import applications as module
from metatoolkit.experiments.applications import (
    applications,
    assembling,
    load_application,
    module_of,
)

ROOT = Path(__file__).resolve().parents[2]

WHOLE = '''"""A classifier of points whose examples a network weights by their losses."""

import torch

import metatoolkit as mt
from metatoolkit import records
from metatoolkit.experiments.components import build_estimator, build_inner
from metatoolkit.experiments.configuration import Count, entry
from metatoolkit.experiments.configured import configure
from metatoolkit.experiments.run import Assembly, fit_recorded
from metatoolkit.experiments.settings import TrainingSettings


class MySettings(TrainingSettings):
    steps: Count = entry(4, "Steps of training.")
    hidden: Count = entry(8, "Width of the weight network.")


experiment = records.experiment("NAME")
settings_of = configure(experiment, MySettings, {"wide": {"hidden": 16}})


def assemble(config):
    config = settings_of(config)
    seed, device = config["seed"], config["device"]
    torch.manual_seed(seed)
    points = torch.randn(64, 2)
    meta = mt.metaparameters.WeightNet(hidden=config["hidden"])
    problem = mt.BilevelProblem(
        torch.nn.Linear(2, 2), meta, mt.losses.weighted_cross_entropy, mt.losses.cross_entropy
    )
    estimator = build_estimator(config)
    optimizer = estimator and torch.optim.Adam(meta.parameters(), lr=config["meta_lr"])
    inner = build_inner(config, config["lr"]) or mt.inner.SGD(lr=config["lr"])
    trainer = mt.MetaTrainer(problem, inner, estimator, optimizer, device=device, seed=seed)
    data = points, (points.sum(1) > 0).long()
    train, valid = (mt.tasks.Batches(*data, batch_size=16, seed=seed + i) for i in range(2))
    return Assembly(trainer, train, valid)


@experiment.main
def main(_run, _config):
    return fit_recorded(_run, assemble(_config))


if __name__ == "__main__":
    experiment.run_commandline()
'''


def _write(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WHOLE.replace("NAME", name))
    return path


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("METATOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    former = set(sys.modules)
    yield
    for name in [one for one in sys.modules if one not in former and one.startswith("own_")]:
        del sys.modules[name]


def test_an_application_takes_sixty_lines_at_most():
    assert len(WHOLE.splitlines()) <= 60


def test_a_file_runs_by_its_path_and_its_record_names_its_source(tmp_path, capsys):
    path = _write(tmp_path / "elsewhere" / "own_file.py", "own_file")
    words = "with wide seed=3 progress=False evaluate_every=0 estimator.name=Unrolled"
    words += " estimator.steps=2 inner.name=AdamW"
    assert main(["run", str(path), *words.split()]) == 0
    with records.connect() as database:
        (run,) = database.find("experiment == 'own_file'")
        sources = run.details()["experiment"]["sources"]
        config, result = run.config, run.result
    assert [one["name"] for one in sources] == ["own_file.py"]
    assert config["method"] == "meta" and config["hidden"] == 16 and config["seed"] == 3
    assert config["estimator"] == {"name": "Unrolled", "steps": 2}
    assert result["lambda_distance"] > 0
    with pytest.raises(SystemExit, match="2"):
        words = "with estimator.name=Reptile steps=5 seed=1 progress=False"
        main(["run", str(path), *words.split()])
    assert "Reptile moves an initial state that λ sets" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recorded_run_is_repeated_by_the_script_that_is_trusted(tmp_path, capfd):
    path = _write(tmp_path / "own_repeated.py", "own_repeated")
    words = "with seed=3 progress=False steps=1 hidden=4"
    assert main(["run", str(path), *words.split()]) == 0
    with records.connect() as database:
        (run,) = database.find("experiment == 'own_repeated'")
    again = ["runs", "rerun", str(run.id)]
    assert main(again) == 2
    assert f"{path}: name the script that you trust with --script" in capfd.readouterr().err
    assert main([*again, "--script", str(path), "--with", "seed=4"]) == 0
    with records.connect() as database:
        (run,) = database.find("experiment == 'own_repeated' and config.seed == 4")
    assert run.config["hidden"] == 4


def test_a_relative_path_tells_its_entries_and_what_is_wrong(tmp_path, monkeypatch, capsys):
    _write(tmp_path / "own_relative.py", "own_relative")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["run", "./own_relative.py", "--help"])
    told = capsys.readouterr().out
    assert "  metatoolkit run ./own_relative.py [(with UPDATE...)]" in told
    assert "  hidden=8                        Width of the weight network." in told
    for words, said in (
        ("hiden=3", "Did you mean 'hidden'?"),
        ("hidden=0", "hidden is 0; an integer from 1 on is needed."),
        ("method=evogad", "unknown method 'evogad'. Did you mean 'evograd'?"),
        ("estimator.name=Unroled", "Did you mean 'Unrolled'?"),
        ("evograd.sigma=-1", "evograd.sigma is -1; a finite number above 0 is needed."),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["run", "own_relative.py", "with", words])
        printed = capsys.readouterr().err
        assert said in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("given", ["own_folder", "own_folder/", "own_folder/__init__.py"])
def test_a_folder_runs_by_its_path(tmp_path, given):
    _write(tmp_path / "own_folder" / "experiment.py", "own_folder")
    init = tmp_path / "own_folder" / "__init__.py"
    init.write_text("from own_folder.experiment import experiment as experiment\n")
    if given.endswith(".py"):
        with pytest.raises(ConfigurationError, match="name its folder"):
            module_of(str(tmp_path / given))
        return
    experiment = load_application(f"{tmp_path}/{given}")
    assert experiment.path == "own_folder"
    words = "seed=1 progress=False steps=1 method=plain"
    assert main(["run", f"{tmp_path}/{given}", "with", *words.split()]) == 0


def test_its_meta_step_is_measured_like_that_of_any_other(tmp_path):
    from applications.meta_step_cost.experiment import experiment

    path = _write(tmp_path / "own_measured.py", "own_measured")
    assert assembling(str(path)) == "own_measured"
    config = {"application": str(path), "estimator": "Unrolled", "options": {"steps": 2}, "seed": 1}
    result = experiment.run(config_updates=config, options={"--loglevel": "ERROR"}).result
    # Points forward and the gradient of the weights; the weight network forward.
    assert result["base_flops"] == 2 * (2 * 16 * 2 * 2) + 2 * 16 * (8 + 8)
    assert result["flops"] > 2 * result["base_flops"]


def test_the_checkouts_own_are_found_by_their_paths_too():
    assert module_of(str(ROOT / "applications" / "rotation")) == "applications.rotation"


def test_a_path_without_an_application_is_answered(tmp_path):
    with pytest.raises(ConfigurationError, match=r"own_none\.py does not exist; name a file"):
        module_of(str(tmp_path / "own_none.py"))
    (tmp_path / "own_empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"own_empty holds no __init__\.py"):
        module_of(str(tmp_path / "own_empty"))
    with pytest.raises(ConfigurationError, match=r"no name of a module; rename it.*'own_a'"):
        module_of(str(_write(tmp_path / "own-a.py", "own-a")))
    with pytest.raises(ConfigurationError, match="called like another module"):
        module_of(str(_write(tmp_path / "json.py", "json")))
    (tmp_path / "own_bare.py").write_text("x = 1\n")
    with pytest.raises(ConfigurationError, match=r"Add: experiment = records\.experiment"):
        load_application(str(tmp_path / "own_bare.py"))
    with pytest.raises(ConfigurationError, match="is called 'other'"):
        load_application(str(_write(tmp_path / "own_other.py", "other")))


def test_an_installed_application_is_found_by_its_entry_point(tmp_path, monkeypatch):
    _write(tmp_path / "own_installed.py", "mine")
    info = tmp_path / "own_installed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own_installed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metatoolkit.applications]\nmine = own_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mine" in applications()
    assert module_of("mine") == "own_installed"
    assert load_application("mine").path == "mine"


def _found_from(folder: Path) -> str:
    """Return what a process finds that can import the toolkit, and no package `applications`."""
    code = (
        "import importlib.util, os, sys\n"
        "frozen = lambda one: 'frozen' in getattr(one, '__module__', '')\n"
        "sys.meta_path = [one for one in sys.meta_path if frozen(one)]\n"
        "holds = lambda one: os.path.isdir(os.path.join(one or '.', 'applications'))\n"
        "sys.path = [one for one in sys.path if not holds(one)] + [sys.argv[1]]\n"
        "assert importlib.util.find_spec('applications') is None\n"
        "from metatoolkit.experiments.applications import applications\n"
        "print(*applications())\n"
    )
    links = folder.parent / "links"
    links.mkdir(exist_ok=True)
    if not (links / "metatoolkit").exists():
        (links / "metatoolkit").symlink_to(ROOT / "metatoolkit")
    result = subprocess.run(
        [sys.executable, "-c", code, str(links)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return result.stdout.strip()


def test_those_of_the_checkout_or_of_the_working_directory_are_found(tmp_path):
    empty, own = tmp_path / "empty", tmp_path / "own"
    empty.mkdir()
    assert "label_noise" in _found_from(empty).split()
    _write(own / "applications" / "own_third.py", "own_third")
    (own / "applications" / "__init__.py").write_text("raise SystemExit('it was run')\n")
    assert _found_from(own) == "own_third"


def test_nothing_that_is_found_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setattr(module, "_of_package", list)
    with pytest.raises(ConfigurationError, match="name the application's file or folder"):
        module_of("label_noise")


def test_a_wheel_holds_one_name():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    include = config["options.packages.find"]["include"].split()
    found = find_packages(str(ROOT), include=include)
    assert {name.partition(".")[0] for name in found} == {"metatoolkit"}
    assert "metatoolkit.experiments" in found
