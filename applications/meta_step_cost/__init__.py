"""Memory and operations of one meta step of the applications, estimator by estimator."""

from applications.meta_step_cost.experiment import experiment as experiment
