"""Learning-rate, momentum and weight-decay schedules, learned over whole trainings."""

from applications.schedule_search.experiment import experiment as experiment
