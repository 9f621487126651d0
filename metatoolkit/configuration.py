"""Components from entries of a run's configuration, which several applications have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metatoolkit.hypergradients import Estimator, EvoGrad, Unrolled


def build_estimator(config: Mapping[str, Any], **options: Any) -> Estimator | None:
    """Return the estimator that ``config["method"]`` names, or ``None`` for any other method.

    Args:
        config: Configuration with ``method`` and ``seed``; for ``"evograd"`` with the options of
            :class:`metatoolkit.hypergradients.EvoGrad` in ``evograd``, where ``rescale`` says
            whether to rescale to the inner learning rate ``lr``. ``"second_order"`` is the exact
            one-step hypergradient.
        **options: Options of EvoGrad in the place of those of the configuration.
    """
    if config["method"] == "evograd":
        own = {**config["evograd"], **options}
        own["rescale"] = config["lr"] if own["rescale"] else None
        return EvoGrad(**own, seed=config["seed"])
    return Unrolled(steps=1) if config["method"] == "second_order" else None
