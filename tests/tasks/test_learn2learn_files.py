"""Data sets of learn2learn, read by its own classes from small files in the format of each."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from metatoolkit.tasks import FewShotTasks, learn2learn_datasets, learn2learn_domain
from metatoolkit.tasks.domains import SPLITS
from metatoolkit.tasks.learn2learn_import import import_learn2learn

MODES = {"train": "train", "valid": "validation", "test": "test"}
SHORT = {"train": "train", "validation": "val", "test": "test"}
CLASSES, PER_CLASS = 6, 3


def gray(label):
    """The value of all pixels of the images of a class, which tells it from others."""
    return label % 120 * 2 + 1


def pixels(label, size=8):
    return np.full((size, size, 3), gray(label), dtype=np.uint8)


def write_image(path, label, suffix="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(label)).save(path, suffix)


def splits_of(module):
    datasets = import_learn2learn("this test").vision.datasets
    return getattr(datasets, module).SPLITS


def cifarfs(root):
    folder = root / "cifarfs" / "cifar100"
    for mode in SHORT.values():
        names = [f"{mode}_class{label}" for label in range(CLASSES)]
        for label, name in enumerate(names):
            for number in range(PER_CLASS):
                write_image(folder / "data" / name / f"{number}.png", label, "PNG")
        splits = folder / "splits" / "bertinetto"
        splits.mkdir(parents=True, exist_ok=True)
        (splits / f"{mode}.txt").write_text("\n".join(names) + "\n", "utf-8")


def fc100(root):
    labels = [label for label in range(CLASSES) for _ in range(PER_CLASS)]
    images = np.stack([pixels(label, 32) for label in labels])
    for mode in SHORT.values():
        archive = {"data": images, "labels": labels}
        (root / f"FC100_{mode}.pickle").write_bytes(pickle.dumps(archive))


def tiered_imagenet(root):
    folder = root / "tiered-imagenet"
    folder.mkdir()
    labels = [label for label in range(CLASSES) for _ in range(PER_CLASS)]

    def encoded(label):
        file = io.BytesIO()
        Image.fromarray(pixels(label, 84)).save(file, "PNG")
        return np.frombuffer(file.getvalue(), np.uint8)

    images = [encoded(label) for label in labels]
    for mode in SHORT.values():
        (folder / f"{mode}_images_png.pkl").write_bytes(pickle.dumps(images))
        (folder / f"{mode}_labels.pkl").write_bytes(
            pickle.dumps({"label_specific": np.array(labels), "label_general": np.array(labels)})
        )


def folders_of(*parts, module):
    def write(root):
        for mode in MODES.values():
            for label, name in enumerate(splits_of(module)[mode]):
                for number in range(PER_CLASS):
                    write_image(root.joinpath(*parts, name, f"{name}_{number}.jpg"), label)

    return write


def aircraft(root):
    folder = root / "fgvc_aircraft" / "fgvc-aircraft-2013b" / "data"
    given = []
    for mode in ("train", "valid", "test"):
        names = splits_of("fgvc_aircraft")[mode]
        # The place of a class among the images, which need not be that in the list.
        for label, name in enumerate(names[:CLASSES]):
            for number in range(PER_CLASS):
                given.append((f"{mode}{label}{number}", name))
                write_image(folder / "images" / f"{given[-1][0]}.jpg", label)
    (folder / "labels.pkl").write_bytes(pickle.dumps(given))


def flowers(root):
    scipy_io = pytest.importorskip("scipy.io")
    folder = root / "vgg_flower102"
    places = {n: i for mode in MODES.values() for i, n in enumerate(splits_of("vgg_flowers")[mode])}
    labels = [name for name in sorted(places) for _ in range(PER_CLASS)]
    for number, name in enumerate(labels, 1):
        write_image(folder / "jpg" / f"image_{number:05}.jpg", places[name])
    scipy_io.savemat(folder / "imagelabels.mat", {"labels": np.array([labels])})


def quickdraw(root):
    (root / "quickdraw").mkdir()
    for mode in MODES.values():
        for label, name in enumerate(splits_of("quickdraw")[mode]):
            drawings = np.full((PER_CLASS, 784), gray(label), dtype=np.uint8)
            np.save(root / "quickdraw" / f"{name}.npy", drawings)


def fungi(root):
    files = {"train": ([], []), "val": ([], [])}
    identity = 0
    for mode in MODES.values():
        for label, name in enumerate(splits_of("fgvc_fungi")[mode][:CLASSES]):
            for number in range(PER_CLASS):
                images, annotations = files["train" if number else "val"]
                file = f"images/{name}/{number}.JPG"
                images.append({"id": identity, "file_name": file})
                annotations.append({"image_id": identity, "category_id": int(name[:4])})
                write_image(root / "fgvc_fungi" / file, label)
                identity += 1
    for part, (images, annotations) in files.items():
        told = {"images": images, "annotations": annotations}
        (root / "fgvc_fungi" / f"{part}.json").write_text(json.dumps(told), "utf-8")


BIRDS = folders_of("cubirds200", "CUB_200_2011", "images", module="cu_birds200")
TEXTURES = folders_of("describable_textures", "dtd", "images", module="describable_textures")
FILES = {
    "CIFARFS": (cifarfs, 3, 8),
    "CUBirds200": (BIRDS, 3, 8),
    "DescribableTextures": (TEXTURES, 3, 8),
    "FC100": (fc100, 3, 32),
    "FGVCAircraft": (aircraft, 3, 8),
    "FGVCFungi": (fungi, 3, 8),
    "Quickdraw": (quickdraw, 1, 28),
    "TieredImagenet": (tiered_imagenet, 3, 84),
    "VGGFlower102": (flowers, 3, 8),
}


def test_each_data_set_is_read():
    # That of mini-ImageNet is read elsewhere.
    assert set(learn2learn_datasets._NAMES) == {*FILES, "MiniImagenet"}


# Flowers and fungi are opened for their labels alone, and not closed, by learn2learn.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", FILES)
def test_tasks_come_out_of_the_files_of_each_data_set(name, tmp_path):
    write, channels, size = FILES[name]
    write(tmp_path)
    domain = learn2learn_domain(name, tmp_path)
    for split in SPLITS:
        images = domain.split(split)
        assert len(images.labels) == PER_CLASS * len(images.class_names)
        assert len(images.class_names) == len(images.labels.unique()) >= 5
        # All images of a class have one value, and other classes have others.
        values = [int(image.float().mean()) for image in images.load(range(len(images.labels)))]
        by_class = {label: set() for label in images.labels.tolist()}
        for label, value in zip(images.labels.tolist(), values, strict=True):
            by_class[label].add(value)
        assert all(len(found) == 1 for found in by_class.values())
        assert len(set.union(*by_class.values())) == min(len(by_class), 120)
        (inputs, labels), (others, asked) = next(
            FewShotTasks(domain, split, ways=5, shots=1, queries=2, tasks=3)
        )
        assert inputs.shape == (3, 5, channels, size, size)
        assert others.shape == (3, 10, channels, size, size)
        assert inputs.dtype == torch.float32 and 0 <= inputs.min() < inputs.max() <= 1
        assert labels.tolist() == [[0, 1, 2, 3, 4]] * 3
        assert asked.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 3
        # A query has the value of the support of its label, whose values differ.
        for task in range(3):
            support, query = (part[task].mean((1, 2, 3)) for part in (inputs, others))
            assert len(set(support.tolist())) == 5 or len(by_class) > 120
            torch.testing.assert_close(query, support[asked[task]])
