"""Whether a loss gives the same value when it is evaluated again: estimators count on it.

A hypergradient puts evaluations together that must be those of one function. What an evaluation
does not rewind makes it another function each time: a difference of two then tells of the drift
and not of λ.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ReplayError
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels, only_math
from metatoolkit.hypergradients.equal_losses import require_equal
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_own
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.graphs import kept_graph_error

_SECOND_TIME = "backward through the graph a second time"
_BLOCK = 512
"""Losses that are kept together."""
Arguments = tuple[Tensors, Tensors, Tensors, Any, int]
"""Parameters, meta-parameters, buffers, batch and key of an evaluation."""
_left_out: ContextVar[bool] = ContextVar("left_out", default=False)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Leave the checks out, so that a call costs what each but the first one does.

    Yields:
        Nothing.
    """
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def replay_checked(
    problem: BilevelProblem,
    inner: InnerLearner,
    state: InnerState,
    kinds: Sequence[str],
    repeats_steps: bool,
) -> contextlib.AbstractContextManager[None]:
    """Return a context that compares losses which are evaluated again with the first.

    Its body is a call of an estimator. Where that takes steps twice, all of them are compared. Else
    the first evaluation at the state that is given is repeated after the body, when all that it
    evaluated has left its traces; where no evaluation is at that state, the second one of that loss
    is repeated at once. That is done once for each loss and mode of the modules, and not while a
    call is measured.

    Args:
        problem: The bilevel problem.
        inner: Inner learner.
        state: State that the call starts from.
        kinds: Losses to look at, ``"train_loss"`` and ``"valid_loss"``.
        repeats_steps: Whether the body takes inner steps twice.

    Raises:
        ReplayError: A loss gave two values.
    """
    # Then a key tells a step apart, unless a step of this learner evaluates the loss several times.
    repeats_steps &= not any(is_own(inner, InnerLearner, part) for part in ("step", "gradients"))
    due = [kind for kind in kinds if repeats_steps or is_due(problem, kind)]
    if not due or problem.watch is not None or _left_out.get():
        return _NoGraphOfBefore()
    return _watched(problem, _StepWatch(problem) if repeats_steps else _Watch(state, due))


@contextlib.contextmanager
def _watched(problem: BilevelProblem, watch: _StepWatch | _Watch) -> Iterator[None]:
    problem.watch = watch
    try:
        with _NoGraphOfBefore():
            yield
    except Exception as error:
        problem.watch = None
        # What fails because of the drift is told as such.
        watch.compare(error)
        raise
    finally:
        problem.watch = None
    watch.compare()
    for kind in watch.compared:
        mark_checked(problem, kind)


