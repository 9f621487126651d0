"""What each recording process needs, and would load by itself: imported before they are forked."""

import pymongo
import torch

from metatoolkit import records

from . import faults, faulty_runs

__all__ = ["faults", "faulty_runs", "pymongo", "torch"]

# Sacred is loaded with the first experiment.
records.experiment("preloaded", interactive=True)
