"""Choose settings on federated digits: ``python -m applications.few_shot.tuning``.

The single rate and ARUBA get the same number of trials and seeds: over the rate, or its first
value, and for ARUBA over ζ, too. The score is the accuracy on validation users, whose images no
method trains on and no test has; seeds are others than those of the study. The winners go into
``study.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from metatoolkit.experiments import tuning
from metatoolkit.experiments.tuning import Search, Space, log_scaled

RANGES = {"lr": (0.03, 3.0), "zeta": (1e-3, 1.0)}
"""Bounds of what is searched, on a logarithmic scale."""


def _single(point: Mapping[str, float]) -> dict[str, Any]:
    return {"algorithm": "reptile", "lr": log_scaled(point["lr"], *RANGES["lr"])}


def _aruba(point: Mapping[str, float]) -> dict[str, Any]:
    zeta = log_scaled(point["zeta"], *RANGES["zeta"])
    return {**_single(point), "algorithm": "aruba", "options": {"zeta": zeta}}


SEARCH = Search(
    experiment="applications.few_shot.experiment",
    score="valid_accuracy",
    spaces={
        "single rate": Space(("lr",), _single, named=("federated",)),
        "ARUBA": Space(("lr", "zeta"), _aruba, named=("federated",)),
    },
    first_seed=201,
)


if __name__ == "__main__":
    sys.exit(tuning.main(SEARCH, __doc__))
