"""Run ``python -m applications.regression_tasks with algorithm=fomaml seed=3``."""

from applications.regression_tasks.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
