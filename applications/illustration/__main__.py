"""Run ``python -m applications.illustration with gradients seed=1``."""

from applications.illustration.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
