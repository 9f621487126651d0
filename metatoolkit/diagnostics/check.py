"""Checks of an estimator against central finite differences in float64."""

from __future__ import annotations

import bisect
import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metatoolkit.diagnostics.checked_objective import CheckedObjective
from metatoolkit.diagnostics.numerical_gradient import NumericalGradient, numerical_gradient
from metatoolkit.errors import (
    ConfigurationError,
    MetatoolkitError,
    NonFiniteError,
    UnsupportedError,
    brief,
)
from metatoolkit.hypergradients.arguments import require_estimator
from metatoolkit.hypergradients.base import Estimator
from metatoolkit.hypergradients.double_precision import double_precision, to_double
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.hypergradients.products import as_vector
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors, tree_map

_TOLERANCE = 1e-3
_REPEATABLE = 1e-6


@dataclasses.dataclass(frozen=True)
class HypergradientCheck:
    """How an estimate compares with finite differences.

    Attributes:
        relative_error: Norm of the difference over the norm of the finite differences.
        cosine: Cosine of the angle between the two.
        estimate: Estimated entries, a 1-d float64 tensor.
        reference: Finite differences of the same entries.
        reference_error: How far the finite differences may be off themselves, by rounding, which
            is measured, and by the length of the step; relative to the larger of both norms.
        note: What stands in the way of a better judgment, if anything does.
        conclusive: Whether a large difference says that the estimate is wrong.
    """

    relative_error: float
    cosine: float
    estimate: Tensor
    reference: Tensor
    reference_error: float = 0.0
    note: str = ""
    conclusive: bool = True

    @property
    def verdict(self) -> Literal["agrees", "differs", "cannot tell"]:
        """Whether the estimate is the derivative, to 1e-3 of the larger norm.

        It cannot be told where the finite differences are too far off themselves; and of a random
        estimator, or where a difference shows more than a derivative, from an error that is large.
        """
        norm = max(float(self.estimate.norm()), float(self.reference.norm()))
        off = float((self.estimate - self.reference).norm())
        if off <= _TOLERANCE * norm:
            return "agrees"
        if not self.conclusive or not off > (_TOLERANCE + 3 * self.reference_error) * norm:
            return "cannot tell"
        return "differs"

    def __str__(self) -> str:
        """Return the figures and the verdict in one line, and the note in another."""
        line = (
            f"relative error {self.relative_error:.2e}, cosine {self.cosine:.6f} "
            f"({self.reference.numel()} meta-parameters, finite differences good to "
            f"{self.reference_error:.0e}): {self.verdict}"
        )
        return f"{line}\n{self.note}" if self.note else line


def check_hypergradient(
    problem: BilevelProblem,
    inner: InnerLearner,
    estimator: Estimator,
    train_batches: Sequence[Any],
    valid_batch: Any,
    state: InnerState | None = None,
    reference: Estimator | None = None,
    coordinates: int | None = 256,
    epsilon: float | None = None,
    seed: int = 0,
) -> HypergradientCheck:
    """Compare an estimator with central finite differences, in float64.

    What is differenced is the estimator's objective: the function of λ whose derivative it claims
    to return. An exact one has no say in it: the inner steps are taken anew with the
    meta-parameters in the module moved themselves, so that an estimate that misses a path of λ is
    found out. What a loss detaches and the buffers that a step leaves are held, as a derivative
    has it.

    Model and ``meta`` hold their values in float64 meanwhile, losses compute in it also where they
    ask for less, and everything is put back. What cannot run in float64 is checked in the types it
    has, with the error of the differences measured and told.

    Args:
        problem: The bilevel problem, in any floating-point type.
        inner: Inner learner.
        estimator: Estimator to check; what it carries from call to call stays as it is.
        train_batches: One training batch per inner step.
        valid_batch: Batch for the outer loss.
        state: State to start from; by default ``inner.init(problem)``.
        reference: Estimator whose objective is differenced, for instance ``Unrolled()`` to see
            how far an approximate one is from the exact one; by default the estimator itself.
        coordinates: Largest number of meta-parameters to compare, drawn at random where there
            are more; ``None`` for all.
        epsilon: Step of the differences, relative to max(1, abs λ); by default chosen by the
            rounding that the objective is found to have.
        seed: Seed of that draw.

    Returns:
        Relative error and cosine, with both vectors and the verdict. The objective is evaluated
        twice per meta-parameter, and about a dozen times more.

    Raises:
        ConfigurationError: ``epsilon`` or ``coordinates`` is not above 0, an estimator is none,
            or the reference takes another number of batches.
        NonFiniteError: The objective is not finite near λ.
        UnsupportedError: λ is complex.

    Example:
        >>> import torch, metatoolkit as mt
        >>> model, meta = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)
        >>> problem = mt.BilevelProblem(
        ...     model,
        ...     meta,
        ...     train_loss=lambda model, meta, batch: meta(model(batch)).square().mean(),
        ...     valid_loss=lambda model, meta, batch: (model(batch) - 1).square().mean(),
        ... )
        >>> inner, batch = mt.inner.SGD(lr=0.1), torch.randn(4, 2)
        >>> estimator = mt.hypergradients.Unrolled(steps=1)
        >>> mt.check_hypergradient(problem, inner, estimator, [batch], batch).verdict
        'agrees'
    """
    if (epsilon is not None and epsilon <= 0) or (coordinates is not None and coordinates < 1):
        raise ConfigurationError(
            f"epsilon is {epsilon} and coordinates {coordinates}; both must be above 0."
        )
    require_learner(inner)
    require_estimator("estimator", estimator)
    if reference is not None:
        require_estimator("reference", reference)
    if any(tensor.is_complex() for tensor in problem.meta_parameters().values()):
        raise UnsupportedError(
            "a meta-parameter is complex, which finite differences along its real part alone do "
            "not check; make real and imaginary part meta-parameters of their own."
        )

    if reference is not None and len(train_batches) != reference.horizon:
        raise ConfigurationError(
            f"train_batches has {len(train_batches)} batches; the reference, "
            f"{type(reference).__name__}, takes {reference.horizon}."
        )

    def run(change: Callable[[Tensor], Tensor]) -> HypergradientCheck:
        start = inner.init(problem) if state is None else state.detach().map(change)
        called = estimator.duplicate()
        differenced = called if reference is None else reference.duplicate()
        batches = [tree_map(change, batch) for batch in train_batches]
        valid = tree_map(change, valid_batch)
        instance = ProblemInstance(problem, inner, batches, valid, start)
        return _compare(called, differenced, instance, coordinates, epsilon, seed)

    try:
        with double_precision(problem):
            return run(to_double)
    except MetatoolkitError:
        raise
    except (RuntimeError, TypeError) as error:
        why = brief(error)
    # In the types it has, then; where that fails, too, its error is the one to see.
    result = run(Tensor.detach)
    note = f"the problem does not run in float64 ({why}) and was checked in the types it has"
    return dataclasses.replace(result, note="; ".join(filter(None, (note, result.note))))


