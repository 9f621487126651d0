"""Trainers over the problem bank, and what tests compare of them."""

import copy

import torch

import metatoolkit as mt
from metatoolkit.hypergradients import Unrolled


def trainer_of(case, estimator="unrolled", lr=0.01, **options):
    if estimator == "unrolled":
        estimator = Unrolled(1)
    # What a random one draws next goes on from call to call.
    estimator, optimizer = copy.deepcopy(estimator), None
    if estimator is not None:
        optimizer = torch.optim.SGD(case.problem.meta.parameters(), lr=lr)
    return mt.MetaTrainer(case.problem, case.inner, estimator, optimizer, **options)


def fit(trainer, case, steps, **options):
    options.setdefault("progress", False)
    return trainer.fit(case.train_batches, [case.valid_batch], steps, **options)


def tensors_of(problem):
    return [*problem.model.state_dict().values(), *problem.meta.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Counted:
    """Batches with a place of their own."""

    def __init__(self, batches):
        self.batches, self.place = batches, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        return self.batches[(self.place - 1) % len(self.batches)]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, saved):
        self.place = saved["place"]
