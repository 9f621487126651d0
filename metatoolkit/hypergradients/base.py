"""The one interface of hypergradient estimators, and the result that each returns."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metatoolkit.errors import CheckpointError, ConfigurationError, UnsupportedError
from metatoolkit.hypergradients.autograd_errors import missing_derivatives
from metatoolkit.hypergradients.call_layout import Call
from metatoolkit.hypergradients.compilation import Compile, Compiler
from metatoolkit.hypergradients.cost import Cost as Cost
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.hypergradients.finite import check_finite as check_finite
from metatoolkit.hypergradients.low_precision import compared_with_double
from metatoolkit.hypergradients.products import refuse_complex
from metatoolkit.hypergradients.replay_check import replay_checked
from metatoolkit.hypergradients.unused import NothingReached, explained
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.torch_optimizers import require_learner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.graphs import refuse_inference_mode


@dataclasses.dataclass(frozen=True)
class Hypergradient:
    """An estimate of the derivative of the outer loss in the meta-parameters.

    Attributes:
        gradient: Name to tensor, names and shapes as in ``meta.named_parameters()``.
        valid_loss: Outer loss, a scalar tensor, detached.
        state: Inner state after the steps that the estimator took, or the one it was given.
        cost: Passes, and the solver's figures where there is one.
        details: What else the estimator can tell, for instance EvoGrad's weights of candidates.
    """

    gradient: Tensors
    valid_loss: Tensor
    state: InnerState
    cost: Cost
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Traits:
    """What an estimator is, in words, for tables; F is one forward pass over a training batch.

    Attributes:
        kind: ``"exact"``: the derivative of the outer loss after the inner steps, to rounding;
            ``"iterative"``: tends to an exact derivative with the iterations; ``"approximate"``:
            has an error that no number of calls averages away; ``"stochastic"``: random, and
            unbiased for what ``computes`` names.
        computes: The quantity, in a few words.
        assumes: What must hold for it to be right, in a few words.
        passes: Cost of one call, for instance ``"12 T F"``.
        memory: Memory of one call beyond the inner state.
        paper: Authors, year and arXiv number.
    """

    kind: Literal["exact", "iterative", "approximate", "stochastic"] = "approximate"
    computes: str = "derivative of its objective"
    assumes: str = "not told"
    passes: str = "not told"
    memory: str = "not told"
    paper: str = "unpublished"


class Estimator(ABC):
    """A way to get a hypergradient; calling it leaves the problem as it was.

    Attributes:
        horizon: Number of training batches that a call takes, one per inner step.
        traits: What the estimator computes, assumes and costs; by default it is an approximate one
            of which nothing else is told.
        windows: Whether calls are windows of one inner problem, each to follow on the last.
        carries: Whether a call begins with what one before it left.
        separable: Whether a call on independent problems side by side is the mean of calls on each.
        adds_up: Whether it is their sum instead, since the mean outer loss is not differentiated.
        holds_constants: Whether what a loss detaches is a constant of the estimate, as it is of
            derivatives; not so where losses are only evaluated.
        on_average: Whether a call returns the derivative of :meth:`objective` on average alone.
        complex_meta: Whether λ may be complex.
        complex_parameters: Whether inner parameters may be.
        compared: Losses that the first call evaluates once more, to see that they can be.
        repeats_steps: Whether a call takes inner steps twice, which are then compared instead.
        compile: Whether calls are compiled as a whole, settable between calls: ``True`` for code
            that is generated, ``"cuda_graphs"`` for such that a GPU launches at once, ``"graph"``
            for PyTorch's kernels. The first of each kind runs without, the second one compiles.
        checks_rounding: Whether the first call on a problem is compared with float64 where its
            losses compute in less than float32; may be set to False where that takes too much.
        amplifies_rounding: Whether results keep few of the digits that the losses have, so that
            code which rounds otherwise would show.
    """

    compared: ClassVar[tuple[str, ...]] = ("train_loss",)
    repeats_steps: bool = False
    horizon: int = 1
    traits: Traits = Traits()
    compile: Compile = False
    checks_rounding: bool = True
    amplifies_rounding: ClassVar[bool] = False
    _compiler: Compiler | None = None
    _rounded: frozenset[str] = frozenset()  # Identities of the problems that were compared.
    _draws: Draws | None = None
    windows = carries = separable = adds_up = False
    holds_constants: bool = True
    on_average: bool = False
    complex_meta: ClassVar[bool] = False
    complex_parameters: ClassVar[bool] = True

    def __call__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Estimate the hypergradient at an inner state.

        Model, buffers, ``.grad`` fields and the global random state stay as they are. Where losses
        compute in less than float32, the first call on a problem is taken once more in float64, but
        for random estimators: ``rounding_error`` and ``rounding_cosine`` of its details; an error
        above a tenth is an :class:`~metatoolkit.errors.AccuracyWarning`.

        Args:
            problem: The bilevel problem.
            inner: Inner learner that moves θ.
            state: State to start from.
            train_batches: One training batch per inner step, :attr:`horizon` in all.
            valid_batch: Batch for the outer loss.

        Returns:
            The estimate with its cost.

        Raises:
            ConfigurationError: The number of training batches is not the horizon, or ``inner`` is
                no inner learner.
            UnusedMetaParameterError: No loss depends on any meta-parameter.
            NonFiniteError: A loss or a part of the hypergradient is NaN or infinite.
            UnsupportedError: λ is complex, or what else the estimator cannot do.
            ReplayError: A loss gives another value when it is evaluated again.
        """
        if not isinstance(train_batches, list | tuple) or len(train_batches) != self.horizon:
            listed = isinstance(train_batches, list | tuple)
            given = f"{len(train_batches)} batches" if listed else type(train_batches).__name__
            raise ConfigurationError(
                f"train_batches is {given}; {type(self).__name__} takes a list of {self.horizon}, "
                "one batch per inner step."
            )
        require_learner(inner)
        refuse_inference_mode()
        problem.check_structure()
        if not self.complex_meta:
            refuse_complex("meta-parameter", problem.meta_parameters(), type(self).__name__)
        if not self.complex_parameters:
            refuse_complex("inner parameter", state.parameters, type(self).__name__)
        state = state.detach()

        def eager() -> Hypergradient:
            new = self.checks_rounding and problem.identity not in self._rounded
            carried = self.state_dict() if new else {}
            result = self._checked(problem, inner, state, train_batches, valid_batch)
            if not new:
                return result
            self._rounded |= {problem.identity}
            if not problem.coarse or self.on_average or self._draws is not None:
                return result
            again = self.duplicate()
            again.compile = False
            again.load_state_dict(carried)
            call = Call(again, problem, inner, state, train_batches, valid_batch)
            return compared_with_double(call, result)

        if self.compile is False:
            return eager()
        self._compiler = self._compiler or Compiler()
        call = Call(self, problem, inner, state, train_batches, valid_batch)
        return self._compiler.call(call, eager)

    def _checked(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Estimate the hypergradient, with all that is checked on the way."""
        name = type(self).__name__
        try:
            checked = replay_checked(problem, inner, state, self.compared, self.repeats_steps)
            with missing_derivatives(name), checked:
                result = self.estimate(problem, inner, state, train_batches, valid_batch)
        except NothingReached as error:
            batches = (train_batches[0], valid_batch)
            raise explained(error, name, problem, inner, state, batches) from error
        check_finite(
            {"the validation loss": result.valid_loss}
            | {f"the hypergradient of {name!r}": g for name, g in result.gradient.items()}
        )
        return result

    def duplicate(self) -> Estimator:
        """Return an estimator of the same settings and state, whose calls leave this one alone.

        Functions and modules that it was made with are shared.
        """
        other = copy.copy(self)
        for name, value in vars(self).items():
            if not callable(value) and not isinstance(value, Tensor):
                setattr(other, name, copy.deepcopy(value))
        return other

    def restart(self) -> None:
        """Draw what the first calls drew, where the estimator is random; a trainer begins so."""
        if self._draws is not None:
            self._draws.restart()

    def state_dict(self) -> dict[str, Any]:
        """Return what the estimator carries from call to call, as a random one its draws do."""
        return {} if self._draws is None else self._draws.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            CheckpointError: The state belongs to another estimator.
        """
        if self._draws is not None:
            state_dict = self._draws.load_state_dict(state_dict)
        if state_dict:
            raise CheckpointError(
                f"{type(self).__name__} carries no state, but the checkpoint holds "
                f"{', '.join(state_dict)}; make the trainer with the estimator it had."
            )

    @abstractmethod
    def estimate(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
    ) -> Hypergradient:
        """Estimate the hypergradient; what :meth:`__call__` checks and returns.

        Args:
            problem: The bilevel problem.
            inner: Inner learner that moves θ.
            state: Detached state to start from.
            train_batches: One training batch per inner step.
            valid_batch: Batch for the outer loss.
        """

    @abstractmethod
    def objective(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        train_batches: Sequence[Any],
        valid_batch: Any,
        meta: Tensors,
    ) -> Tensor:
        """Return the scalar function of λ whose derivative the estimator returns.

        Only evaluations of it are needed, so that finite differences check the estimator.

        Args:
            problem: The bilevel problem.
            inner: Inner learner that moves θ.
            state: Detached state to start from.
            train_batches: One training batch per inner step.
            valid_batch: Batch for the outer loss.
            meta: Meta-parameters by name.
        """


def add_gradients(
    names: Sequence[str], *parts: Sequence[Tensor | None]
) -> dict[str, Tensor | None]:
    """Sum several lists of gradients, where ``None`` means that nothing flows.

    Args:
        names: Names of the entries.
        parts: Lists in the order of ``names``.

    Returns:
        The sums by name; ``None`` where no list holds a tensor.
    """
    total: dict[str, Tensor | None] = {}
    for name, *terms in zip(names, *parts, strict=True):
        present = [term for term in terms if term is not None]
        total[name] = sum(present[1:], start=present[0]) if present else None
    return total


def fill_gradients(
    problem: BilevelProblem, gradients: Mapping[str, Tensor | None], losses: str
) -> Tensors:
    """Turn missing gradients into zeros, unless all of them are missing.

    Args:
        problem: Problem whose meta-parameters give names and shapes.
        gradients: Gradient by name, or ``None`` where nothing flows.
        losses: Which losses were differentiated, as words for the message.

    Returns:
        One detached tensor for each meta-parameter.

    Raises:
        UnusedMetaParameterError: No meta-parameter is reached.
    """
    if all(gradient is None for gradient in gradients.values()):
        raise NothingReached(problem, losses)
    return {
        name: torch.zeros_like(live) if (g := gradients[name]) is None else g.detach()
        for name, live in problem.meta_parameters().items()
    }


def refuse_initial_state(problem: BilevelProblem, state: InnerState, who: str, why: str) -> None:
    """Raise where λ sets the initial state and a call starts there, for estimators that miss it.

    Args:
        problem: The bilevel problem.
        state: State that the call starts from.
        who: Name of the estimator, or of what it is made of.
        why: What it does instead, as a clause.

    Raises:
        UnsupportedError: λ sets parameters of this state.
    """
    if problem.begins_with_meta(state):
        raise UnsupportedError(
            f"λ sets the initial state of this problem, but {who} {why}. Use "
            "Unrolled, FirstOrder or Reptile."
        )
