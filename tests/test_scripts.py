"""What the scripts do. Nothing is installed here: each Python on the PATH is a small fake."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="the scripts need bash")


def scratch_repository(tmp_path: Path) -> Path:
    repository = tmp_path / "repository with space"
    (repository / "scripts").mkdir(parents=True)
    for name in ("setup", "quickstart", "test"):
        shutil.copy(ROOT / "scripts" / name, repository / "scripts" / name)
    for file in (
        "setup.cfg",
        "pyproject.toml",
        "requirements-learn2learn.txt",
        "requirements-dehb.txt",
    ):
        shutil.copy(ROOT / file, repository / file)
    return repository


def tools(tmp_path: Path) -> Path:
    """A folder with the programs that the scripts use, and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in (
        "awk bash cat chmod cp cut date df dirname env flock grep mkdir mv rm sed sha256sum shasum"
        " sleep tail touch"
    ).split():
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + body)
    path.chmod(0o755)


def fake_python(path: Path, version: str, *, has_venv: bool = True, pip: str = "exit 0") -> None:
    """A program that answers what scripts/setup asks of a Python."""
    write_program(
        path,
        f"""
case "$*" in
    --version) echo "Python {version}" ;;
    *"import venv, ensurepip"*) exit {0 if has_venv else 1} ;;
    *"version_info[:3]"*) echo "{version}" ;;
    *"version_info[:2]"*) echo "{version.rpartition(".")[0]}" ;;
    *"-m venv"*) for target; do :; done; mkdir -p "$target/bin"; cp "$0" "$target/bin/python" ;;
    *"-m pip --version"*) exit 0 ;;
    *"-m pip"*) echo "$*" >>"$CALLS"; {pip} ;;
    *"-m metatoolkit"*) printf '<%s>' "$@" ;;
    *"-m pytest"*) printf '<%s>' "$@"; exit 3 ;;
esac
""",
    )


