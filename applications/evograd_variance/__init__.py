"""Error of EvoGrad's hypergradient on label noise, by how its candidates are drawn."""

from applications.evograd_variance.experiment import experiment as experiment
