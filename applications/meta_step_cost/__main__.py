"""Run ``python -m applications.meta_step_cost with application=rotation``."""

from applications.meta_step_cost.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
