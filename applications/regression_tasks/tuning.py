"""Choose learning rates for sinusoids: ``python -m applications.regression_tasks.tuning``.

Every algorithm gets the same number of trials and seeds, over the inner rate, that across tasks
and, where inner rates are learned, that at which they are. The score is the error on validation
tasks after the last step, on seeds that are others than those of the study, which is at common
rates: docs/few_shot.md tells what was found.
"""

from __future__ import annotations

import sys
from typing import Any

from metatoolkit.experiments import tuning
from metatoolkit.experiments.search_space import Range, Space
from metatoolkit.experiments.task_study import ROWS
from metatoolkit.experiments.tuning import Search

RATES = {"lr": Range(1e-3, 0.03, log=True), "meta_lr": Range(1e-3, 0.01, log=True)}
LEARNED = {"rates_lr": Range(1e-5, 1e-3, log=True)}
# Of SGD: the share of the way to the mean end of the inner steps.
SHARE = {"meta_lr": Range(0.1, 1.0, log=True)}

_FURTHER = {"Reptile": SHARE, "Meta-SGD": LEARNED, "MAML++": LEARNED}
_LEFT_OUT = ("scratch", "MAML, learn2learn")


def _space(label: str) -> Space:
    fixed: dict[str, Any] = dict(ROWS[label].updates)
    fixed.pop("meta_lr", None)
    return Space(RATES | _FURTHER.get(label, {}), fixed=fixed)


SEARCH = Search(
    experiment="applications.regression_tasks.experiment",
    score="valid_error",
    spaces={label: _space(label) for label in ROWS if label not in _LEFT_OUT},
    first_seed=201,
    minimized=True,
)


if __name__ == "__main__":
    sys.exit(tuning.main(SEARCH, __doc__))