def run_script(
    repository: Path, folder: Path, *arguments: str, script: str = "setup", **environment: str
) -> subprocess.CompletedProcess[str]:
    home = repository.parent / "home"
    home.mkdir(exist_ok=True)
    env = {"PATH": str(folder), "HOME": str(home), "METATOOLKIT_DISK_GB": "0"}
    env["CALLS"] = str(repository.parent / "calls")
    assert BASH is not None
    return subprocess.run(
        [BASH, repository / "scripts" / script, *arguments],
        cwd="/",
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_bash
def test_setup_says_which_python_is_too_old(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.9.2")
    result = run_script(repository, folder)
    assert result.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed" in result.stderr
    assert f"{folder / 'python3'} is Python 3.9.2" in result.stderr
    assert not (repository / ".venv").exists()


@needs_bash
def test_setup_says_that_there_is_no_python(tmp_path: Path) -> None:
    result = run_script(scratch_repository(tmp_path), tools(tmp_path))
    assert result.returncode == 1
    assert "No Python was found" in result.stderr


@needs_bash
def test_setup_names_the_missing_venv_module(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.12.4", has_venv=False)
    result = run_script(repository, folder)
    assert result.returncode == 1
    assert "apt-get install python3.12-venv" in result.stderr


@needs_bash
def test_setup_skips_an_old_python_for_a_good_one(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.13.1")
    write_program(folder / "python3.11", "exit 127\n")
    fake_python(folder / "python3.12", "3.14.0")
    result = run_script(repository, folder)
    assert result.returncode == 0, result.stderr
    assert "Python 3.13.1" in result.stdout


@needs_bash
def test_setup_asks_for_disk_space_first(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.11.7")
    result = run_script(repository, folder, METATOOLKIT_DISK_GB="9999999")
    assert result.returncode == 1
    assert "too little space" in result.stderr
    assert "9999999 GB" in result.stderr
    assert not (tmp_path / "calls").exists()


@needs_bash
@pytest.mark.parametrize(
    ("output", "diagnosis"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        (
            "Failed to establish a new connection: [Errno 111] Connection refused",
            "could not be reached",
        ),
        ("error: command 'gcc' failed: No such file or directory", "C compiler"),
        ("something else", "The whole output is in"),
    ],
)
def test_setup_diagnoses_a_failed_installation(tmp_path: Path, output: str, diagnosis: str) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.11.7", pip=f'echo "{output}" >&2; exit 1')
    result = run_script(repository, folder)
    assert result.returncode == 1
    assert output in result.stderr
    assert diagnosis in result.stderr
    assert not (repository / ".venv" / ".metatoolkit-stamp").exists()


@needs_bash
def test_setup_diagnoses_what_is_compiled_beside_the_installation(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fails = "echo \"error: command 'gcc' failed: No such file\"; exit 1"
    pip = f'[[ "$*" != *" wheel "* ]] || {{ {fails}; }}'
    fake_python(folder / "python3", "3.11.7", pip=pip)
    result = run_script(repository, folder)
    assert result.returncode == 1
    assert "building learn2learn and DEHB failed" in result.stderr
    assert "C compiler" in result.stderr
    assert not (repository / ".venv" / ".metatoolkit-stamp").exists()


@needs_bash
def test_setup_is_done_once_and_again_when_requirements_change(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.11.7")
    calls = tmp_path / "calls"

    assert run_script(repository, folder).returncode == 0
    first = calls.read_text()
    assert ".[all,test]" in first
    assert re.search("wheel .*--no-deps .*-r requirements-learn2learn.txt", first)

    again = run_script(repository, folder)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert calls.read_text() == first

    with (repository / "setup.cfg").open("a") as file:
        file.write("\n[tool:other]\nx = 1\n")
    run_script(repository, folder)
    assert calls.read_text() == first, "a tool setting is no reason to install"

    with (repository / "requirements-learn2learn.txt").open("a") as file:
        file.write("something\n")
    run_script(repository, folder)
    assert sorted(calls.read_text().splitlines()) == sorted(2 * first.splitlines())


@needs_bash
def test_setup_goes_on_after_a_failure(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.11.7", pip='[[ -e "$CALLS.go" ]]')
    assert run_script(repository, folder).returncode == 1
    (tmp_path / "calls.go").touch()
    result = run_script(repository, folder)
    assert result.returncode == 0, result.stderr
    assert (repository / ".venv" / ".metatoolkit-stamp").exists()


@needs_bash
@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_setups_at_once_install_once(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.11.7", pip="sleep 1")
    env = {"PATH": str(folder), "HOME": str(tmp_path), "METATOOLKIT_DISK_GB": "0"}
    env["CALLS"] = str(tmp_path / "calls")
    assert BASH is not None
    running = [
        subprocess.Popen([BASH, repository / "scripts" / "setup"], env=env) for _ in range(2)
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert (tmp_path / "calls").read_text().count("install") == 2


@needs_bash
def test_setup_puts_the_environment_where_it_is_told(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "other-python", "3.12.1")
    result = run_script(
        repository,
        folder,
        METATOOLKIT_VENV=str(tmp_path / "deep" / "elsewhere"),
        METATOOLKIT_PYTHON=str(folder / "other-python"),
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "deep" / "elsewhere" / "bin" / "python").exists()
    assert not (repository / ".venv").exists()


@needs_bash
def test_quickstart_passes_its_arguments_on(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.11.7")
    run_script(repository, folder)
    result = run_script(repository, folder, "--steps", "two words", script="quickstart")
    assert result.stdout.startswith("<-m><metatoolkit.experiments.reproduce><label_noise>")
    assert result.stdout.endswith("<--steps><two words>")


def test_the_quickstart_leaves_out_rows_that_there_are() -> None:
    from applications.label_noise.study import COMPARISON

    left_out = re.findall(r'--without "([^"]+)"', Path("scripts/quickstart").read_text())
    assert len(COMPARISON.without(left_out).rows) == len(COMPARISON.rows) - len(left_out) > 0


@needs_bash
def test_test_script_hands_arguments_to_pytest_alone(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.11.7")
    run_script(repository, folder)
    result = run_script(repository, folder, "tests/a.py", "-k", "x or y", script="test")
    assert result.returncode == 3
    assert result.stdout == "<-m><pytest><tests/a.py><-k><x or y>"


@needs_bash
def test_test_script_ends_with_the_summary_and_fails_with_pytest(tmp_path: Path) -> None:
    repository, folder = scratch_repository(tmp_path), tools(tmp_path)
    fake_python(folder / "python3", "3.11.7")
    run_script(repository, folder)
    result = run_script(repository, folder, script="test")
    assert result.returncode == 3
    assert result.stdout.splitlines()[-1].startswith("<-m><pytest>")


def entries_of_hooks() -> list[str]:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    return re.findall(r"^ +entry: (.*)$", text, re.MULTILINE)


def test_hooks_before_a_commit_run_all_of_the_script_but_the_tests() -> None:
    text = (ROOT / "scripts" / "test").read_text()
    (typed,) = re.findall(r"^for package in (.*); do$", text, re.MULTILINE)
    steps = re.findall(r"^step (.*)$", text, re.MULTILINE)
    inside = [re.findall(r"/bin/([\w-]+)\" (.*)'", entry)[0] for entry in entries_of_hooks()]
    hooks = [f"{program} {arguments}" for program, arguments in inside]
    assert len(steps) > 3
    assert [hook.replace('"$@"', ".") for hook in hooks] == [
        step.replace('"${typed[@]}"', typed) for step in steps
    ]


@needs_bash
@pytest.mark.parametrize("entry", entries_of_hooks())
def test_a_hook_runs_in_the_environment_that_was_set_up(entry: str, tmp_path: Path) -> None:
    command = shlex.split(entry)
    given = ["a b.py"] if command[-1] == "--" else []
    for place, variables in ((".venv", {}), ("else where", {"METATOOLKIT_VENV": "else where"})):
        for name in ("ruff", "mypy", "lint-imports"):
            write_program(tmp_path / place / "bin" / name, f"printf '<%s>' '{place}' \"$@\"\n")
        done = subprocess.run(
            [*command, *given],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.startswith(f"<{place}><")
        assert done.stdout.endswith("<a b.py>") is bool(given)
