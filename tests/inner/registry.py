"""Each inner learner of the toolkit, as the suite that runs over all of them makes it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metatoolkit.inner import (
    ARUBA,
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Clipped,
    Combined,
    GradientFlow,
    InnerLearner,
    Lion,
    Muon,
    NAdam,
    RAdam,
    ReversibleMomentum,
    RMSprop,
    Rprop,
    Warped,
)


def warp_of_nothing(meta: object) -> dict[str, Tensor]:
    """No Ω, since the problems of the suite share no name of a parameter."""
    return {}


LEARNERS: dict[str, Callable[[], InnerLearner]] = {
    "ARUBA": lambda: ARUBA(0.05, refinement=2.0),
    "ASGD": lambda: ASGD(0.05, lambd=0.3, t0=1.0),
    "Adadelta": lambda: Adadelta(0.5, eps=1e-3),
    "Adagrad": lambda: Adagrad(0.05, lr_decay=0.1),
    "Adam": lambda: Adam(0.01, weight_decay=0.1),
    "AdamW": lambda: AdamW(0.01, (0.5, 0.8)),
    "Adamax": lambda: Adamax(0.01),
    "Clipped": lambda: Clipped(SGD(0.1, momentum=0.9), max_norm=0.5),
    "Combined": lambda: Combined(SGD(0.1, momentum=0.5), {"*a*": AdamW(0.01)}),
    "GradientFlow": lambda: GradientFlow(0.3, 3),
    "GradientFlow, Heun": lambda: GradientFlow(0.3, 2, "heun"),
    "Lion": lambda: Lion(0.01, smoothing=0.1),
    "Muon": lambda: Muon(0.02, ns_steps=2),
    "NAdam": lambda: NAdam(0.01, momentum_decay=0.1),
    "RAdam": lambda: RAdam(0.01, (0.5, 0.8)),
    "RMSprop": lambda: RMSprop(0.01, alpha=0.9, momentum=0.5, centered=True),
    "ReversibleMomentum": lambda: ReversibleMomentum(0.3, 0.8),
    "Rprop": lambda: Rprop(0.01),
    "SGD": lambda: SGD(0.1),
    "SGD, Nesterov": lambda: SGD(0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Warped": lambda: Warped(SGD(0.1, momentum=0.5), warp_of_nothing),
}
