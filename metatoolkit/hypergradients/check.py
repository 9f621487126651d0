"""Checks of an estimator against central finite differences in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, tree_map


@dataclasses.dataclass(frozen=True)
class HypergradientCheck:
    """How an estimate compares with finite differences.

    Attributes:
        relative_error: Norm of the difference over the norm of the finite differences.
        cosine: Cosine of the angle between the two.
        estimate: Estimated entries, a 1-d float64 tensor.
        reference: Finite differences of the same entries.
    """

    relative_error: float
    cosine: float
    estimate: Tensor
    reference: Tensor

    def __str__(self) -> str:
        """Return both figures in one line."""
        return (
            f"relative error {self.relative_error:.2e}, cosine {self.cosine:.6f} "
            f"({self.reference.numel()} meta-parameters)"
        )


def check_hypergradient(
    problem: BilevelProblem,
    inner: InnerLearner,
    estimator: Estimator,
    train_batches: Sequence[Any],
    valid_batch: Any,
    state: InnerState | None = None,
    reference: Estimator | None = None,
    coordinates: int | None = 256,
    epsilon: float = 1e-5,
    seed: int = 0,
) -> HypergradientCheck:
    """Compare an estimator with central finite differences of its objective, in float64.

    Everything runs on float64 copies: the problem stays as it is. The objective is evaluated
    twice per meta-parameter.

    Args:
        problem: The bilevel problem, in any floating-point type.
        inner: Inner learner.
        estimator: Estimator to check.
        train_batches: One training batch per inner step.
        valid_batch: Batch for the outer loss.
        state: State to start from; by default ``inner.init(problem)``.
        reference: Estimator whose objective is differenced, for instance ``Unrolled()`` to see
            how far an approximate one is from the exact one; by default the estimator itself.
        coordinates: Largest number of meta-parameters to compare, drawn at random where there
            are more; ``None`` for all.
        epsilon: Step of the differences, relative to max(1, abs λ).
        seed: Seed of that draw.

    Returns:
        Relative error and cosine, with both vectors.

    Raises:
        ConfigurationError: ``epsilon`` or ``coordinates`` is not above 0.
    """
    if epsilon <= 0 or (coordinates is not None and coordinates < 1):
        raise ConfigurationError(
            f"epsilon is {epsilon} and coordinates {coordinates}; both must be above 0."
        )
    inner.check(problem)
    # One copy of all three keeps a hyper-parameter that is a meta-parameter the same tensor.
    problem, inner, estimator, reference = copy.deepcopy(
        (problem, inner, estimator, reference or estimator)
    )
    problem.model.double()
    problem.meta.double()
    double = inner.init(problem) if state is None else state.clone().to(torch.float64)
    train_batches = [tree_map(_to_double, batch) for batch in train_batches]
    valid_batch = tree_map(_to_double, valid_batch)

    result = estimator(problem, inner, double, train_batches, valid_batch)
    estimate = torch.cat([gradient.flatten() for gradient in result.gradient.values()])
    meta = {name: p.detach().clone() for name, p in problem.meta_parameters().items()}
    entries = [(name, i) for name, tensor in meta.items() for i in range(tensor.numel())]
    chosen = torch.arange(len(entries))
    if coordinates is not None and len(entries) > coordinates:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(entries), generator=generator)[:coordinates].sort().values

    def objective(name: str, index: int, shift: float) -> float:
        moved = meta[name].clone()
        moved.view(-1)[index] += shift
        return float(
            reference.objective(
                problem, inner, double, train_batches, valid_batch, meta | {name: moved}
            )
        )

    differences = []
    for position in chosen.tolist():
        name, index = entries[position]
        shift = epsilon * max(1.0, abs(float(meta[name].view(-1)[index])))
        slope = objective(name, index, shift) - objective(name, index, -shift)
        differences.append(slope / (2 * shift))
    expected = torch.tensor(differences, dtype=torch.float64)
    given = estimate.cpu()[chosen]
    norm = max(float(expected.norm()), torch.finfo(torch.float64).tiny)
    cosine = torch.nn.functional.cosine_similarity(given, expected, dim=0, eps=1e-300)
    return HypergradientCheck(
        relative_error=float((given - expected).norm()) / norm,
        cosine=float(cosine),
        estimate=given,
        reference=expected,
    )


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
