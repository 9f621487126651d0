"""Run ``python -m applications.cross_lingual with method=evograd seed=3``."""

from applications.cross_lingual.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
