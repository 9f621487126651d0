import os
import subprocess
import sys

import pytest

from metatoolkit import records

PROGRAM = """
from metatoolkit import records
experiment = records.experiment("printing")
experiment.add_config(seed=1)

@experiment.main
def main():
    for number in range(20_000):
        print("line", number, flush=number % 1000 == 0)
    return 7

experiment.run_commandline()
"""


@pytest.mark.parametrize(
    "redirection", ["| head -1 >/dev/null", pytest.param(">&- 2>&-", marks=pytest.mark.slow)]
)
def test_a_run_goes_on_when_nobody_reads_what_it_prints(home, monkeypatch, tmp_path, redirection):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    (tmp_path / "printing.py").write_text(PROGRAM)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} printing.py {redirection}"],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert done.returncode == 0
    with records.connect() as connection:
        (run,) = connection.find()
        assert run.status == "COMPLETED" and run.result == 7
        assert "line 0\n" in run.output and "line 19999\n" in run.output
