import os
import subprocess
import sys

import pytest

from metatoolkit.errors import QueryError
from metatoolkit.records.terminal import answer, harmless


def test_what_a_terminal_would_obey_is_taken_out():
    evil = "a\x1b[31mb\x07c\rd\u202ee\x9bf\n\tg λ"
    assert harmless(evil) == "a [31mb c d e f\n\tg λ"
    assert harmless(evil, keep="") == "a [31mb c d e f  g λ"


def test_errors_and_interruptions_have_codes(capsys):
    def fail():
        raise QueryError("no \x1b[2Jrun")

    def interrupt():
        raise KeyboardInterrupt

    assert answer(lambda: 3) == 3
    assert answer(fail) == 2
    assert capsys.readouterr().err == "error: no  [2Jrun\n"
    assert answer(interrupt, "stopped") == 130
    assert capsys.readouterr().err == "stopped\n"
    with pytest.raises(SystemExit):
        answer(lambda: sys.exit(4))
    with pytest.raises(FileNotFoundError):
        answer(lambda: len(open("/nowhere").read()))


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("| head -1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
@pytest.mark.parametrize(
    "program",
    [
        "from metatoolkit.cli import main; sys.exit(main(['runs', 'list', '--help']))",
        "from metatoolkit.records.terminal import answer; "
        "sys.exit(answer(lambda: print('line\\n' * 100_000) or 0))",
    ],
)
def test_output_that_nobody_takes_is_no_traceback(program, redirection, code, told):
    command = f'{sys.executable} -c "import sys; {program}" {redirection}'
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (code, told)


def test_a_full_disk_behind_the_output_is_told():
    program = (
        "from metatoolkit.records.terminal import answer; sys.exit(answer(lambda: print(1) or 0))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {program}"], stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=240, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_letters_that_a_stream_has_not_are_written_as_escapes():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    program = "from metatoolkit.records.terminal import answer; answer(lambda: print('λ ± 1') or 0)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True,
        check=True, timeout=240,
    )  # fmt: skip
    assert done.stdout == "\\u03bb \\xb1 1\n" and done.stderr == ""
