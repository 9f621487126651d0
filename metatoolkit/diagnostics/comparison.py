"""Estimators side by side on one problem: error, passes, memory and time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from metatoolkit.diagnostics.comparison_display import align, draw, print_table
from metatoolkit.diagnostics.measure import count_flops, peak_memory
from metatoolkit.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    MetatoolkitError,
    check_installed,
    optional_import,
)
from metatoolkit.hypergradients.arguments import require_estimator
from metatoolkit.hypergradients.base import Cost, Estimator, Hypergradient
from metatoolkit.hypergradients.instance import ProblemInstance
from metatoolkit.hypergradients.products import as_vector
from metatoolkit.hypergradients.registry import estimators as registered
from metatoolkit.hypergradients.unrolled import Unrolled
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_COLUMNS = (
    *("cosine", "relative_error", "mean_cosine", "mean_relative_error"),
    *(field.name for field in dataclasses.fields(Cost)),
    *("flops", "peak_bytes", "seconds", "note"),
)


@dataclasses.dataclass(frozen=True)
class EstimatorComparison:
    """What :func:`compare_estimators` found.

    Attributes:
        rows: What is known of each estimator, by its name. ``cosine`` and ``relative_error``
            compare one call with the reference (averaged over the calls of a random estimator),
            ``mean_cosine`` and ``mean_relative_error`` the mean of its calls. ``forward``,
            ``backward``, ``jvp`` and ``hvp`` count passes; ``flops`` are floating-point
            operations in units of one forward pass over a training batch; ``peak_bytes`` is
            memory beyond what was there before, ``seconds`` the least time of a call.
            ``residual`` and ``iterations`` are the solver's. ``note`` tells why a row, or a part of
            one, is empty.
    """

    rows: dict[str, dict[str, Any]]

    @functools.cached_property
    def table(self) -> pandas.DataFrame:
        """The rows as a table of pandas, which the extra ``records`` installs."""
        with optional_import("the table of a comparison"):
            import pandas
        return pandas.DataFrame.from_dict(self.rows, orient="index", columns=list(_COLUMNS))

    @functools.cached_property
    def figure(self) -> Figure:
        """Error against time, operations and memory; the extra ``plots`` installs what draws."""
        return draw(self.rows)

    def __str__(self) -> str:
        """Return the rows as text."""
        body = [
            [name, *(_short(row.get(column)) for column in _COLUMNS)]
            for name, row in self.rows.items()
        ]
        return "\n".join(align([["", *_COLUMNS], *body]))


def compare_estimators(
    problem: BilevelProblem,
    inner: InnerLearner,
    estimators: Mapping[str, Estimator] | Sequence[Estimator | str],
    train_batches: Sequence[Any],
    valid_batch: Any,
    state: InnerState | None = None,
    reference: Estimator | Mapping[str, Tensor] | None = None,
    draws: int = 20,
    repeats: int = 3,
    path: str | os.PathLike[str] | None = None,
    show: bool = True,
    progress: bool = True,
) -> EstimatorComparison:
    """Call each estimator at one inner state and compare what it returns and takes.

    The problem, the state and the estimators stay as they are: each call is made on a copy of the
    estimator, so that nothing is warm-started. An estimator that does not work here gets a row
    that says why.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        estimators: Estimators by name, or a list of them that is named by classes; a text is
            the registered name of an estimator that needs no options.
        train_batches: As many training batches as the longest horizon needs; each estimator gets
            as many of the first ones as its own horizon.
        valid_batch: Batch for the outer loss.
        state: State to start from; by default ``inner.init(problem)``.
        reference: What is right: an estimator, or tensors by meta-parameter name, for instance a
            closed form; by default the exact derivative through all ``train_batches``.
        draws: Calls of an estimator whose traits say that it is random, each with another key.
        repeats: Calls that are timed.
        path: File to write the figure to, which takes the extra ``plots``.
        show: Whether to print the table.
        progress: Whether to show a progress bar.

    Returns:
        What was found; its table takes the extra ``records``, its figure ``plots``.

    Raises:
        ConfigurationError: There is no estimator, one is none, a number is below 1, or there are
            fewer batches than a horizon needs.
        DataError: The reference does not fit the meta-parameters.
        MissingDependencyError: ``path`` is given and nothing that draws is installed.

    Example:
        >>> import torch, metatoolkit as mt
        >>> problem = mt.BilevelProblem(
        ...     torch.nn.Linear(2, 1),
        ...     torch.nn.Linear(1, 1),
        ...     train_loss=lambda model, meta, batch: meta(model(batch)).square().mean(),
        ...     valid_loss=lambda model, meta, batch: (model(batch) - 1).square().mean(),
        ... )
        >>> inner, batch = mt.inner.SGD(lr=0.1), torch.randn(4, 2)
        >>> found = mt.compare_estimators(
        ...     problem, inner, ["Unrolled", "OneStep"], [batch], batch, show=False, progress=False
        ... )
        >>> round(found.rows["OneStep"]["cosine"], 3)  # one step is the whole trajectory here
        1.0
    """
    if path is not None:
        check_installed("the figure of a comparison", "matplotlib")
    named = dict(estimators) if isinstance(estimators, Mapping) else name_estimators(estimators)
    for name, estimator in named.items():
        require_estimator(f"estimators: {name!r}", estimator)
    if reference is not None and not isinstance(reference, Mapping):
        require_estimator("reference", reference)
    longest = max((estimator.horizon for estimator in named.values()), default=0)
    if not named or draws < 1 or repeats < 1 or len(train_batches) < longest:
        raise ConfigurationError(
            f"{len(named)} estimators with horizons up to {longest}, {len(train_batches)} "
            f"train_batches, draws={draws}, repeats={repeats}; at least one estimator, as many "
            "batches as the longest horizon, and numbers of at least 1 are needed."
        )
    require_learner(inner)
    start = inner.init(problem) if state is None else state.detach()
    instance = ProblemInstance(problem, inner, train_batches, valid_batch, start)
    right = _reference(instance, reference)
    first = train_batches[0]

    def forward() -> None:
        meta = problem.meta_parameters()
        with torch.no_grad():
            problem.evaluate_train(start.parameters, meta, start.buffers, first, start.key)

    # What is found out in the first pass of a loss is no part of the unit.
    forward()
    unit = count_flops(forward)
    rows: dict[str, dict[str, Any]] = {}
    for name, estimator in tqdm(
        named.items(), desc="estimators", disable=not progress, leave=False, dynamic_ncols=True
    ):
        call = Call(instance, estimator)
        try:
            rows[name] = _measure(call, right, unit, draws, repeats)
        except Exception as error:  # A row of its own, whatever it is: the others go on.
            known = isinstance(error, MetatoolkitError)
            rows[name] = {"note": str(error) if known else f"{type(error).__name__}: {error}"}
    comparison = EstimatorComparison(rows)
    if path is not None:
        comparison.figure.savefig(path, dpi=120)
    if show:
        print_table(rows)
    return comparison


def name_estimators(given: Sequence[Estimator | str]) -> dict[str, Estimator]:
    """Name estimators by their classes, with a number where a class comes again.

    Args:
        given: The estimators, or names of registered ones.

    Raises:
        UnknownNameError: No estimator of a name is registered.
        ConfigurationError: One needs options.
    """
    named: dict[str, Estimator] = {}
    for one in given:
        estimator = registered.build(one) if isinstance(one, str) else one
        base = name = type(estimator).__name__
        count = 1
        while name in named:
            count += 1
            name = f"{base} {count}"
        named[name] = estimator
    return named


def _reference(
    instance: ProblemInstance, reference: Estimator | Mapping[str, Tensor] | None
) -> Tensor:
    """Return what is right, as a vector."""
    if isinstance(reference, Mapping):
        return _in_order(instance.problem, reference)
    steps = len(instance.train_batches)
    call = Call(instance, Unrolled(steps) if reference is None else reference)
    try:
        return _in_order(instance.problem, call().gradient)
    except (MetatoolkitError, RuntimeError) as error:
        if reference is None:
            error.add_note(
                f"while the reference, Unrolled(steps={steps}), was called; give "
                "another as `reference`: an estimator that works here, or tensors by name."
            )
        raise


class Call:
    """One estimator on an instance, at the key of its state or at others.

    Args:
        instance: Problem and data, of whose training batches it gets as many as its horizon.
        estimator: The estimator, which stays as it is.
    """

    def __init__(self, instance: ProblemInstance, estimator: Estimator) -> None:
        batches = list(instance.train_batches[: estimator.horizon])
        self.instance = dataclasses.replace(instance, train_batches=batches)
        self.estimator = estimator

    def __call__(self, draw: int = 0) -> Hypergradient:
        """Call a copy of the estimator that carries nothing from calls before.

        Args:
            draw: Which key; 0 is that of the state.
        """
        state = self.instance.state
        if draw:
            state = dataclasses.replace(state, key=fold_in(state.key, draw))
        estimator = self.estimator.duplicate()
        with contextlib.suppress(CheckpointError):
            # Where it cannot begin anew, it carries nothing that lasts.
            estimator.load_state_dict({})
        return estimator(*self.instance.arguments(state=state))


def _measure(call: Call, right: Tensor, unit: int, draws: int, repeats: int) -> dict[str, Any]:
    first = call()
    problem = call.instance.problem
    given = [_in_order(problem, first.gradient)]
    if call.estimator.traits.kind == "stochastic":
        given += [_in_order(problem, call(draw).gradient) for draw in range(1, draws)]
    estimates = torch.stack(given)
    seconds = []
    for _ in range(repeats):
        _synchronize()
        started = time.perf_counter()
        call()
        _synchronize()
        seconds.append(time.perf_counter() - started)
    row = {
        **_distance(estimates, right, ""),
        **_distance(estimates.mean(0, keepdim=True), right, "mean_"),
        **dataclasses.asdict(first.cost),
        "flops": math.nan,
        "peak_bytes": math.nan,
        "seconds": min(seconds),
    }
    try:
        row["flops"] = count_flops(call) / unit if unit else math.nan
        row["peak_bytes"] = peak_memory(call)
    except Exception as error:  # It is right all the same: only what watches it does not work.
        row["note"] = f"operations and memory cannot be counted: {type(error).__name__}: {error}"
    return row


def _distance(estimates: Tensor, right: Tensor, prefix: str) -> dict[str, float]:
    cosine = torch.nn.functional.cosine_similarity(estimates, right[None], dim=1, eps=1e-300)
    tiny = torch.finfo(torch.float64).tiny
    error = (estimates - right).norm(dim=1) / right.norm().clamp_min(tiny)
    return {
        f"{prefix}cosine": float(cosine.mean()),
        f"{prefix}relative_error": float(error.mean()),
    }


def _in_order(problem: BilevelProblem, gradient: Mapping[str, Tensor]) -> Tensor:
    """Return one float64 vector in the order of the meta-parameters."""
    meta: Tensors = problem.meta_parameters()
    shapes = {name: tuple(tensor.shape) for name, tensor in meta.items()}
    given = {name: tuple(tensor.shape) for name, tensor in gradient.items()}
    if shapes != given:
        raise DataError(f"reference has the shapes {given}; the meta-parameters have {shapes}.")
    return as_vector((gradient[name].detach() for name in meta), torch.float64, "cpu")


def _short(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
