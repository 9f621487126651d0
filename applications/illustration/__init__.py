"""EvoGrad on a problem with one parameter, where the true hypergradient is known."""

from applications.illustration.experiment import experiment as experiment
