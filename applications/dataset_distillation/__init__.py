"""Dataset distillation: a few training images are learned that stand for a data set."""

from applications.dataset_distillation.experiment import experiment as experiment
