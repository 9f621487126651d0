"""The bilevel problem, and how ordinary modules become pure functions of their parameters."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metatoolkit.errors import ConfigurationError
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.exchange import Exchange
from metatoolkit.stateless.initial_values import check_takes_meta, checked_initial
from metatoolkit.stateless.loss_values import check_takes_batch
from metatoolkit.stateless.micro_batched import MicroBatched, times
from metatoolkit.stateless.modes import in_mode
from metatoolkit.stateless.passes import Loss, Passes


class BilevelProblem:
    """Two losses over a model with inner parameters θ and a module with meta-parameters λ.

    The problem is ``min over λ of valid_loss(θ*(λ), λ)`` with ``θ*(λ)`` what an inner learner
    makes of ``train_loss``. The inner parameters are the parameters of ``model`` that require a
    gradient and that ``meta`` does not own.

    Args:
        model: Any module, unmodified.
        meta: Module whose parameters that require a gradient are λ; may be a submodule of
            ``model`` or share tensors with it.
        train_loss: Inner loss ``(model, meta, batch) -> scalar tensor``.
        valid_loss: Outer loss, with the same signature.
        valid_mode: Mode of the modules in the outer loss: ``"train"``, ``"eval"``, or ``None``
            for the mode that each is in.
        initial: Function ``(meta) -> mapping from names of inner parameters to tensors`` of the
            values that these have in the initial state, for λ as an initialization (MAML); see
            :class:`metatoolkit.metaparameters.Initialization`. ``None`` starts from the model's
            present parameters.
        micro_batch: Largest number of examples (leading dimension of a batch) that one pass sees,
            for both losses or by their names; ``None`` for whole batches. A larger batch is taken
            in pieces, with the numbers of the whole in the memory of one, for first and second
            derivatives. Random layers, such as dropout, draw for each piece by itself. The losses
            must be means over examples, and no layer may couple these. Cost: 3 F more for each
            second derivative of a step, and once as much for that of the first.

    Attributes:
        watch: Called after each evaluation with the problem, the kind of loss, the arguments and
            the loss; set while an estimator checks that the losses can be evaluated again.
        coarse: Types of less than float32 that the losses were seen to compute in.
        replayed: Losses that were found to be, by kind and mode of the modules.
        identity: Tells the problem, and copies of it, from all others.
        micro_batched: What takes losses on pieces of a batch.
        blocks: Number of independent problems that it is made of, 1 unless it stands for several
            tasks side by side; then it is the leading dimension of all inner parameters.

    Raises:
        ConfigurationError: ``meta`` or ``model`` has nothing to learn, ``valid_mode`` is unknown,
            ``initial`` is no function of ``meta``, a loss none of model, ``meta`` and batch, or
            ``micro_batch`` is no number of examples.

    Example:
        >>> model, meta = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1, bias=False)
        >>> def train_loss(model, meta, batch):
        ...     return (meta(model(batch)) ** 2).mean()
        >>> def valid_loss(model, meta, batch):
        ...     return model(batch).pow(2).mean()
        >>> problem = BilevelProblem(model, meta, train_loss, valid_loss)
        >>> sorted(problem.parameter_names), problem.meta_parameter_names
        (['bias', 'weight'], ['weight'])
    """

    _example_dim: ClassVar[int] = 0

    def __init__(
        self,
        model: nn.Module,
        meta: nn.Module,
        train_loss: Loss,
        valid_loss: Loss,
        valid_mode: Literal["train", "eval"] | None = None,
        initial: Callable[[Any], Mapping[str, Tensor]] | None = None,
        micro_batch: int | Mapping[str, int] | None = None,
    ) -> None:
        check_takes_batch(train_loss, "train_loss")
        check_takes_batch(valid_loss, "valid_loss")
        if initial is not None:
            check_takes_meta(initial)
        if valid_mode not in (None, "train", "eval"):
            raise ConfigurationError(
                f"valid_mode is {valid_mode!r}; accepted: None, 'train', 'eval'."
            )
        for name, value in (("model", model), ("meta", meta)):
            if not isinstance(value, nn.Module):
                raise ConfigurationError(
                    f"{name} is a {type(value).__name__}; a torch.nn.Module is needed."
                )
            if any(map(is_lazy, value.parameters())):
                raise ConfigurationError(
                    f"{name} has lazy parameters without a shape; call it once on a batch before "
                    "the problem is made."
                )
        self.model, self.meta = model, meta
        self.train_loss, self.valid_loss = train_loss, valid_loss
        self.valid_mode = valid_mode
        self.initial = initial
        self._passes = Passes(model, meta)
        self.coarse = self._passes.coarse
        self.buffer_names = self._passes.places.buffer_names
        owned = {id(parameter) for parameter in meta.parameters()}
        self.parameter_names = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and id(parameter) not in owned
        ]
        self.meta_parameter_names = [
            name for name, parameter in meta.named_parameters() if parameter.requires_grad
        ]
        if not self.meta_parameter_names:
            raise ConfigurationError(
                "meta has no parameter that requires a gradient, so there is nothing to learn; "
                "register the meta-parameters as torch.nn.Parameter and leave requires_grad on."
            )
        if not self.parameter_names:
            raise ConfigurationError(
                "model has no inner parameter: each of its parameters is frozen or belongs to "
                "meta; pass as meta only the part that holds the meta-parameters."
            )
        self.watch: Callable[..., None] | None = None
        self.replayed: dict[Any, Any] = {}
        self.blocks = 1
        self.micro_batched = MicroBatched(micro_batch, (model, meta))
        self.identity = uuid.uuid4().hex

    def to(self, device: torch.device | str) -> BilevelProblem:
        """Move both modules to a device, in place, and return the problem.

        Args:
            device: Where to.
        """
        self.model.to(device)
        self.meta.to(device)
        return self

    def parameters(self) -> Tensors:
        """Return detached copies of the model's present inner parameters."""
        return {name: live.detach().clone() for name, live in self._inner().items()}

    def inner_names(self) -> dict[int, str]:
        """Return the names of the inner parameters by the identities of the model's tensors."""
        return {id(live): name for name, live in self._inner().items()}

    def buffers(self) -> Tensors:
        """Return copies of all buffers, but zeros for those of a module's ``begin_at_zero``."""
        zeros = self._passes.places.zero_names
        live = self._passes.live_by_name("", self.buffer_names).items()
        return {n: torch.zeros_like(t) if n in zeros else t.detach().clone() for n, t in live}

    def meta_parameters(self) -> Tensors:
        """Return the live meta-parameters by name."""
        return self._passes.live_by_name("meta.", self.meta_parameter_names)

    def meta_leaves(self) -> Tensors:
        """Return the meta-parameters as fresh leaves that share memory and require a gradient.

        Gradients taken to these never reach the ``.grad`` fields of the module.
        """
        return {n: p.detach().requires_grad_() for n, p in self.meta_parameters().items()}

    def load(self, state: InnerState) -> None:
        """Copy an inner state into the modules, in place.

        Args:
            state: State whose parameters and buffers the modules shall hold.
        """
        with torch.no_grad():
            for name, value in state.parameters.items():
                self._passes.live(f"model.{name}").copy_(value)
        self.load_buffers(state.buffers)

    def load_buffers(self, buffers: Tensors) -> None:
        """Copy buffers into the modules, in place; one of another shape by now is replaced.

        Args:
            buffers: Buffers as in :attr:`InnerState.buffers`, of some names or all.
        """
        with torch.no_grad():
            for name, value in buffers.items():
                live = self._passes.live(name)
                if live.shape == value.shape:
                    live.copy_(value)
                else:
                    self._passes.places.replace(name, value.to(live.device, copy=True))

    def evaluate_train(
        self, parameters: Tensors, meta: Tensors, buffers: Tensors, batch: Any, key: int
    ) -> tuple[Tensor, Tensors]:
        """Return the inner loss (a scalar) and the buffers after it; a pure function.

        Args:
            parameters: Inner parameters by name.
            meta: Meta-parameters by name.
            buffers: Buffers as in :attr:`InnerState.buffers`; not modified.
            batch: Batch for the loss.
            key: Random key for dropout and the like.

        Returns:
            The loss, and the buffers as the forward pass left them.

        Raises:
            ShapeError: The loss is no scalar tensor.
        """
        return self._evaluate(self.train_loss, "train_loss", parameters, meta, buffers, batch, key)

    def evaluate_valid(
        self, parameters: Tensors, meta: Tensors, buffers: Tensors, batch: Any, key: int
    ) -> Tensor:
        """Return the outer loss, a scalar; a pure function, like :meth:`evaluate_train`.

        Args:
            parameters: Inner parameters by name.
            meta: Meta-parameters by name.
            buffers: Buffers; not modified, and what the pass does to them is dropped.
            batch: Batch for the loss.
            key: Random key for dropout and the like.

        Raises:
            ShapeError: The loss is no scalar tensor.
        """
        arguments = (self.valid_loss, "valid_loss", parameters, meta, buffers, batch, key)
        if self.valid_mode is None:
            return self._evaluate(*arguments)[0]
        with in_mode((self.model, self.meta), self.valid_mode == "train"):
            return self._evaluate(*arguments)[0]

    def evaluate_meta(self, function: Callable[[nn.Module], Any], meta: Tensors) -> Any:
        """Call ``function`` with the meta-parameter module as it is under other parameters.

        Args:
            function: For instance ``lambda meta: meta.rates(3)``.
            meta: Meta-parameters by name.

        Returns:
            What the function returns.
        """
        tensors = {f"meta.{name}": tensor for name, tensor in meta.items()}
        with Exchange(self._passes.places, tensors, {}):
            return function(self.meta)

    def initial_parameters(self, meta: Tensors) -> Tensors:
        """Return the inner parameters that λ sets in the initial state, differentiable in λ.

        Args:
            meta: Meta-parameters by name.

        Returns:
            Tensors by parameter name, of the parameters' types; empty without :attr:`initial`.

        Raises:
            ConfigurationError: ``initial`` returns no mapping to tensors.
            UnknownNameError: It names what is no inner parameter.
            ShapeError: A value has another shape than its parameter.
        """
        if self.initial is None:
            return {}
        given = self.evaluate_meta(self.initial, meta)
        return checked_initial(given, self._inner())

    def devices(self) -> set[torch.device]:
        """Return the devices of all parameters and buffers."""
        return {self._passes.live(name).device for name in self._passes.places.sites}

    def modes(self) -> tuple[bool, ...]:
        """Return of each module whether it is in its training mode."""
        return self._passes.modes()

    def begins_with_meta(self, state: InnerState) -> bool:
        """Return whether λ sets parameters of this state: it is the initial one.

        Args:
            state: Any inner state.
        """
        return self.initial is not None and state.step == 0

    def watch_second_derivatives(
        self, loss: Tensor, tensors: Sequence[Tensor], what: str = "θ"
    ) -> None:
        """Look at a training loss before its gradient is taken with a graph of its own.

        Once a call of an estimator; see :func:`.stateless.graphs.watch_second_derivatives`.

        Args:
            loss: The loss with its graph.
            tensors: What the loss is differentiated in, as the evaluation was given it.
            what: What these are, in a word.

        Raises:
            UnsupportedError: A function between the two cuts its second derivative.
        """
        self._passes.watch_second_derivatives(loss, tensors, what)

    def needs_own_pass(self, kinds: Sequence[str] = ("train_loss", "valid_loss")) -> str | None:
        """Return why a loss cannot be mapped over inputs by one pass, as a clause, or ``None``.

        Args:
            kinds: Names of the losses, which must have been evaluated before.
        """
        return next(filter(None, map(self._passes.needs_own_pass, kinds)), None)

    def check_structure(self) -> None:
        """Raise where the modules are no longer what the problem was made of.

        Raises:
            ConfigurationError: Parameters or buffers came, went, were frozen or are tied in
                another way; or a hook stands on a parameter, which no inner step would run.
        """
        self._passes.check_structure()

    def _inner(self) -> Tensors:
        return self._passes.live_by_name("model.", self.parameter_names)

    def _evaluate(
        self, loss: Loss, kind: str, parameters: Tensors, meta: Tensors, *rest: Any
    ) -> tuple[Tensor, Tensors]:
        point = (parameters, meta, *rest)
        if kind in self.micro_batched.sizes:
            value, after = self.micro_batched.evaluate(
                functools.partial(self._evaluate_once, loss, kind),
                (kind, loss),
                point,
                self._example_dim,
                lambda part, tensors: self.watch_second_derivatives(part, tensors, "a piece"),
            )
        else:
            value, after = self._evaluate_once(loss, kind, *point)
        if self.watch is not None:
            self.watch(self, kind, point, value)
        return value, after

    def _evaluate_once(
        self, loss: Loss, kind: str, at: Tensors, meta: Tensors, *rest: Any, weight: Any = None
    ) -> tuple[Tensor, Tensors]:
        """Evaluate a loss by one pass, times a weight if there is one."""
        tensors = {f"model.{name}": tensor for name, tensor in at.items()}
        tensors.update({f"meta.{name}": tensor for name, tensor in meta.items()})
        value, after = self._passes.run(loss, kind, tensors, *rest)
        return times(value, weight), after
