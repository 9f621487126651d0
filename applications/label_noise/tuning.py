"""Choose settings on clean tuning data: ``python -m applications.label_noise.tuning``.

Every method gets the same number of trials and seeds over the settings that it has: learning rate
and momentum, for the meta-learning methods the weight network's learning rate too, and for EvoGrad
σ. The score is the accuracy on the tuning split, which no method trains on, and nothing is chosen
in another way. The winners go into ``settings.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from applications.label_noise.settings import METHODS
from metatoolkit.experiments import tuning
from metatoolkit.experiments.by_application import ESTIMATORS
from metatoolkit.experiments.search_space import Choice, Range, Space, rounded
from metatoolkit.experiments.tuning import Search

# The learning rate is that of the step that momentum accumulates to, lr / (1 − momentum).
COORDINATES: dict[str, Choice | Range] = {
    "momentum": Choice((0.0, 0.9)),
    "lr": Range(0.02, 0.5, log=True, digits=None),
    "meta_lr": Range(3e-4, 3e-2, log=True),
    "evograd.sigma": Range(1e-3, 0.1, log=True),
}
NAMES = {
    "second_order": ("momentum", "lr", "meta_lr"),
    "evograd": ("momentum", "lr", "meta_lr", "evograd.sigma"),
}
# Those that are the exact one-step hypergradient take what was tuned for second order.
TUNED_ESTIMATORS = ("GuidedEvoGrad", "SAMA", "Unrolled, 5 steps")


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of no momentum, or of Nesterov's."""
    momentum, lr, *_ = values.values()
    rest = {name: value for name, value in values.items() if name not in ("momentum", "lr")}
    rate = rounded(lr * (1 - momentum))
    return {"momentum": momentum, "nesterov": momentum > 0, "lr": rate, **rest}


def _space(method: str) -> Space:
    """Return the space of a method's own settings."""
    own = NAMES["second_order"] if method in ESTIMATORS else ("momentum", "lr")
    names = NAMES.get(method, own)
    fixed = ESTIMATORS.get(method, {"method": method})
    return Space({name: COORDINATES[name] for name in names}, _settings, fixed)


SEARCH = Search(
    experiment="applications.label_noise.experiment",
    score="tuning_accuracy",
    spaces={method: _space(method) for method in (*METHODS, *TUNED_ESTIMATORS)},
    first_seed=201,
)


if __name__ == "__main__":
    sys.exit(tuning.main(SEARCH, __doc__))
