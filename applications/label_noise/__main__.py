"""Run ``python -m applications.label_noise with method=evograd seed=3``."""

from applications.label_noise.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
