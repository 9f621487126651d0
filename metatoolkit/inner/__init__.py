"""Inner learners: how the inner parameters move."""

from metatoolkit.inner.adadelta import Adadelta as Adadelta
from metatoolkit.inner.adagrad import Adagrad as Adagrad
from metatoolkit.inner.adam import Adam as Adam
from metatoolkit.inner.adamax import Adamax as Adamax
from metatoolkit.inner.adamw import AdamW as AdamW
from metatoolkit.inner.asgd import ASGD as ASGD
from metatoolkit.inner.base import InnerLearner as InnerLearner
from metatoolkit.inner.clipped import Clipped as Clipped
from metatoolkit.inner.combined import Combined as Combined
from metatoolkit.inner.lion import Lion as Lion
from metatoolkit.inner.muon import Muon as Muon
from metatoolkit.inner.nadam import NAdam as NAdam
from metatoolkit.inner.radam import RAdam as RAdam
from metatoolkit.inner.registry import learners as learners
from metatoolkit.inner.rmsprop import RMSprop as RMSprop
from metatoolkit.inner.rprop import Rprop as Rprop
from metatoolkit.inner.schedules import cosine as cosine
from metatoolkit.inner.schedules import exponential as exponential
from metatoolkit.inner.schedules import multistep as multistep
from metatoolkit.inner.schedules import polynomial as polynomial
from metatoolkit.inner.schedules import warmup_linear as warmup_linear
from metatoolkit.inner.sgd import SGD as SGD
from metatoolkit.inner.torch_optimizers import from_torch as from_torch
from metatoolkit.inner.torch_optimizers import state_from_torch as state_from_torch

build = learners.build
register = learners.register
