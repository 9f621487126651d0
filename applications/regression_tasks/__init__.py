"""Few-shot regression of sinusoids and images, learned across tasks: MAML and its relatives."""

from applications.regression_tasks.experiment import experiment as experiment
