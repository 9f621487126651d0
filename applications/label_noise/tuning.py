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
from metatoolkit.experiments.tuning import Search, Space, log_scaled

# The learning rate is that of the step that momentum accumulates to, lr / (1 − momentum).
RANGES = {"lr": (0.02, 0.5), "meta_lr": (3e-4, 3e-2), "sigma": (1e-3, 0.1)}
NAMES = {
    "second_order": ("momentum", "lr", "meta_lr"),
    "evograd": ("momentum", "lr", "meta_lr", "sigma"),
}
# Those that are the exact one-step hypergradient take what was tuned for second order.
TUNED_ESTIMATORS = ("GuidedEvoGrad", "SAMA", "Unrolled, 5 steps")


def _space(method: str) -> Space:
    """Return a method's space: no momentum or Nesterov's with 0.9, the others log-uniform."""
    chosen = ESTIMATORS.get(method, {"method": method})

    def settings(point: Mapping[str, float]) -> dict[str, Any]:
        momentum = 0.9 if point["momentum"] >= 0.5 else 0.0
        low, high = RANGES["lr"]
        updates: dict[str, Any] = {
            **chosen,
            "momentum": momentum,
            "nesterov": momentum > 0,
            "lr": log_scaled(point["lr"], low * (1 - momentum), high * (1 - momentum)),
        }
        if "meta_lr" in point:
            updates["meta_lr"] = log_scaled(point["meta_lr"], *RANGES["meta_lr"])
        if "sigma" in point:
            updates["evograd"] = {"sigma": log_scaled(point["sigma"], *RANGES["sigma"])}
        return updates

    own = NAMES["second_order"] if method in ESTIMATORS else ("momentum", "lr")
    return Space(NAMES.get(method, own), settings)


SEARCH = Search(
    experiment="applications.label_noise.experiment",
    score="tuning_accuracy",
    spaces={method: _space(method) for method in (*METHODS, *TUNED_ESTIMATORS)},
    first_seed=201,
)


if __name__ == "__main__":
    sys.exit(tuning.main(SEARCH, __doc__))
