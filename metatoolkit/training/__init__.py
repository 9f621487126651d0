"""Training: meta steps and base steps over streams of batches, evaluation, checkpoints."""

from metatoolkit.training.early_stopping import EarlyStopping as EarlyStopping
from metatoolkit.training.fit import Evaluate as Evaluate
from metatoolkit.training.fit import Log as Log
from metatoolkit.training.trainer import MetaTrainer as MetaTrainer
