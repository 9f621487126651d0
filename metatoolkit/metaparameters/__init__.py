"""Modules that hold meta-parameters."""

from metatoolkit.metaparameters.initialization import Initialization
from metatoolkit.metaparameters.weight_net import WeightNet, normalize_weights

__all__ = ["Initialization", "WeightNet", "normalize_weights"]
