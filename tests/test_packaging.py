import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONWARNINGS": "default", **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(
            "learn2learn, numpy, datasets, pyarrow, transformers, sacred", marks=pytest.mark.slow
        ),
        "sacred, transformers, pyarrow, datasets, learn2learn",
        pytest.param("dehb, pyarrow, learn2learn, datasets, optuna", marks=pytest.mark.slow),
    ],
)
def test_packages_with_conflicting_pins_import_together(names: str) -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed", exc_type=ImportError)
    if "dehb" in names:
        pytest.importorskip("dehb", reason="dehb is not installed", exc_type=ImportError)
    result = run_python(f"import {names}; import numpy; print('numpy', numpy.__version__)")
    assert result.returncode == 0, result.stderr
    version = result.stdout.split("numpy ")[-1]
    assert int(version.split(".")[0]) >= 2


def test_learn2learn_extensions_are_compiled() -> None:
    pytest.importorskip("learn2learn", reason="learn2learn is not installed", exc_type=ImportError)
    import learn2learn as l2l
    import torch
    from learn2learn.data.transforms import KShots, LoadData, NWays
    from torch.utils.data import TensorDataset

    pairs = TensorDataset(torch.arange(40.0).view(20, 2), torch.arange(20) % 5)
    meta = l2l.data.MetaDataset(pairs)
    steps = [NWays(meta, 3), KShots(meta, 2), LoadData(meta)]
    x, y = l2l.data.TaskDataset(meta, task_transforms=steps, num_tasks=4).sample()
    assert x.shape == (6, 2) and len(set(y.tolist())) == 3, (x, y)


def test_qpth_is_imported_before_pyarrow_and_solves_a_quadratic_program() -> None:
    pytest.importorskip("qpth", reason="qpth is not installed", exc_type=ImportError)
    result = run_python(
        "import qpth.qp, pyarrow, numpy\n"
        "import torch\n"
        "from qpth.qp import QPFunction\n"
        "assert int(numpy.__version__.split('.')[0]) >= 2\n"
        "one, empty = torch.eye(2, dtype=torch.float64), torch.empty(0, dtype=torch.float64)\n"
        "ones = one.sum(0)\n"
        "x = QPFunction(verbose=-1)(2 * one, -2 * ones, one, 0.5 * ones, empty, empty)\n"
        "assert torch.allclose(x, torch.full((1, 2), 0.5, dtype=x.dtype), atol=1e-6), x\n"
    )
    assert result.returncode == 0, result.stderr


def test_import_is_light() -> None:
    """`import metatoolkit` costs little more than `import torch`."""
    result = run_python(
        "import sys, time\n"
        "import torch\n"
        "start = time.perf_counter()\n"
        "import metatoolkit\n"
        "elapsed = time.perf_counter() - start\n"
        "heavy = {'learn2learn', 'gym', 'sacred', 'transformers', 'datasets', 'pymongo',\n"
        "         'pandas', 'matplotlib', 'sklearn', 'cvxpy', 'qpth'}\n"
        "print('heavy', *sorted(heavy & set(sys.modules)))\n"
        "print('elapsed', elapsed)\n"
    )
    assert result.returncode == 0, result.stderr
    lines = dict((line + " ").split(" ", 1) for line in result.stdout.splitlines())
    assert lines["heavy"].strip() == ""
    # Generous: a guard against importing a framework, and no measurement.
    assert float(lines["elapsed"]) < 10


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("metatoolkit")
    if not script.exists():
        pytest.skip("the package is not installed beside this Python")
    result = subprocess.run(
        [script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "metatoolkit" in result.stdout


def test_metadata_agrees_with_the_package() -> None:
    import metatoolkit

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    if not hasattr(metatoolkit, "__version__"):
        pytest.skip("metatoolkit keeps no version of its own")
    assert metatoolkit.__version__ == config["metadata"]["version"]
