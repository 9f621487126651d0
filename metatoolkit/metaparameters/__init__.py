"""Modules that hold meta-parameters."""

from metatoolkit.metaparameters.weight_net import WeightNet, normalize_weights

__all__ = ["WeightNet", "normalize_weights"]
