"""Data hyper-cleaning: a weight for each training example, learned by four hypergradients."""

from applications.data_reweighting.experiment import experiment as experiment
