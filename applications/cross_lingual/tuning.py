"""Choose settings on tuning data: ``python -m applications.cross_lingual.tuning``.

Every method gets the same number of trials and seeds over the settings that it has: learning rate,
for the meta-learning methods the transformation's learning rate too, and for EvoGrad σ. The score
is the F1 on the target language's tuning data, the split ``dev``. ``data.name=generated`` searches
for generated languages; without it MasakhaNER is taken where METATOOLKIT_DATA holds it. The winners
go into ``settings.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from applications.cross_lingual.settings import METHODS
from metatoolkit.experiments import tuning
from metatoolkit.experiments.by_application import ESTIMATORS
from metatoolkit.experiments.search_space import Range, Space
from metatoolkit.experiments.tuning import Search

RANGES = {
    "lr": Range(5e-4, 5e-3, log=True),
    "meta_lr": Range(3e-4, 1e-2, log=True),
    "evograd.sigma": Range(1e-3, 0.1, log=True),
}
# Guided candidates are a norm σ away, and not σ in each of their parameters.
GUIDED = {**RANGES, "evograd.sigma": Range(0.01, 1.0, log=True)}
NAMES = {
    "second_order": ("lr", "meta_lr"),
    "evograd": ("lr", "meta_lr", "evograd.sigma"),
}
# Those that are the exact one-step hypergradient take what was tuned for second order.
TUNED_ESTIMATORS = ("SAMA", "Unrolled, 5 steps")


def _space(method: str, named: tuple[str, ...] = (), ranges: Mapping[str, Range] = RANGES) -> Space:
    own = NAMES["second_order"] if method in ESTIMATORS else ("lr",)
    names = NAMES.get(method, own)
    fixed = {**ESTIMATORS.get(method, {"method": method}), "evaluate_every": 0}
    return Space({name: ranges[name] for name in names}, fixed=fixed, named=named)


SEARCH = Search(
    experiment="applications.cross_lingual.experiment",
    score="dev_f1",
    spaces={
        **{method: _space(method) for method in (*METHODS, *TUNED_ESTIMATORS)},
        "guided": _space("evograd", ("guided",), GUIDED),
    },
    first_seed=201,
)


if __name__ == "__main__":
    sys.exit(tuning.main(SEARCH, __doc__))
