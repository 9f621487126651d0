"""Sources of tasks: data sets, text in several languages, label corruption and batches."""

from metatoolkit.metaparameters.image_rotation import rotate
from metatoolkit.tasks.batches import Batches, evaluation_batches
from metatoolkit.tasks.classification import Classification, Split
from metatoolkit.tasks.converted_tasks import ConvertedTasks
from metatoolkit.tasks.datasets import load_dataset
from metatoolkit.tasks.default_domains import default_domains
from metatoolkit.tasks.domains import Domain, ImageSet, LabeledImages, domain_of, split_classes
from metatoolkit.tasks.episodes import Episode, EpisodeBatches, pseudo_domains
from metatoolkit.tasks.federated_digits import FederatedDigits
from metatoolkit.tasks.few_shot_tasks import FewShotTasks
from metatoolkit.tasks.function_tasks import FunctionTasks
from metatoolkit.tasks.image_folders import ImageFiles, image_folder_domain, photo_domains
from metatoolkit.tasks.image_transforms import ImageTransform
from metatoolkit.tasks.label_corruption import (
    CorruptedLabels,
    NoisyClassification,
    corrupt_labels,
    label_noise_task,
    set_aside,
    split_meta,
    transition_matrix,
)
from metatoolkit.tasks.labeled_batches import LabeledBatches
from metatoolkit.tasks.languages import (
    Corpus,
    Document,
    Sentence,
    TokenBatches,
    TokenDataset,
    check_tokenizer,
    common_labels,
    encode,
    load_amazon_reviews,
    load_conll,
    load_masakhaner,
    load_tokenizer,
    load_wikiann,
    train_tokenizer,
)
from metatoolkit.tasks.learn2learn_datasets import MapDataset, learn2learn_domain
from metatoolkit.tasks.learn2learn_tasks import from_learn2learn
from metatoolkit.tasks.mixed_tasks import MixedTasks
from metatoolkit.tasks.omniglot import omniglot_domain
from metatoolkit.tasks.padding import pad_tasks
from metatoolkit.tasks.photo_transform import PhotoTransform
from metatoolkit.tasks.pixel_tasks import PixelTasks
from metatoolkit.tasks.prefetched_tasks import PrefetchedTasks
from metatoolkit.tasks.resizing import resize_dataset
from metatoolkit.tasks.rotated_images import RotatedClassification, rotation_task
from metatoolkit.tasks.series_tasks import SeriesTasks
from metatoolkit.tasks.synthetic.news import generated_languages
from metatoolkit.tasks.synthetic.reviews import generated_reviews
from metatoolkit.tasks.tabular_tasks import TabularTasks
from metatoolkit.tasks.task_source import TaskSource

__all__ = [
    "Batches",
    "Classification",
    "ConvertedTasks",
    "Corpus",
    "CorruptedLabels",
    "Document",
    "Domain",
    "Episode",
    "EpisodeBatches",
    "FederatedDigits",
    "FewShotTasks",
    "FunctionTasks",
    "ImageFiles",
    "ImageSet",
    "ImageTransform",
    "LabeledBatches",
    "LabeledImages",
    "MapDataset",
    "MixedTasks",
    "NoisyClassification",
    "RotatedClassification",
    "PhotoTransform",
    "PixelTasks",
    "PrefetchedTasks",
    "Sentence",
    "SeriesTasks",
    "Split",
    "TabularTasks",
    "TaskSource",
    "TokenBatches",
    "TokenDataset",
    "check_tokenizer",
    "common_labels",
    "corrupt_labels",
    "default_domains",
    "domain_of",
    "encode",
    "evaluation_batches",
    "from_learn2learn",
    "generated_languages",
    "generated_reviews",
    "image_folder_domain",
    "label_noise_task",
    "learn2learn_domain",
    "load_amazon_reviews",
    "load_conll",
    "load_dataset",
    "load_masakhaner",
    "load_tokenizer",
    "load_wikiann",
    "omniglot_domain",
    "pad_tasks",
    "photo_domains",
    "pseudo_domains",
    "resize_dataset",
    "rotate",
    "rotation_task",
    "set_aside",
    "split_classes",
    "split_meta",
    "train_tokenizer",
    "transition_matrix",
]
