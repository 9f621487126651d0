"""Learned feature-wise transformation for few-shot classification across domains."""

from applications.cross_domain_few_shot.experiment import experiment as experiment
