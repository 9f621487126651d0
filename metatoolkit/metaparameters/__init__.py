"""Modules that hold meta-parameters."""

from metatoolkit.metaparameters.adaptive_rates import AdaptiveRates
from metatoolkit.metaparameters.example_weights import ExampleWeights
from metatoolkit.metaparameters.feature_wise_transform import (
    FeatureWiseTransform,
    FeatureWiseTransforms,
    insert_feature_wise_transforms,
)
from metatoolkit.metaparameters.initialization import Initialization
from metatoolkit.metaparameters.learning_rates import LearningRates
from metatoolkit.metaparameters.proximal import Proximal
from metatoolkit.metaparameters.registry import modules
from metatoolkit.metaparameters.representation_transform import RepresentationTransform
from metatoolkit.metaparameters.rotation import Rotation
from metatoolkit.metaparameters.schedule import Schedule
from metatoolkit.metaparameters.shared import Shared
from metatoolkit.metaparameters.step_batch_norm import (
    StepBatchNorm,
    StepBatchNorms,
    insert_step_batch_norms,
)
from metatoolkit.metaparameters.synthetic_examples import SyntheticExamples
from metatoolkit.metaparameters.task_rule import TaskRule
from metatoolkit.metaparameters.warp_layer import WarpLayer, WarpLayers, insert_warp_layers
from metatoolkit.metaparameters.weight_net import WeightNet, normalize_weights

__all__ = [
    "AdaptiveRates",
    "ExampleWeights",
    "FeatureWiseTransform",
    "FeatureWiseTransforms",
    "Initialization",
    "LearningRates",
    "Proximal",
    "RepresentationTransform",
    "Rotation",
    "Schedule",
    "Shared",
    "StepBatchNorm",
    "StepBatchNorms",
    "SyntheticExamples",
    "TaskRule",
    "WarpLayer",
    "WarpLayers",
    "WeightNet",
    "build",
    "insert_feature_wise_transforms",
    "insert_step_batch_norms",
    "insert_warp_layers",
    "modules",
    "normalize_weights",
    "register",
]

build = modules.build
register = modules.register
