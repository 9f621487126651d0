"""Diagnostics: is a hypergradient right, what does it cost, and is it more than noise?"""

from metatoolkit.diagnostics.check import HypergradientCheck as HypergradientCheck
from metatoolkit.diagnostics.check import check_hypergradient as check_hypergradient
from metatoolkit.diagnostics.comparison import EstimatorComparison as EstimatorComparison
from metatoolkit.diagnostics.comparison import compare_estimators as compare_estimators
from metatoolkit.diagnostics.measure import count_flops as count_flops
from metatoolkit.diagnostics.measure import peak_memory as peak_memory
from metatoolkit.diagnostics.profile import TrainingProfile as TrainingProfile
from metatoolkit.diagnostics.profile import profile_training as profile_training
from metatoolkit.diagnostics.signal_noise import Signal as Signal
from metatoolkit.diagnostics.signal_noise import SignalToNoise as SignalToNoise
from metatoolkit.diagnostics.signal_noise import signal_to_noise as signal_to_noise
