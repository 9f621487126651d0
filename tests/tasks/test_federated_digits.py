"""Users of scikit-learn's digits."""

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, DataError, UnknownNameError

SIZES = {"classes": 3, "shots": 4, "queries": 6, "tasks": 5}


def users(split="train", **changes):
    return mt.tasks.FederatedDigits(split, **{**SIZES, **changes})


def originals(images):
    """Places in the data set of images that were not turned."""
    digits = mt.tasks.load_dataset("digits")
    known = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    labels = torch.cat([digits.train_labels, digits.test_labels])
    distances = torch.cdist(images.flatten(1), known, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distances.min(dim=1).values.max()) < 1e-4
    return distances.argmin(dim=1), labels


def test_a_user_has_few_digits_and_labels_that_all_users_share():
    (images, labels), (asked, answers) = next(users(angle=0.0))
    assert images.shape == (5, 12, 1, 8, 8) and asked.shape == (5, 18, 1, 8, 8)
    places, names = originals(torch.cat([images, asked], dim=1).flatten(0, 1))
    assert torch.equal(names[places], torch.cat([labels, answers], dim=1).flatten())
    assert all(len(set(own.tolist())) == 3 for own in labels)
    assert len({tuple(own.tolist()) for own in labels}) > 1
    for own in places.view(5, 30):
        assert len(set(own.tolist())) == 30


def test_splits_have_no_image_in_common_and_all_digits():
    found = {}
    for split in ("train", "valid", "test"):
        source = users(split, classes=10, shots=1, queries=20, angle=0.0, tasks=30)
        images = torch.cat([part[0].flatten(0, 1) for part in next(source)])
        found[split] = set(originals(images)[0].tolist())
    assert all(found.values()) and sum(map(len, found.values())) == len(set.union(*found.values()))
    # About as many as there are: a split of a fifth has some 36 of each digit.
    assert 300 < len(found["valid"]) < 370 and 300 < len(found["test"]) < 370


def test_a_user_turns_all_images_by_an_angle_of_its_own():
    (straight, _), _ = users(angle=0.0).batch(0, 8)
    (turned, _), _ = users(angle=30.0).batch(0, 8)
    digits = mt.tasks.load_dataset("digits")
    fill, found = -digits.mean[0] / digits.std[0], []
    for before, after in zip(straight, turned, strict=True):
        angles = torch.linspace(-30, 30, 121).deg2rad()
        off = [float((mt.tasks.rotate(before, a, fill=fill) - after).norm()) for a in angles]
        assert min(off) < 0.02 * float(after.norm())
        found.append(float(angles[off.index(min(off))].rad2deg()))
    assert min(found) < -5 and max(found) > 5 and len(set(found)) > 5


def test_users_follow_from_the_seed_and_their_number():
    source = users(seed=3)
    next(source)
    second = next(source)
    again = users(seed=3).batch(5, 5)
    assert torch.equal(second[0][0], again[0][0]) and torch.equal(second[1][1], again[1][1])
    assert not torch.equal(users(seed=4).batch(5, 5)[0][0], again[0][0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"split": "tests"}, UnknownNameError, "split"),
        ({"classes": 11}, ConfigurationError, "classes is 11; there are 10 digits"),
        ({"angle": -1.0}, ConfigurationError, "angle is -1.0"),
        ({"angle": float("nan")}, ConfigurationError, "angle is nan"),
        ({"split": "test", "queries": 40}, DataError, "fewer than the 44"),
        ({"shots": 0}, ConfigurationError, "shots is 0"),
    ],
)
def test_wrong_input_is_answered(changes, error, message):
    with pytest.raises(error, match=message):
        users(**changes)
