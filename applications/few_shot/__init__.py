"""Few-shot image classification, learned across tasks: MAML and its relatives."""

from applications.few_shot.experiment import experiment as experiment
