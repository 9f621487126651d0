"""Run ``python -m applications.few_shot with algorithm=fomaml seed=3``."""

from applications.few_shot.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
