"""Inner learners: how the inner parameters move."""

from metatoolkit.inner.base import InnerLearner as InnerLearner
from metatoolkit.inner.schedules import multistep as multistep
from metatoolkit.inner.sgd import SGD as SGD
