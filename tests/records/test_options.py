import subprocess

import pytest

from metatoolkit import records
from metatoolkit.cli import main
from metatoolkit.errors import ConfigurationError
from metatoolkit.records.recorder import CAPTURED_BY_US
from metatoolkit.records.sacred_compat import check_options, misuse

from .experiments import make


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"--id": "mine"}, "--id is not supported: the database numbers the runs"),
        ({"--queue": True}, "--queue is not supported"),
        ({"--priority": "3"}, "--priority is not supported"),
        ({"--capture": "none"}, "--capture is one of no, sys, fd, not 'none'"),
        ({"--beat-interval": "60"}, "--beat-interval is a number of seconds from 0 to 5"),
        ({"--beat-interval": "soon"}, "--beat-interval is a number"),
        ({"--loglevel": "LOUD"}, "--loglevel is a number or one of"),
    ],
)
def test_options_that_would_have_no_effect_are_refused_by_name(options, told):
    with pytest.raises(ConfigurationError, match=told):
        make(lambda: None).run(options=options)


def test_options_that_hold_are_passed_on(tmp_path):
    options = {"--capture": "sys", "--beat-interval": "0.5", "--loglevel": "debug"}
    check_options(None, options)
    assert options == {"--capture": "sys", "--beat-interval": "0.5", "--loglevel": "DEBUG"}
    check_options(None, options := {})
    assert options["--capture"] is CAPTURED_BY_US


@pytest.mark.parametrize(("capture", "kept"), [("no", ""), ("sys", "word\n"), (None, "word\n")])
def test_output_is_captured_as_the_option_says(home, monkeypatch, capture, kept):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    options = {"--loglevel": "CRITICAL"} | ({"--capture": capture} if capture else {})
    make(lambda: print("word")).run(options=options)
    with records.connect() as connection:
        assert connection["latest"].output.endswith(kept)
        assert ("word" in connection["latest"].output) == bool(kept)
        assert connection["latest"].document["meta"]["options"]["--capture"] == (capture or "no")


@pytest.mark.parametrize("fails", [False, True])
def test_the_filter_of_an_experiment_holds_from_the_first_byte(home, monkeypatch, fails):
    monkeypatch.setenv("METATOOLKIT_MONGOD", "")
    spooled = []
    # Put together here, since the source is recorded, too.
    secret = "-".join("1234")

    def body():
        print(f"the password is {secret}")
        spooled.extend(path.read_bytes() for path in home.rglob("*") if path.is_file())
        if fails:
            raise ValueError("the reason")

    experiment = make(body)
    experiment.captured_out_filter = lambda text: text.replace(secret, "****")
    if fails:
        with pytest.raises(ValueError, match="the reason"):
            experiment.run(options={"--loglevel": "CRITICAL"})
    else:
        experiment.run(options={"--loglevel": "CRITICAL"})
    with records.connect() as connection:
        assert connection["latest"].output.endswith("the password is ****\n")
    assert spooled and not any(secret.encode() in data for data in spooled)


def test_a_clean_repository_is_enforced(tmp_path):
    class Experiment:
        base_dir = str(tmp_path)

    with pytest.raises(ConfigurationError, match="in no git repository"):
        check_options(Experiment(), {"--enforce_clean": True})

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    check_options(Experiment(), options := {"--enforce_clean": True})
    assert options["--enforce_clean"] is False
    (tmp_path / "file").write_text("2")
    with pytest.raises(ConfigurationError, match="not committed"):
        check_options(Experiment(), {"--enforce_clean": True})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "3"], "there is no option --seed. Write: P with seed=3"),
        (["--batch-size=64"], "there is no option --batch-size. Write: P with batch_size=64"),
        (["--seed", "--debug"], "Write: P with seed=VALUE"),
        (["seed=3"], "seed=3 stands before the word `with`. Write: P with seed=3"),
        (["with", "lr=1", "--seed", "3"], "there is no option --seed. Write: P with seed=3"),
        (["--comnent", "x"], "Did you mean --comment?"),
        (["--sed", "3"], "there is no option --sed. Did you mean seed?"),
        (["main", "other"], "not understood: main other"),
    ],
)
def test_a_wrong_command_line_is_told_with_the_right_one(words, told):
    assert told in misuse("P", words, ["seed", "batch_size"], ["--comment", "--debug"])


def test_an_application_says_how_its_settings_are_given(capsys):
    for words in (["--seed", "3"], ["seed=3"], ["--seed=3", "with", "smoke"]):
        with pytest.raises(SystemExit) as caught:
            main(["run", "label_noise", *words])
        shown = capsys.readouterr()
        assert caught.value.code == 2 and "dummy" not in shown.out + shown.err
        assert shown.err.startswith("error: ") and len(shown.err.splitlines()) == 1
        assert "Write: metatoolkit run label_noise with seed=3" in shown.err