def _compare(
    estimator: Estimator,
    reference: Estimator,
    instance: ProblemInstance,
    coordinates: int | None,
    epsilon: float | None,
    seed: int,
) -> HypergradientCheck:
    """Compare a call with the differences of an objective, all in the types that it finds."""
    meta = instance.problem.meta_parameters()
    gradient = estimator(*instance.arguments()).gradient
    estimate = as_vector((gradient[name] for name in meta), torch.float64, "cpu")
    chosen: Sequence[int] = range(len(estimate))
    if coordinates is not None and len(chosen) > coordinates:
        chosen = sorted(random.Random(seed).sample(range(len(estimate)), coordinates))
    given, places = estimate[list(chosen)], _places(meta, chosen)

    def difference(holds: bool) -> tuple[NumericalGradient, str]:
        objective = CheckedObjective(instance, reference, holds)
        return _difference(objective, places, given, epsilon, seed)

    notes: list[str] = []
    conclusive = not estimator.on_average
    try:
        found, note = difference(reference.holds_constants)
    except UnsupportedError as error:
        if not reference.holds_constants:
            raise
        # Also where that is no matter of what is held: the error then comes again.
        found, note = difference(False)
        conclusive = False
        notes.append(f"a difference may show more than a derivative here: {brief(error)}")
    expected = found.values
    notes.append(note)
    if not bool(given.any()) and not bool(expected.any()):
        notes.append("both vectors are zero: these meta-parameters move nothing here")
    if estimator.on_average:
        notes.append(
            f"a call of {type(estimator).__name__} is right on average alone; compare_estimators "
            "averages over draws"
        )
    tiny = torch.finfo(torch.float64).tiny
    norm, larger = float(expected.norm()), max(float(expected.norm()), float(given.norm()))
    cosine = torch.nn.functional.cosine_similarity(given, expected, dim=0, eps=1e-300)
    return HypergradientCheck(
        relative_error=float((given - expected).norm()) / max(norm, tiny),
        cosine=float(cosine),
        estimate=given,
        reference=expected,
        reference_error=found.error / larger if larger > 0 else 0.0,
        note="; ".join(filter(None, notes)),
        conclusive=conclusive,
    )


def _places(meta: Tensors, chosen: Sequence[int]) -> list[tuple[str, int]]:
    """Return name and index of entries by their places among all, in order."""
    waiting, places, begin = list(chosen), [], 0
    for name, tensor in meta.items():
        inside = bisect.bisect_left(waiting, begin + tensor.numel())
        places += [(name, position - begin) for position in waiting[:inside]]
        waiting, begin = waiting[inside:], begin + tensor.numel()
    return places


def _difference(
    objective: CheckedObjective,
    places: list[tuple[str, int]],
    given: Tensor,
    epsilon: float | None,
    seed: int,
) -> tuple[NumericalGradient, str]:
    """Difference an objective along coordinates, and say what makes that worthless."""
    center = objective.record()
    again = objective.present()

    def shifted(place: int, shift: float) -> float:
        name, index = places[place]
        return objective.shifted(name, index, shift)

    found = numerical_gradient(
        shifted,
        lambda shift: objective.along(shift, seed),
        center,
        [objective.size(*place) for place in places],
        given,
        epsilon,
    )
    finite = torch.isfinite(found.values)
    if not bool(finite.all()):
        name, index = places[int((~finite).nonzero()[0])]
        raise NonFiniteError(
            f"the objective is not finite where entry {index} of {name!r} is moved a little, so "
            "that nothing can be compared; check at another λ, or with a smaller epsilon."
        )
    if abs(again - center) <= _REPEATABLE * max(abs(center), float(found.values.norm())):
        return found, ""
    return dataclasses.replace(found, error=float("inf")), (
        f"two evaluations at the same λ differ ({center:.6g} and {again:.6g}), so that the "
        "differences tell nothing: a loss depends on what is not rewound"
    )
