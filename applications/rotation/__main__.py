"""Run ``python -m applications.rotation with method=evograd seed=3``."""

from applications.rotation.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
