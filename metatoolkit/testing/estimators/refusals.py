"""What an estimator must refuse, and in which words."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import (
    ConfigurationError,
    NonFiniteError,
    UnsupportedError,
    UnusedMetaParameterError,
)
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.problem import BilevelProblem
from metatoolkit.testing import bank
from metatoolkit.testing.conformance import Make, Suite
from metatoolkit.testing.expectations import Inapplicable, Unmet, expect, expect_error

SUITE: Suite[Estimator] = Suite("estimator", Estimator)


def refuses(estimator: Estimator, instance: ProblemInstance) -> bool:
    """Return whether an estimator says that a problem is none for it.

    Args:
        estimator: The estimator.
        instance: The problem.
    """
    try:
        instance.call(estimator)
    except UnsupportedError:
        return True
    return False


@SUITE.check()
def a_meta_module_that_nothing_depends_on_is_an_error(make: Make[Estimator]) -> None:
    """There is no hypergradient to follow, and zeros would hide it."""
    instance = bank.small_net()
    loss = instance.problem.valid_loss
    problem = BilevelProblem(instance.problem.model, bank.Value(1.0), loss, loss)
    instance = dataclasses.replace(instance, problem=problem)
    with expect_error((UnusedMetaParameterError, UnsupportedError), r"value|meta"):
        instance.call(make())


@SUITE.check(where=("train", "valid"), value=(math.nan, math.inf))
def non_finite_losses_are_errors_and_never_zeros(
    make: Make[Estimator], where: str, value: float
) -> None:
    """A loss that is NaN or infinite is told."""
    instance = bank.ridge()
    refused = refuses(make(), instance)
    bad = [tuple(t * value for t in batch) for batch in instance.train_batches]
    changed = {"train_batches": bad} if where == "train" else {"valid_batch": bad[0]}
    instance = dataclasses.replace(instance, **changed)
    with expect_error(NonFiniteError, r"not finite|is nan|is inf|NaN", refused):
        instance.call(make())


@SUITE.check()
def a_non_finite_hypergradient_names_its_parameter(make: Make[Estimator]) -> None:
    """An infinite slope of a finite loss is told with the name of the meta-parameter."""
    if not make().holds_constants:
        raise Inapplicable("evaluations alone see values, and these are finite")
    instance = bank.tied()
    refused = refuses(make(), instance)
    problem = instance.problem
    with torch.no_grad():
        dict(problem.meta.named_parameters())["direct"][0] = -1.0

    def valid_loss(model: Any, meta: Any, batch: Any) -> Tensor:
        # The root has an infinite slope at zero, where its value is finite.
        return problem.valid_loss(model, meta, batch) + (meta.direct + 1).sqrt().sum()

    bad = BilevelProblem(problem.model, problem.meta, problem.train_loss, valid_loss)
    with expect_error(NonFiniteError, "direct", refused):
        dataclasses.replace(instance, problem=bad).call(make())


@SUITE.check()
def batches_must_be_as_many_as_the_horizon(make: Make[Estimator]) -> None:
    """None, too many, or no list of batches is told."""
    instance = bank.ridge()
    estimator = make()
    problem, inner, state, batches, valid_batch = instance.arguments()
    for given in ([], batches * (estimator.horizon + 1), batches[0][0]):
        with expect_error(ConfigurationError, "train_batches is"):
            estimator(problem, inner, state, given, valid_batch)


@SUITE.check()
def a_wrong_batch_shape_tells_the_shapes(make: Make[Estimator]) -> None:
    """An error of PyTorch inside a loss goes on, with a note of the loss and its batch."""
    instance = bank.small_net()
    refused = refuses(make(), instance)
    inputs, targets = instance.train_batches[0]
    bad = dataclasses.replace(instance, train_batches=[(inputs[:, :4], targets)])
    wanted = "a RuntimeError with a note of train_loss and its batch, (10, 4) float64"
    try:
        bad.call(make())
    except RuntimeError as error:
        if refused and isinstance(error, UnsupportedError):
            raise
        told = "".join([str(error), *getattr(error, "__notes__", [])])
        expect("(10, 4) float64" in told and "train_loss" in told, wanted, told)
    else:
        raise Unmet(wanted, "no error")
