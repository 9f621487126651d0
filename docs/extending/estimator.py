"""An estimator of one's own: the derivative through the last of several inner steps."""

import torch
from typing_extensions import override

from metatoolkit.hypergradients import Cost, Estimator, Hypergradient, register
from metatoolkit.hypergradients.base import fill_gradients
from metatoolkit.hypergradients.trajectory import outer_loss, roll_out, valid_key


@register()
class LastStep(Estimator):
    """The outer loss after T inner steps, differentiated through step T alone."""

    def __init__(self, steps=3):
        self.horizon = steps

    @override
    def estimate(self, problem, inner, state, train_batches, valid_batch):
        meta = problem.meta_leaves()
        state = roll_out(problem, inner, state, meta, train_batches[:-1])
        after, _ = inner.step(problem, state, meta, train_batches[-1], create_graph=True)
        with torch.enable_grad():
            at = (after.parameters, meta, after.buffers, valid_batch, valid_key(after))
            loss = problem.evaluate_valid(*at)
        found = torch.autograd.grad(loss, list(meta.values()), allow_unused=True)
        gradients = dict(zip(meta, found, strict=True))
        return Hypergradient(
            gradient=fill_gradients(problem, gradients, "train_loss and valid_loss"),
            valid_loss=loss.detach(),
            state=after.detach(),
            cost=Cost(forward=self.horizon + 1, backward=self.horizon + 1, hvp=1),
        )

    @override
    def objective(self, problem, inner, state, train_batches, valid_batch, meta):
        state = roll_out(problem, inner, state, problem.meta_parameters(), train_batches[:-1])
        after = roll_out(problem, inner, state, meta, train_batches[-1:])
        return outer_loss(problem, after, meta, valid_batch)
