"""Choose settings on federated digits: ``python -m applications.few_shot.tuning``.

The single rate and ARUBA get the same number of trials and seeds: over the rate, or its first
value, and for ARUBA over ζ, too. The score is the accuracy on validation users, whose images no
method trains on and no test has; seeds are others than those of the study. The winners go into
``study.py``.
"""

from __future__ import annotations

import sys

from metatoolkit.experiments import tuning
from metatoolkit.experiments.search_space import Range, Space
from metatoolkit.experiments.tuning import Search

LR = Range(0.03, 3.0, log=True)
ZETA = Range(1e-3, 1.0, log=True)

SEARCH = Search(
    experiment="applications.few_shot.experiment",
    score="valid_accuracy",
    spaces={
        "single rate": Space({"lr": LR}, fixed={"algorithm": "reptile"}, named=("federated",)),
        "ARUBA": Space(
            {"lr": LR, "options.zeta": ZETA}, fixed={"algorithm": "aruba"}, named=("federated",)
        ),
    },
    first_seed=201,
)


if __name__ == "__main__":
    sys.exit(tuning.main(SEARCH, __doc__))
