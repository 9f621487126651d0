"""CIFAR and MNIST, as torchvision has them."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metatoolkit.errors import (
    DataError,
)
from metatoolkit.tasks import Batches, load_dataset


class _OldType:
    """A numpy type, pickled as numpy 1 did for the published files."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("u1", 0, 1)


class _OldArray:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        return np.frombuffer, (self.content, _OldType())


class _Pixels:
    def __init__(self, count: int, first: int) -> None:
        values = (np.arange(count * 3072) + first) % 256
        self.array = values.astype(np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.reshape, (_OldArray(self.array.tobytes()), (-1, 3072))


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    base = root / ("cifar-10-batches-py" if name == "cifar10" else "cifar-100-python")
    base.mkdir(parents=True)
    if name == "cifar10":
        parts = {f"data_batch_{i}": 4 for i in range(1, 6)} | {"test_batch": 3}
        meta, key, classes, label = "batches.meta", "label_names", 10, "labels"
    else:
        parts = {"train": 20, "test": 3}
        meta, key, classes, label = "meta", "fine_label_names", 100, "fine_labels"
    for first, (part, count) in enumerate(parts.items()):
        entry = {"data": _Pixels(count, first), label: [i % classes for i in range(count)]}
        (base / part).write_bytes(pickle.dumps(entry))
    names = {key: [f"class {i}" for i in range(classes)]}
    (base / meta).write_bytes(pickle.dumps(names))
    source = getattr(torchvision.datasets, name.upper())
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in base.iterdir()}
    listed = [[part, sums[part]] for part in parts]
    monkeypatch.setattr(source, "train_list", listed[:-1])
    monkeypatch.setattr(source, "test_list", listed[-1:])
    monkeypatch.setattr(source, "meta", {"filename": meta, "key": key, "md5": sums[meta]})


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
@pytest.mark.parametrize("variable", [True, False])
def test_cifar_is_read_as_uint8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int, variable: bool
) -> None:
    write_cifar(tmp_path, name, monkeypatch)
    if variable:
        monkeypatch.setenv("METATOOLKIT_DATA", str(tmp_path))
    data = load_dataset(name, root=None if variable else tmp_path)
    assert data.classes == classes
    assert data.train_images.dtype == torch.uint8
    assert data.train_images.shape == (20, 3, 32, 32)
    assert data.test_images.shape == (3, 3, 32, 32)
    assert data.train_images[0, 0, 0].tolist() == list(range(32))
    assert data.mean == pytest.approx((0.491373, 0.482353, 0.446667), abs=1e-6)
    assert data.std == pytest.approx((0.247059, 0.243529, 0.261569), abs=1e-6)
    batch, _ = next(Batches(*data.train, batch_size=4, transform=data.transform(4, flip=True)))
    assert batch.dtype == torch.float32
    assert -2 < batch.min() < batch.max() < 2.2


def write_mnist(root: Path) -> None:
    """Write 12 training and 3 test images in MNIST's format: each holds its number."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 3)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
        header = np.array([0x803, count, 28, 28], dtype=">i4")
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header.tobytes() + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        header = np.array([0x801, count], dtype=">i4")
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header.tobytes() + labels.tobytes())


def test_mnist_is_read_as_uint8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("METATOOLKIT_DATA", str(tmp_path))
    data = load_dataset("mnist", download=False)
    assert data.train_images.dtype == torch.uint8
    assert data.train_images.shape == (12, 1, 28, 28)
    assert data.train_images[:, 0, 27, 27].tolist() == list(range(12))
    assert data.train_labels.tolist() == [*range(10), 0, 1]
    assert data.test_labels.tolist() == [0, 1, 2]
    assert data.classes == 10
    assert (data.mean, data.std) == ((0.1307,), (0.3081,))


@pytest.mark.parametrize("length", [0, 8, 100])
def test_damaged_mnist_is_an_error(tmp_path: Path, length: int) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DataError, match=r"mnist cannot be read.*train-images-idx3-ubyte\.gz"):
        load_dataset("mnist", tmp_path, download=False)


def test_missing_mnist_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ubyte\.gz.*MNIST/raw exists.*METATOOLKIT_DATA"):
        load_dataset("mnist", tmp_path, download=False)


def test_cifar_that_cannot_be_downloaded_says_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    def fail(self: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError, match=r"no route.*cifar-10-python\.tar\.gz.*METATOOLKIT_DATA"):
        load_dataset("cifar10", tmp_path / "new")
    with pytest.raises(DataError, match="cifar-100-python"):
        load_dataset("cifar100", tmp_path / "new", download=False)
