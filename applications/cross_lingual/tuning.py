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
from typing import Any

from applications.cross_lingual.settings import METHODS
from metatoolkit.experiments import tuning
from metatoolkit.experiments.by_application import ESTIMATORS
from metatoolkit.experiments.tuning import Search, Space, log_scaled

RANGES = {"lr": (5e-4, 5e-3), "meta_lr": (3e-4, 1e-2), "sigma": (1e-3, 0.1)}
# Guided candidates are a norm σ away, and not σ in each of their parameters.
GUIDED = {**RANGES, "sigma": (0.01, 1.0)}
NAMES = {
    "second_order": ("lr", "meta_lr"),
    "evograd": ("lr", "meta_lr", "sigma"),
}
# Those that are the exact one-step hypergradient take what was tuned for second order.
TUNED_ESTIMATORS = ("SAMA", "Unrolled, 5 steps")


def _space(
    method: str, named: tuple[str, ...] = (), ranges: Mapping[str, tuple[float, float]] = RANGES
) -> Space:
    chosen = ESTIMATORS.get(method, {"method": method})

    def settings(point: Mapping[str, float]) -> dict[str, Any]:
        found = {name: log_scaled(position, *ranges[name]) for name, position in point.items()}
        sigma = found.pop("sigma", None)
        updates: dict[str, Any] = {**chosen, "evaluate_every": 0, **found}
        return updates if sigma is None else {**updates, "evograd": {"sigma": sigma}}

    own = NAMES["second_order"] if method in ESTIMATORS else ("lr",)
    return Space(NAMES.get(method, own), settings, named)


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
