"""Evaluation of trained models."""

from metatoolkit.evaluation.classification import accuracy
from metatoolkit.evaluation.few_shot import (
    FewShotAccuracy,
    domain_accuracy,
    few_shot_accuracy,
    mean_with_interval,
)
from metatoolkit.evaluation.mode import evaluation_mode
from metatoolkit.evaluation.text import Predict, label_accuracy, span_f1, tag_sequences

__all__ = [
    "FewShotAccuracy",
    "Predict",
    "accuracy",
    "domain_accuracy",
    "evaluation_mode",
    "few_shot_accuracy",
    "label_accuracy",
    "mean_with_interval",
    "span_f1",
    "tag_sequences",
]
