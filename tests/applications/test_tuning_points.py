"""The points that were tuned are those that a tuning of today would try."""

import hashlib

import pytest

from applications.cross_lingual import tuning as cross_lingual
from applications.few_shot import tuning as few_shot
from applications.label_noise import tuning as label_noise
from metatoolkit.experiments.tuning import trials

FIRST = {
    "label_noise": (
        "evograd",
        "{'method': 'evograd', 'momentum': 0.9, 'nesterov': True, 'lr': 0.0058, "
        "'meta_lr': 0.00075, 'evograd': {'sigma': 0.0019}}",
    ),
    "few_shot": ("ARUBA", "{'algorithm': 'aruba', 'lr': 0.3, 'options': {'zeta': 0.01}}"),
    "cross_lingual": (
        "Unrolled, 5 steps",
        "{'method': 'meta', 'estimator': {'name': 'Unrolled', 'steps': 5}, "
        "'evaluate_every': 0, 'lr': 0.0016, 'meta_lr': 0.00097}",
    ),
}


@pytest.mark.parametrize(
    ("search", "digest"),
    [
        (label_noise.SEARCH, "917fe1ba2f5ded09"),
        (few_shot.SEARCH, "21e2cfd9404a99dd"),
        (cross_lingual.SEARCH, "5fdf4c4458a5608f"),
    ],
    ids=list(FIRST),
)
def test_points_are_those_that_were_tuned(search, digest):
    method, first = FIRST[search.experiment.split(".")[1]]
    assert str(trials(search.spaces[method], 1)[0].updates) == first
    # The first 64 of each method, as they were before spaces had a type of their own.
    told = "\n".join(
        f"{label}: {point.updates}"
        for label, space in search.spaces.items()
        for point in trials(space, 64)
    )
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == digest