class _NoGraphOfBefore:
    """Says what it means that a graph is gone which an evaluation still refers to."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and _SECOND_TIME in str(error):
            raise kept_graph_error() from error


def is_due(problem: BilevelProblem, kind: str) -> bool:
    """Return whether a loss is yet to be checked in the present mode of the modules.

    Args:
        problem: The bilevel problem.
        kind: ``"train_loss"`` or ``"valid_loss"``.
    """
    return not _left_out.get() and _signature(problem, kind) not in problem.replayed


def mark_checked(problem: BilevelProblem, kind: str) -> None:
    """Note that a loss was checked in the present mode of the modules.

    Args:
        problem: The bilevel problem.
        kind: ``"train_loss"`` or ``"valid_loss"``.
    """
    if not _left_out.get():
        # The loss is kept, so that no other one gets its identity.
        problem.replayed[_signature(problem, kind)] = getattr(problem, kind)


def _signature(problem: BilevelProblem, kind: str) -> tuple[Any, ...]:
    return kind, id(getattr(problem, kind)), problem.modes()


def repeat_once(problem: BilevelProblem, first: Tensor, evaluate: Callable[[], Tensor]) -> None:
    """Evaluate the training loss once more and compare, unless that has been done before.

    Args:
        problem: The bilevel problem.
        first: The loss as it was.
        evaluate: Evaluates it again.

    Raises:
        ReplayError: The loss gave two values.
    """
    if is_due(problem, "train_loss"):
        require_equal(problem, "train_loss", [first], [evaluate()], evaluate)
        mark_checked(problem, "train_loss")


def evaluate_again(problem: BilevelProblem, kind: str, arguments: Arguments) -> Tensor:
    """Return a loss, detached, by the problem's own method.

    What replaces that method in one problem, to look on, sees the passes of the estimator alone.

    Args:
        problem: The bilevel problem.
        kind: ``"train_loss"`` or ``"valid_loss"``.
        arguments: Those of the evaluation.
    """
    if kind == "train_loss":
        return type(problem).evaluate_train(problem, *arguments)[0].detach()
    return type(problem).evaluate_valid(problem, *arguments).detach()


class _Repeated:
    """One evaluation with all that makes it the same when it is repeated."""

    def __init__(
        self, problem: BilevelProblem, kind: str, arguments: Arguments, value: Tensor
    ) -> None:
        parameters, meta, *rest = arguments
        self.point = _point(arguments)
        self._problem = problem
        self._kind = kind
        self._arguments: Arguments = (_leaves(parameters), _leaves(meta), *rest)
        self._value = value.detach()
        self._graph = torch.is_grad_enabled()
        self._math = only_math()

    def compare(self, again: Tensor | None = None) -> None:
        """Compare with a value, for which the loss is evaluated once more where it is not given.

        Args:
            again: The loss, evaluated again.
        """
        if again is None:
            again = self._again()
        require_equal(self._problem, self._kind, [self._value], [again], self.evaluate)

    def _again(self) -> Tensor:
        kernels = double_backward_kernels() if self._math else contextlib.nullcontext()
        with torch.set_grad_enabled(self._graph), kernels:
            return self.evaluate()

    def evaluate(self) -> Tensor:
        """Return the loss, detached."""
        return evaluate_again(self._problem, self._kind, self._arguments)


class _Watch:
    """Sees the evaluations of a call, and keeps of each loss the one that is repeated.

    Attributes:
        compared: Losses that were evaluated again.
    """

    def __init__(self, state: InnerState, kinds: Sequence[str]) -> None:
        self._thread = threading.get_ident()
        self._places = _places(state.parameters)
        self._counts = dict.fromkeys(kinds, 0)
        self._kept: dict[str, _Repeated] = {}
        self._again: dict[str, Tensor] = {}
        self.compared: set[str] = set()

    def __call__(
        self, problem: BilevelProblem, kind: str, arguments: Arguments, value: Tensor
    ) -> None:
        if kind not in self._counts or threading.get_ident() != self._thread:
            return
        self._counts[kind] += 1
        if kind in self._kept:
            # The same point again, as where two trajectories begin; it tells nothing at once.
            if self._counts[kind] > 2 and _point(arguments) == self._kept[kind].point:
                self._again.setdefault(kind, value.detach())
            return
        if _places(arguments[0]) == self._places:
            self._kept[kind] = _Repeated(problem, kind, arguments, value)
        elif self._counts[kind] == 2:
            problem.watch = None
            _Repeated(problem, kind, arguments, value).compare()
            problem.watch = self
            self.compared.add(kind)

    def compare(self, cause: Exception | None = None) -> None:
        """Repeat what was kept, and compare.

        Args:
            cause: Error that the call ended with, if it did.

        Raises:
            ReplayError: A loss gave two values.
        """
        for kind, repeated in self._kept.items():
            self.compared.add(kind)
            try:
                repeated.compare(self._again.get(kind))
            except ReplayError as error:
                raise error from cause


class _StepWatch:
    """Sees the evaluations of steps that are taken twice; a key tells which are the same.

    Losses are kept in blocks, and compared when there are many: the memory of ten thousand small
    tensors, and what lies between them, would be more than that of the steps.

    Attributes:
        compared: Losses of which there were such.
    """

    def __init__(self, problem: BilevelProblem) -> None:
        self._thread = threading.get_ident()
        self._problem = problem
        self._rows: dict[int, int] = {}
        self._blocks: list[Tensor] = []
        self._pairs: list[tuple[int, Tensor]] = []
        self._start: _Repeated | None = None
        self.compared: set[str] = set()

    def __call__(
        self, problem: BilevelProblem, kind: str, arguments: Arguments, value: Tensor
    ) -> None:
        if kind != "train_loss" or threading.get_ident() != self._thread:
            return
        key, value = arguments[-1], value.detach()
        if key in self._rows:
            self._pairs.append((self._rows[key], value))
            self.compared.add(kind)
            if len(self._pairs) == _BLOCK:
                problem.watch = None
                self.compare()
                problem.watch = self
            return
        row = self._rows[key] = len(self._rows)
        if row % _BLOCK == 0:
            self._blocks.append(value.new_empty(_BLOCK))
        self._blocks[-1][row % _BLOCK] = value
        # The first one alone: it is at the state that the caller holds anyway.
        self._start = self._start or _Repeated(problem, kind, arguments, value)

    def compare(self, cause: Exception | None = None) -> None:
        """Compare the losses of steps that were taken twice, and have not been compared.

        Args:
            cause: Error that the call ended with, if it did.

        Raises:
            ReplayError: A loss gave two values.
        """
        if not self._pairs or self._start is None:
            return
        first = [self._blocks[row // _BLOCK][row % _BLOCK] for row, _ in self._pairs]
        again = [value for _, value in self._pairs]
        self._pairs = []
        evaluate = self._start.evaluate
        try:
            require_equal(self._problem, "train_loss", first, again, evaluate, True)
        except ReplayError as error:
            raise error from cause


def _point(arguments: Arguments) -> tuple[Any, ...]:
    parameters, meta, _, batch, key = arguments
    return _places(parameters), _places(meta), id(batch), key


def _places(parameters: Tensors) -> list[int]:
    return [tensor.untyped_storage()._cdata for tensor in parameters.values()]


def _leaves(tensors: Tensors) -> Tensors:
    return {n: t.detach().requires_grad_(t.requires_grad) for n, t in tensors.items()}
