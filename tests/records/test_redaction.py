"""What is hidden, and what only sounds like it."""

import subprocess

import pytest

from metatoolkit import records
from metatoolkit.records import capture
from metatoolkit.records.clean import clean, clean_update
from metatoolkit.records.terminal import is_secret, redact

from .experiments import count_up, make, run

SECRET = [
    "password", "Password", "db_password", "dbPassword", "db.password", "PGPASSWORD", "passwords",
    "passphrase", "MYSQL_PWD", "secret", "client_secret", "credentials", "api_key", "apiKey",
    "api-key", "X-Api-Key", "APIKEY", "WANDB_API_KEY", "aws_secret_access_key", "private_key",
    "token", "hf_token", "hfToken", "HF_TOKEN", "HFToken", "access_token", "GITHUB_TOKEN",
    "authToken", "Authorization", "slack_token", "--password",
]  # fmt: skip
PLAIN = [
    "pad_token", "padToken", "eos_token", "bos_token", "unk_token", "cls_token", "mask_token",
    "additional_special_token", "decoder_start_token", "tokenizer", "tokens", "max_tokens",
    "eos_token_id", "token_type", "num_tokens", "key_size", "key", "public_key", "sort_key",
    "password_length", "PWD", "OLDPWD", "passes", "author", "secretary",
]  # fmt: skip


def test_names_tell_what_is_secret():
    assert [name for name in SECRET if not is_secret(name, "hunter2")] == []
    assert [name for name in PLAIN if is_secret(name, "hunter2")] == []
    # Pieces of text look like none.
    for value in ("<|user|>", "[SEP]", "</s>", "###", "word"):
        assert not is_secret("user_token", value)
    assert not is_secret("token", "<pad>") and not is_secret("token", 5)
    assert is_secret("password", 1234) and is_secret("token", ["abc", "def"])
    for value in (None, "", True):
        assert not is_secret("password", value)


@pytest.mark.parametrize(
    "value",
    [
        {"password": ["hunter2"]},
        {"credentials": {"user": "me", "code": "hunter2"}},
        {"servers": [{"password": "hunter2"}, [{"api_key": "hunter2"}]]},
        {"password": b"hunter2"},
        {"api_tokens": ["hunter2"]},
        {"hf_tokens": {"one": "hunter2"}},
        ["curl", "-H", "Authorization: Bearer hunter2"],
        "DefaultEndpointsProtocol=https;AccountKey=hunter2==;EndpointSuffix=e",
        ["--password=hunter2", "-x"],
        ["--password", "hunter2"],
        ("--api-key", "hunter2"),
        "host=h password=hunter2 dbname=d",
        "curl --token='hunter2' x",
        "https://example.org/x.git?private_token=hunter2",
        "https://example.org/x?a=b&X-Amz-Signature=hunter2&c=d",
        "https://me:hunter2@example.org/x",
        "https://me:hun/ter2@example.org/x hunter/ter2".replace("hunter/ter2", ""),
        "postgres+psycopg://me:12/hunter2@example.org:5432/x",
        "mongodb://me:h?hunter2@example.org/x",
        "ssh://git:hunter2'\"@example.org/x",
        "a https://me:hunter2@h,https://you:hunter2@i b",
    ],
)
def test_credentials_are_hidden_wherever_they_are(value):
    cleaned = repr(clean(value))
    assert "hunter2" not in cleaned and "ter2" not in cleaned


def test_what_is_no_credential_stays():
    for text in (
        "https://example.org:8080/pip@v1.2",
        "git+https://example.org/x/y@branch",
        "http://[::1]:80/a@b",
        "git@example.org:x/y.git",
        "write to me@host, or see https://example.org",
        '{"url":"https://example.org:8080","mail":"me@host"}',
        "https://example.org/x?page=2&max_tokens=5",
        "pad_token=<pad> lr=0.1 a==b",
        "x=1",
    ):
        assert redact(text) == text
    assert clean({"token": {"pad": "<pad>"}}) == {"token": {"pad": "<pad>"}}
    assert clean(["--verbose", "hunter2"]) == ["--verbose", "hunter2"]


def test_words_of_the_command_line():
    assert clean_update("password=hunter2") == "password=***"
    assert clean_update("api.hf_token='hunter2'") == "api.hf_token=***"
    assert clean_update("db={'host': 'h', 'password': 'hunter2'}") == (
        "db={'host': 'h', 'password': '***'}"
    )
    assert clean_update("dbs=[{'password': 'hunter2'}, (1, 2)]") == (
        "dbs=[{'password': '***'}, [1, 2]]"
    )
    assert clean_update("uri=https://me:hun/ter2@h/x") == "uri=https://h/x"
    for word in ("pad_token=<pad>", "lr=0.1", "opt={'lr': (0.1, 2)}", "smoke", "a=[1,2", 7):
        assert clean_update(word) == word


def test_runs_that_differ_in_a_piece_of_text_differ(database):
    for pad in ("<pad>", "[PAD]"):
        run(count_up, tokenizer={"pad_token": pad, "name": "t"})
    with records.connect() as connection:
        differing = records.compare([1, 2], database=connection).differing()
    assert differing["config.tokenizer.pad_token"] == ["<pad>", "[PAD]"]


def test_nothing_of_a_command_line_environment_or_remote_is_stored(database, tmp_path, monkeypatch):
    from metatoolkit.records.sacred_compat import import_sacred

    host = import_sacred().SETTINGS.HOST_INFO
    monkeypatch.setattr(host, "CAPTURED_ENV", ["MY_API_KEY", "DATABASE_URL"])
    monkeypatch.setenv("MY_API_KEY", "hunter2")
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hun/ter2@host/x")
    experiment = make(count_up, db={"host": "", "password": ""}, uri="")
    words = ["x", "with", "db={'host': 'h', 'password': 'hunter2'}"]
    experiment.run_commandline([*words, "uri=https://h/x?access_token=hunter2"])
    document = database["runs"].find_one()
    assert "ter2" not in repr(document)
    assert document["host"]["ENV"] == {"MY_API_KEY": "***", "DATABASE_URL": "postgres://host/x"}
    assert document["config"]["db"] == {"host": "h", "password": "***"}
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "f").write_text("")
    git = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "add", "f"], check=True)
    subprocess.run([*git, "commit", "-qm", "m"], check=True)
    url = "https://me:hun/ter2@example.org/x.git?private_token=hunter2"
    subprocess.run([*git, "remote", "add", "origin", url], check=True)
    state = capture.git_state(tmp_path)
    assert state["url"] == "https://example.org/x.git?private_token=***"
