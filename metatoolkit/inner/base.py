"""The one interface of inner learners: a pure map from an inner state to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from metatoolkit.errors import UnsupportedError
from metatoolkit.inner.evaluated import Evaluated
from metatoolkit.inner.groups import Group, check_groups
from metatoolkit.inner.hyperparameters import (
    Hyperparameter,
    check_values,
    checked_groups,
    hyperparameters_at,
)
from metatoolkit.inner.loss_gradients import loss_gradients
from metatoolkit.inner.slots import refuse_complex, slots_of
from metatoolkit.inner.traits import tells_sensitivity
from metatoolkit.inner.updates import updated_state
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState, Tensors, with_leaves, without_graph
from metatoolkit.stateless.backward import gradients_recorded


class InnerLearner(ABC):
    """A gradient-based inner learner: θ and its optimizer state after one more batch.

    Every hyper-parameter may be a number; a tensor, which is λ where it is one of the parameters
    of ``meta``, and a constant where it requires no gradient; or a function of the module that is
    passed, ``(meta, step) -> number, tensor that expands to a parameter, or mapping from names of
    inner parameters to these``, as :meth:`metatoolkit.metaparameters.LearningRates.at`.

    Args:
        hyperparameters: Values by name for all parameters.
        groups: Exceptions, each a mapping as in torch.optim, with ``"params"`` (parameters of the
            model, or name patterns as in :mod:`fnmatch`) and the hyper-parameters that differ for
            these; the first group that matches a name holds.

    Raises:
        ConfigurationError: A number is out of range, or a group names no parameters.
        UnknownNameError: A group sets a hyper-parameter that does not exist.

    Attributes:
        below_one: Names of the hyper-parameters that must be below 1.
        flags: Names of those that are True or False; ``"maximize"`` ascends the training loss.
        linear_in_gradient: Whether a step is θ − D g plus what no gradient of the step moves.
        coordinatewise: Whether each update that a step makes moves a coordinate by the gradient of
            that coordinate alone; so it is wherever there is a `sensitivity`.
    """

    below_one: ClassVar[frozenset[str]] = frozenset()
    flags: ClassVar[frozenset[str]] = frozenset({"maximize"})
    linear_in_gradient: ClassVar[bool] = False
    coordinatewise: ClassVar[bool] = False

    def __init__(
        self, hyperparameters: dict[str, Hyperparameter], groups: Sequence[Group] = ()
    ) -> None:
        self.hyperparameters = hyperparameters
        check_values(hyperparameters, self.below_one, self.flags)
        self.groups = checked_groups(groups, hyperparameters, self.below_one, self.flags)

    def settings(self, name: str) -> list[Any]:
        """Return a hyper-parameter as it is for all parameters, and as each group has it.

        Args:
            name: Name of the hyper-parameter.
        """
        common = self.hyperparameters[name]
        return [common, *(group.get(name, common) for group in self.groups)]

    @abstractmethod
    def init_slots(self, parameters: Tensors) -> dict[str, Tensors]:
        """Return the optimizer state before the first step: slot, parameter name, tensor.

        Args:
            parameters: Inner parameters by name.
        """

    @abstractmethod
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return one parameter and its slots after one step, out of place and differentiably.

        Args:
            parameter: The parameter, of any shape.
            gradient: Its gradient, of the same shape.
            slots: Its optimizer state by slot name, each of the same shape or a number.
            hyperparameters: Values that hold for this parameter at this step.
            step: Number of steps that this parameter took before this one.
        """

    def init(self, problem: BilevelProblem, seed: int = 0) -> InnerState:
        """Return the state before the first step, from the model's present parameters.

        Those that λ sets (``initial`` of the problem) come from it.

        Args:
            problem: Problem whose model is read and left as it is.
            seed: Seed of the trajectory's random key.

        Raises:
            ConfigurationError: The learner does not fit the problem; see :meth:`check`.
        """
        problem.check_structure()
        self.check(problem)
        parameters = problem.parameters()
        with torch.no_grad():
            given = problem.initial_parameters(problem.meta_parameters())
            parameters |= {name: tensor.clone() for name, tensor in given.items()}
        return InnerState(
            parameters=parameters,
            buffers=problem.buffers(),
            optimizer=self.init_slots(parameters),
            step=0,
            key=fold_in(seed, Stream.TRAJECTORY),
        )

    def check(self, problem: BilevelProblem) -> None:
        """Raise unless this learner fits a problem.

        Args:
            problem: Problem whose inner parameters it shall move.

        Raises:
            ConfigurationError: A group's pattern matches no inner parameter, a tensor of a group is
                none, or a hyper-parameter requires a gradient, but not through a meta-parameter.
        """
        check_groups(self.groups, problem)
        hyperparameters_at(self.hyperparameters, self.groups, problem, problem.meta_leaves(), 0)

    @staticmethod
    def enter(problem: BilevelProblem, state: InnerState, meta: Tensors) -> InnerState:
        """Return a state, with the parameters that λ sets where it is the initial one.

        A step from a state of step 0 begins here, so that it depends on λ through them, too.

        Args:
            problem: Problem whose ``initial`` sets parameters.
            state: State before a step.
            meta: Meta-parameters by name.
        """
        if not problem.begins_with_meta(state):
            return state
        # As views: the gradient in θ must not take in what the loss has of λ itself.
        given = {n: t.view_as(t) for n, t in problem.initial_parameters(meta).items()}
        parameters = state.parameters | given
        return state.replaced(parameters=parameters)

    def step(
        self,
        problem: BilevelProblem,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        create_graph: bool = False,
    ) -> tuple[InnerState, Tensor]:
        """Take one inner step Φ: (state, λ, batch) → state.

        Args:
            problem: Problem whose ``train_loss`` is descended.
            state: State before the step; not modified.
            meta: Meta-parameters by name.
            batch: Training batch.
            create_graph: Whether the result is differentiable, to any order, in the tensors of
                ``state`` that require a gradient and in ``meta``.

        Returns:
            The state after the step, and the training loss before it (a scalar, detached unless
            ``create_graph``). Cost: one forward and one backward pass, 3 F.
        """
        with gradients_recorded(create_graph):
            state = self.enter(problem, state, meta)
        if not create_graph:
            meta = {name: without_graph(tensor) for name, tensor in meta.items()}
        state = with_leaves(state, create_graph)
        loss, gradients, buffers = self.gradients(problem, state, meta, batch, create_graph)
        with gradients_recorded(create_graph):
            after = self.apply(problem, state, meta, gradients)
        after = after.replaced(buffers=buffers) if buffers else after
        return (after, loss) if create_graph else (after.map(without_graph), loss.detach())

    @staticmethod
    def gradients(
        problem: BilevelProblem,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        create_graph: bool = False,
    ) -> tuple[Tensor, Tensors, Tensors]:
        """Return training loss, its gradient in θ and the buffers after it, before an update.

        Args:
            problem: Problem whose ``train_loss`` is differentiated.
            state: State whose parameters require a gradient.
            meta: Meta-parameters by name.
            batch: Training batch.
            create_graph: Whether loss and gradients carry their graphs.

        Returns:
            The loss (a scalar), the gradients by the names of the parameters that the graph of the
            loss reaches, and the buffers. Cost: 3 F.

        Raises:
            UnsupportedError: The loss reaches no parameter.
        """
        loss, gradients, _, buffers = loss_gradients(problem, state, meta, batch, create_graph)
        return loss, gradients, buffers

    def apply(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, gradients: Tensors
    ) -> InnerState:
        """Return the state after the update with given gradients; its buffers stay as they are.

        A pure function, differentiable in all tensors it is given. A parameter without a gradient
        is skipped, as ``torch.optim`` skips it: value, slots and its own number of steps stay.

        Args:
            problem: Problem whose ``meta`` gives the hyper-parameters that come from λ.
            state: State before the step.
            meta: Meta-parameters by name.
            gradients: Gradient of the training loss by parameter name, of some parameters or all.

        Raises:
            ShapeError: A hyper-parameter is a tensor that does not expand to a parameter's shape.
        """
        resolved = self._resolved(problem, meta, state.step)
        return updated_state(self.update, state, gradients, resolved)

    def gradient_sensitivity(
        self, problem: BilevelProblem, state: InnerState, meta: Tensors, gradients: Tensors
    ) -> Tensors:
        """Return ∂θ⁺/∂g, how the parameters after a step depend on the gradient g of that step.

        Where the update of each coordinate reads the gradient of that coordinate alone, the
        derivative is diagonal; for SGD it is −``lr`` everywhere. It is what SAMA (Choe et al.
        2023, arXiv 2310.05674, section 3.2) adapts to the optimizer with. Cost: no pass.

        Args:
            problem: Problem whose ``meta`` gives the hyper-parameters that come from λ.
            state: State before the step.
            meta: Meta-parameters by name.
            gradients: Gradient of the training loss by parameter name.

        Returns:
            The diagonal, one tensor of the shape of the parameter for each name in ``gradients``.

        Raises:
            UnsupportedError: It has no closed form, or overrides the update that this belongs to.
        """
        if not tells_sensitivity(self, InnerLearner):
            raise self._no_sensitivity()
        resolved = self._resolved(problem, meta, state.step)
        found: Tensors = {}
        for name, gradient in gradients.items():
            parameter, values = state.parameters[name], resolved(name)
            refuse_complex(name, parameter)
            sign = -1.0 if values.get("maximize") else 1.0
            slope = self.sensitivity(
                parameter, sign * gradient, slots_of(state, name), values, state.steps_of(name)
            )
            found[name] = (sign * slope).expand_as(parameter)
        return found

    def _resolved(self, problem: BilevelProblem, meta: Tensors, step: int) -> Evaluated:
        """Return the function that gives a parameter's hyper-parameters at a step."""
        return hyperparameters_at(self.hyperparameters, self.groups, problem, meta, step)

    def _no_sensitivity(self) -> UnsupportedError:
        return UnsupportedError(
            f"{type(self).__name__} does not tell how its update depends on the gradient; define "
            "its `sensitivity` beside its `update`, or use SGD, Adam, AdamW or RMSprop, or an "
            "estimator that differentiates the update by itself, such as Unrolled."
        )

    def sensitivity(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: dict[str, Tensor],
        hyperparameters: dict[str, float | Tensor],
        step: int,
    ) -> Tensor:
        """Return the diagonal of ∂θ⁺/∂g of one parameter, of a shape that expands to it.

        Args:
            parameter: The parameter, of any shape.
            gradient: Its gradient, of the same shape.
            slots: Its optimizer state before the step, each of the same shape.
            hyperparameters: Values that hold for this parameter at this step.
            step: Number of steps that this parameter took before this one.

        Raises:
            UnsupportedError: The learner has no closed form for it.
        """
        raise self._no_sensitivity()

    def options(self) -> dict[str, Any]:
        """Return what else than hyper-parameters and groups the learner was made with."""
        return {}

    def __repr__(self) -> str:
        """Return the call that makes this learner, with the number of groups."""
        given = {**self.hyperparameters, **self.options(), "groups": len(self.groups)}
        return f"{type(self).__name__}({', '.join(f'{n}={value}' for n, value in given.items())})"
