"""Components for gradient-based meta-learning and hyperparameter optimization.

Names are imported when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metatoolkit import algorithms as algorithms
    from metatoolkit import diagnostics as diagnostics
    from metatoolkit import errors as errors
    from metatoolkit import evaluation as evaluation
    from metatoolkit import hypergradients as hypergradients
    from metatoolkit import inner as inner
    from metatoolkit import losses as losses
    from metatoolkit import metaparameters as metaparameters
    from metatoolkit import networks as networks
    from metatoolkit import records as records
    from metatoolkit import tasks as tasks
    from metatoolkit import testing as testing
    from metatoolkit.diagnostics import check_hypergradient as check_hypergradient
    from metatoolkit.diagnostics import compare_estimators as compare_estimators
    from metatoolkit.diagnostics import signal_to_noise as signal_to_noise
    from metatoolkit.problem import BilevelProblem as BilevelProblem
    from metatoolkit.state import InnerState as InnerState
    from metatoolkit.training import EarlyStopping as EarlyStopping
    from metatoolkit.training import MetaTrainer as MetaTrainer
    from metatoolkit.training import SignDescent as SignDescent
    from metatoolkit.training import TaskBatching as TaskBatching
    from metatoolkit.training import TaskScores as TaskScores
    from metatoolkit.training import join_ranks as join_ranks
    from metatoolkit.training import over_tasks as over_tasks

__version__ = "0.1.0"

_MODULES = (
    "algorithms",
    "diagnostics",
    "errors",
    "evaluation",
    "hypergradients",
    "inner",
    "losses",
    "metaparameters",
    "networks",
    "records",
    "tasks",
    "testing",
)
_NAMES = {
    "BilevelProblem": "metatoolkit.problem",
    "EarlyStopping": "metatoolkit.training",
    "InnerState": "metatoolkit.state",
    "MetaTrainer": "metatoolkit.training",
    "SignDescent": "metatoolkit.training",
    "TaskBatching": "metatoolkit.training",
    "TaskScores": "metatoolkit.training",
    "check_hypergradient": "metatoolkit.diagnostics",
    "compare_estimators": "metatoolkit.diagnostics",
    "join_ranks": "metatoolkit.training",
    "over_tasks": "metatoolkit.training",
    "signal_to_noise": "metatoolkit.diagnostics",
}

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"metatoolkit.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'metatoolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
