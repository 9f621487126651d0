"""Types of less precision, and λ in another type than θ."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from metatoolkit.errors import AccuracyWarning, ConfigurationError, UnusedMetaParameterError, brief
from metatoolkit.hypergradients.base import Estimator, Hypergradient
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.state import tree_map
from metatoolkit.testing import bank
from metatoolkit.testing.conformance import Make, Suite
from metatoolkit.testing.estimators.calls import build, call
from metatoolkit.testing.expectations import Inapplicable, expect

SUITE: Suite[Estimator] = Suite("estimator", Estimator)

_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.3}


def converted(instance: ProblemInstance, theta: torch.dtype, meta: torch.dtype) -> ProblemInstance:
    """Return an instance in other types; its modules change in place.

    Args:
        instance: The instance.
        theta: Type of the model and of the batches.
        meta: Type of the meta-parameters.
    """

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(theta) if tensor.is_floating_point() else tensor

    instance.problem.model.to(theta)
    instance.problem.meta.to(meta)
    batches = [tree_map(cast, batch) for batch in instance.train_batches]
    valid_batch = tree_map(cast, instance.valid_batch)
    return dataclasses.replace(instance, train_batches=batches, valid_batch=valid_batch)


@SUITE.check(problem=bank.CONFORMANCE, dtype=(torch.float32, torch.bfloat16))
def lower_precision_points_the_same_way(
    make: Make[Estimator], problem: str, dtype: torch.dtype
) -> None:
    """The gradient has the type of λ, and is that of float64 but for rounding.

    An estimator may say that its settings are none for bfloat16, as those of small perturbations.
    """
    exact = call(build(problem), make(), problem)
    low = converted(build(problem), dtype, dtype)
    try:
        with warnings.catch_warnings():
            # How far off it is, is measured below.
            warnings.simplefilter("ignore", AccuracyWarning)
            result = call(low, make(), problem)
    except (ConfigurationError, UnusedMetaParameterError) as error:
        if dtype != torch.bfloat16 or "bfloat16" not in str(error):
            raise
        raise Inapplicable(f"none for bfloat16: {brief(error)}") from None
    _expect_types(result.gradient.values(), dtype, "gradients")
    _expect_near(make(), exact, result, _LIMITS[dtype])


@SUITE.check(
    problem=("ridge", "learned_rates", "tied", "initialized"),
    theta=(torch.float32, torch.float64),
)
def meta_parameters_of_another_type_than_the_model(
    make: Make[Estimator], problem: str, theta: torch.dtype
) -> None:
    """With θ in float32 and λ in float64, or the other way round, each keeps its type."""
    meta = torch.float64 if theta == torch.float32 else torch.float32
    exact = call(build(problem), make(), problem)
    result = call(converted(build(problem), theta, meta), make(), problem)
    _expect_types(result.gradient.values(), meta, "gradients")
    _expect_types(result.state.tensors(), theta, "tensors of the state")
    _expect_near(make(), exact, result, 1e-3)


def _expect_types(tensors: object, dtype: torch.dtype, what: str) -> None:
    found = {tensor.dtype for tensor in tensors}  # type: ignore[attr-defined]
    expect(found == {dtype}, f"{what} in {dtype}", found)


def _expect_near(
    estimator: Estimator, exact: Hypergradient, result: Hypergradient, limit: float
) -> None:
    if estimator.traits.kind == "stochastic":
        return  # Noise is drawn anew in each type.
    one = torch.cat([g.flatten() for g in exact.gradient.values()])
    other = torch.cat([g.flatten().double() for g in result.gradient.values()])
    off, allowed = float((one - other).norm()), limit * (float(one.norm()) + 1e-2)
    expect(
        off <= allowed,
        f"a distance of at most {allowed:.2e} to the gradient in float64 (of an estimator whose "
        "traits do not say that it is stochastic)",
        f"{off:.2e}",
    )
