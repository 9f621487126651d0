"""Inner learners: how the inner parameters move.

Example:
    >>> import torch, metatoolkit as mt
    >>> model, meta = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 1.0)
    >>> loss = lambda model, meta, batch: (model.weight - batch).square().sum()
    >>> problem = mt.BilevelProblem(model, meta, train_loss=loss, valid_loss=loss)
    >>> inner = mt.inner.build("SGD", lr=0.1)
    >>> state = inner.init(problem)
    >>> state, loss = inner.step(problem, state, problem.meta_parameters(), 3.0)
    >>> state.parameters["weight"], state.step  # the model itself stays as it was
    (tensor([[1.4000]]), 1)
"""

from metatoolkit.inner.adadelta import Adadelta as Adadelta
from metatoolkit.inner.adagrad import Adagrad as Adagrad
from metatoolkit.inner.adam import Adam as Adam
from metatoolkit.inner.adamax import Adamax as Adamax
from metatoolkit.inner.adamw import AdamW as AdamW
from metatoolkit.inner.aruba import ARUBA as ARUBA
from metatoolkit.inner.asgd import ASGD as ASGD
from metatoolkit.inner.base import InnerLearner as InnerLearner
from metatoolkit.inner.clipped import Clipped as Clipped
from metatoolkit.inner.combined import Combined as Combined
from metatoolkit.inner.gradient_flow import GradientFlow as GradientFlow
from metatoolkit.inner.lion import Lion as Lion
from metatoolkit.inner.muon import Muon as Muon
from metatoolkit.inner.nadam import NAdam as NAdam
from metatoolkit.inner.radam import RAdam as RAdam
from metatoolkit.inner.registry import learners as learners
from metatoolkit.inner.reversible_momentum import ReversibleMomentum as ReversibleMomentum
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
from metatoolkit.inner.warped import Warped as Warped

build = learners.build
register = learners.register
