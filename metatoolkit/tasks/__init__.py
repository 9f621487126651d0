"""Sources of tasks: data sets, label corruption and batches."""

from metatoolkit.tasks.batches import Batches, evaluation_batches
from metatoolkit.tasks.datasets import Classification, Split, load_dataset
from metatoolkit.tasks.image_transforms import ImageTransform
from metatoolkit.tasks.label_corruption import (
    CorruptedLabels,
    NoisyClassification,
    corrupt_labels,
    label_noise_task,
    split_meta,
    transition_matrix,
)

__all__ = [
    "Batches",
    "Classification",
    "CorruptedLabels",
    "ImageTransform",
    "NoisyClassification",
    "Split",
    "corrupt_labels",
    "evaluation_batches",
    "label_noise_task",
    "load_dataset",
    "split_meta",
    "transition_matrix",
]
