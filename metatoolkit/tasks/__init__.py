"""Sources of tasks: data sets, domains and episodes, label corruption and batches."""

from metatoolkit.tasks.batches import Batches, evaluation_batches
from metatoolkit.tasks.datasets import Classification, Split, load_dataset
from metatoolkit.tasks.default_domains import default_domains
from metatoolkit.tasks.domains import Domain, ImageSet, LabeledImages, domain_of, split_classes
from metatoolkit.tasks.episodes import Episode, EpisodeBatches, pseudo_domains
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
    "Domain",
    "Episode",
    "EpisodeBatches",
    "ImageSet",
    "ImageTransform",
    "LabeledImages",
    "NoisyClassification",
    "Split",
    "corrupt_labels",
    "default_domains",
    "domain_of",
    "evaluation_batches",
    "label_noise_task",
    "load_dataset",
    "pseudo_domains",
    "split_classes",
    "split_meta",
    "transition_matrix",
]
