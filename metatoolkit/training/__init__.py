"""Training: meta steps and base steps over streams of batches, evaluation, checkpoints."""

from metatoolkit.training.trainer import Evaluate as Evaluate
from metatoolkit.training.trainer import Log as Log
from metatoolkit.training.trainer import MetaTrainer as MetaTrainer
