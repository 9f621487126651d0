from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metatoolkit.errors import DataError
from metatoolkit.networks.pretrained import check_connection, load_pretrained

requests = pytest.importorskip("requests", reason="requests is not installed")
constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is missing")


class Loader:
    """Has what is in ``cached``, and what is in ``online`` where the hub may be asked."""

    def __init__(self, cached: tuple[str, ...] = (), online: tuple[str, ...] = ()) -> None:
        self.cached = cached
        self.online = online

    def from_pretrained(self, name: str, local_files_only: bool = False) -> str:
        if name in self.cached or (not local_files_only and name in self.online):
            return f"{name}, local {local_files_only}"
        raise OSError(f"no {name}.")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the addresses that are asked for; nothing is reached."""
    addresses: list[str] = []

    def refuse(url: str, timeout: float) -> None:
        assert timeout <= 5
        addresses.append(url)
        raise requests.ConnectionError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(requests, "head", refuse)
    return addresses


def test_what_is_at_hand_needs_no_network(asked: list[str]) -> None:
    assert load_pretrained(Loader(cached=("a",)), "a", "encoder") == "a, local True"
    assert asked == []


def test_without_a_network_one_attempt_is_made(asked: list[str]) -> None:
    with pytest.raises(DataError, match=r"load the encoder 'a' \(ConnectionError\).*a folder"):
        load_pretrained(Loader(online=("a",)), "a", "encoder")
    assert asked == [constants.ENDPOINT]


def test_with_a_network_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    assert load_pretrained(Loader(online=("a",)), "a", "encoder") == "a, local False"
    with pytest.raises(DataError, match="the encoder 'b' cannot be loaded: no b"):
        load_pretrained(Loader(online=("a",)), "b", "encoder")


def test_a_folder_is_not_looked_for_on_the_hub(asked: list[str], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="cannot be loaded"):
            load_pretrained(Loader(), str(folder), "tokenizer")
    assert asked == []


def test_offline_mode_asks_nobody(asked: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_connection("a", "")
    with pytest.raises(DataError, match="the tokenizer 'a' cannot be loaded"):
        load_pretrained(Loader(online=("a",)), "a", "tokenizer")
    assert asked == []


def test_what_another_package_says_in_many_lines_takes_one(tmp_path: Path) -> None:
    class Wordy:
        def from_pretrained(self, name: str, local_files_only: bool = False) -> str:
            raise OSError("it lacks\n(1) a file\n" + "or another " * 100)

    with pytest.raises(
        DataError, match=r"cannot be loaded: it lacks \(1\) a file .* … Give"
    ) as error:
        load_pretrained(Wordy(), str(tmp_path), "tokenizer")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("make a small one on the spot.")
