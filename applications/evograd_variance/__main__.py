"""Run ``python -m applications.evograd_variance with directions=antithetic``."""

from applications.evograd_variance.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
