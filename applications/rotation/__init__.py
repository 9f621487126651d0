"""Learning by what angle to rotate training images: EvoGrad against second order and baseline."""

from applications.rotation.experiment import experiment as experiment
