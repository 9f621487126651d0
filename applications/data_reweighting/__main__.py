"""Run ``python -m applications.data_reweighting with method=implicit seed=3``."""

from applications.data_reweighting.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
