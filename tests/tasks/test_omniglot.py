"""Omniglot, from its archives."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metatoolkit.errors import (
    ConfigurationError,
    DataError,
    UnknownNameError,
)
from metatoolkit.tasks import (
    default_domains,
    omniglot_domain,
)
from metatoolkit.tasks.domains import SPLITS
from tests.tasks.images import images_of

SIZE = 16


def write_omniglot(
    folder: Path, alphabets: dict[str, int], part: str = "small1", drawings: int = 3
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"images_background_{part}.zip"
    image = folder / "drawing.png"
    with zipfile.ZipFile(archive, "w") as opened:
        for number, (alphabet, characters) in enumerate(sorted(alphabets.items())):
            for character in range(characters):
                for drawing in range(drawings):
                    pixels = np.full((21, 21), 255, dtype=np.uint8)
                    pixels[drawing, : 1 + character] = 0
                    pixels[20 - number] = 0
                    Image.fromarray(pixels).convert("1").save(image)
                    name = f"character{character + 1:02}/{number:04}_{drawing:02}.png"
                    opened.write(image, f"images_background_{part}/{alphabet}/{name}")
        opened.writestr(f"__MACOSX/images_background_{part}/Greek/character01/._a.png", b"no image")
        opened.writestr(f"images_background_{part}/Greek/.DS_Store", b"no image")
    image.unlink()
    return archive


def test_omniglot_is_read_from_its_archives(tmp_path: Path) -> None:
    folder = tmp_path / "omniglot"
    write_omniglot(folder, {"Greek": 4, "Latin": 8})
    write_omniglot(folder, {"Greek": 4, "Tagalog": 4}, "small2")
    domain = omniglot_domain(size=21, root=tmp_path)
    assert domain.name == "omniglot"
    names = [name for split in SPLITS for name in domain.split(split).class_names]
    # A character that both archives hold counts once, and files of a desktop do not.
    assert len(names) == 16
    assert sum(len(domain.split(split).labels) for split in SPLITS) == 48
    assert domain.train.class_names[0] == "Greek/character01"
    first = images_of(domain, "train").images[0, 0]
    assert int(first[0, 0]) == 255
    assert int(first[0, 1]) == 0
    assert bool((first[20] == 255).all())
    greek = omniglot_domain("Greek", 21, tmp_path)
    assert greek.name == "omniglot:Greek"
    assert [len(greek.split(split).class_names) for split in SPLITS] == [2, 1, 1]
    assert images_of(greek, "train").images.shape == (6, 1, 21, 21)


def test_omniglot_takes_the_place_of_glyphs_where_it_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_omniglot(tmp_path / "omniglot", {"Greek": 8, "Latin": 8})
    assert tuple(default_domains(size=8, root=tmp_path))[1] == "omniglot"
    monkeypatch.setenv("METATOOLKIT_DATA", str(tmp_path))
    assert tuple(default_domains(size=8))[1] == "omniglot"
    assert tuple(default_domains(["omniglot:Latin"], size=8)) == ("omniglot:Latin",)
    assert tuple(default_domains(size=8, root=tmp_path / "none"))[1] == "glyphs"


def test_splits_may_share_no_alphabet(tmp_path: Path) -> None:
    alphabets = {"Greek": 2, "Latin": 3, "Tagalog": 1, "Tifinagh": 2}
    write_omniglot(tmp_path / "omniglot", alphabets)
    domain = default_domains(["omniglot_alphabets"], size=8, root=tmp_path)["omniglot_alphabets"]
    found = {
        split: [name.partition("/")[0] for name in domain.split(split).class_names]
        for split in SPLITS
    }
    assert found == {
        "train": ["Greek"] * 2 + ["Tagalog"],
        "valid": ["Latin"] * 3,
        "test": ["Tifinagh"] * 2,
    }
    with pytest.raises(ConfigurationError, match="alphabet is 'Greek'; leave one"):
        omniglot_domain("Greek", 8, tmp_path, whole_alphabets=True)


def test_omniglot_that_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"omniglot\. Put images_background_small1\.zip .*METATOOLKIT_DATA"
    ):
        default_domains(["omniglot"], root=tmp_path)
    archive = write_omniglot(tmp_path / "omniglot", {"Greek": 4})
    with pytest.raises(UnknownNameError, match=r"alphabet 'Greak'.*Did you mean 'Greek'"):
        omniglot_domain("Greak", 28, tmp_path)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("images_background_small1/Latin/character01/0001_01.png", b"no image")
    with pytest.raises(DataError, match=r"character01/0001_01\.png in .*cannot be read"):
        omniglot_domain(size=19, root=tmp_path)
    archive.write_bytes(archive.read_bytes()[:300])
    with pytest.raises(DataError, match=r"small1\.zip cannot be read .*get it again"):
        omniglot_domain(size=18, root=tmp_path)
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("readme.txt", "nothing")
    with pytest.raises(DataError, match=r"no image named alphabet/character/file\.png"):
        omniglot_domain(size=17, root=tmp_path)


@pytest.mark.skipif(
    not list(Path(os.environ.get("METATOOLKIT_DATA", "/nowhere")).glob("omniglot/images_*.zip")),
    reason="Omniglot's archives are not under METATOOLKIT_DATA",
)
def test_the_published_archives() -> None:
    domain = omniglot_domain(size=SIZE)
    assert len(domain.train.class_names) >= 100
    for split in SPLITS:
        assert set(domain.split(split).labels.bincount().tolist()) == {20}
        # Strokes are white on black.
        assert images_of(domain, split).images.float().mean() < 60
