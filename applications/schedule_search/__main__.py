"""Run ``python -m applications.schedule_search with method=greedy seed=3``."""

from applications.schedule_search.experiment import experiment

if __name__ == "__main__":
    experiment.run_commandline()
