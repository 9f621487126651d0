"""Cross-lingual transfer by MetaXL: EvoGrad against second order and joint training."""

from applications.cross_lingual.experiment import experiment as experiment
