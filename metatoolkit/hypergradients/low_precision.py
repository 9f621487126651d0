"""Whether a hypergradient survives the rounding of losses that compute in less than float32."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING

import torch

from metatoolkit.errors import AccuracyWarning, MetatoolkitError, brief
from metatoolkit.hypergradients.call_layout import Call
from metatoolkit.hypergradients.double_precision import double_precision, to_double
from metatoolkit.hypergradients.products import as_vector
from metatoolkit.state import tree_map

if TYPE_CHECKING:
    from metatoolkit.hypergradients.base import Hypergradient

_TOLERANCE = 0.1


def compared_with_double(call: Call, result: Hypergradient) -> Hypergradient:
    """Return the result of a call with its distance to what the same call gives in float64.

    Second derivatives in bfloat16 can point anywhere, and nothing else shows it: losses and
    training look as they should. Masks and all else that is drawn are the same. Cost: the call
    once more, in float64, in which autocast changes nothing, with twice the memory or more.

    Args:
        call: The call, with an estimator as it was before.
        result: What it returned.

    Returns:
        The result; its details have ``rounding_error``, the relative distance of the two, and
        ``rounding_cosine``. A distance above a tenth is an
        :class:`~metatoolkit.errors.AccuracyWarning`, and so is a problem that does not run in
        float64.
    """
    problem, name = call.problem, type(call.estimator).__name__
    types = " and ".join(sorted(str(t).removeprefix("torch.") for t in problem.coarse))
    remedy = (
        "Compute train_loss and valid_loss, or the layers that matter, in float32: leave autocast "
        "off there. mt.compare_estimators shows which estimators bear it."
    )
    coarse = set(problem.coarse)
    try:
        # What an estimator chooses by the types is chosen anew.
        problem.coarse.clear()
        with double_precision(problem):
            exact = call.estimator(
                problem,
                call.inner,
                call.state.map(to_double),
                [tree_map(to_double, batch) for batch in call.train_batches],
                tree_map(to_double, call.valid_batch),
            )
    except (MetatoolkitError, RuntimeError, TypeError) as error:
        warnings.warn(
            f"the losses compute in {types}, and how far off the hypergradient of {name} is by "
            f"that could not be measured: in float64 the call ends with {brief(error)}. {remedy}",
            AccuracyWarning,
            stacklevel=2,
        )
        return result
    finally:
        problem.coarse |= coarse
    one, other = (
        as_vector((found.gradient[key] for key in result.gradient), torch.float64, "cpu")
        for found in (result, exact)
    )
    size = other.norm()
    if not float(size):
        return result
    gap = (one - other).norm() / size
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=0)
    if float(gap) > _TOLERANCE:
        warnings.warn(
            f"the losses compute in {types}, in which the hypergradient of {name} has a relative "
            f"error of {float(gap):.2g} and a cosine of {float(cosine):.2f} to that in float64. "
            f"{remedy}",
            AccuracyWarning,
            stacklevel=2,
        )
    told = {"rounding_error": gap, "rounding_cosine": cosine}
    return dataclasses.replace(result, details={**result.details, **told})
