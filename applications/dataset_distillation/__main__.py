"""Run ``python -m applications.dataset_distillation with per_class=2 seed=3``."""

from applications.dataset_distillation.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
