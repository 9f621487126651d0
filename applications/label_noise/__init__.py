"""Learning with noisy labels by Meta-Weight-Net: EvoGrad against second order and baselines."""

from applications.label_noise.experiment import experiment as experiment
