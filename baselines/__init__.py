"""Baselines: what the applications are compared with."""

from baselines.fixed_weights import frozen_weights as frozen_weights
from baselines.fixed_weights import plain as plain
from baselines.fixed_weights import uniform_weights as uniform_weights
