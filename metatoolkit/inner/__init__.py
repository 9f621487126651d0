"""Inner learners: how the inner parameters move."""

from metatoolkit.inner.adam import Adam as Adam
from metatoolkit.inner.adamw import AdamW as AdamW
from metatoolkit.inner.base import InnerLearner as InnerLearner
from metatoolkit.inner.rmsprop import RMSprop as RMSprop
from metatoolkit.inner.schedules import multistep as multistep
from metatoolkit.inner.schedules import warmup_linear as warmup_linear
from metatoolkit.inner.sgd import SGD as SGD
