"""Run ``python -m applications.cross_domain_few_shot with method=evograd seed=3``."""

from applications.cross_domain_few_shot.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
