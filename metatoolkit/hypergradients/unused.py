"""Why a hypergradient reaches no meta-parameter, and what would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metatoolkit.errors import UnusedMetaParameterError
from metatoolkit.inner.base import InnerLearner
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors, describe, require_grad

_CUTS = {
    torch.Tensor.detach: "detach()",
    torch.detach: "detach()",
    torch.Tensor.detach_: "detach_()",
    torch.Tensor.data.__get__: ".data",  # type: ignore[attr-defined]
    torch.Tensor.item: ".item()",
    torch.Tensor.tolist: ".tolist()",
    torch.Tensor.numpy: ".numpy()",
    torch.Tensor.__float__: "float()",
    torch.Tensor.__array__: "a NumPy array",
}


class NothingReached(UnusedMetaParameterError):
    """The derivative in each meta-parameter is missing; why is yet to be found out.

    Args:
        problem: The bilevel problem.
        losses: Which losses were differentiated, as words for the message.
    """

    def __init__(self, problem: BilevelProblem, losses: str) -> None:
        names = ", ".join(problem.meta_parameter_names[:5])
        super().__init__(f"{losses} depend on no meta-parameter (meta holds: {names}).")


def explained(
    error: NothingReached,
    estimator: str,
    problem: BilevelProblem,
    inner: InnerLearner,
    state: InnerState,
    batches: tuple[Any, Any],
) -> UnusedMetaParameterError:
    """Return the error with the likely reason and the remedy.

    Args:
        error: What an estimator raised.
        estimator: Its name.
        problem: The bilevel problem.
        inner: Inner learner.
        state: Detached state that the call began at.
        batches: A training batch and the validation batch of the call.
    """
    meta = problem.meta_leaves()
    reasons: list[Callable[[], str | None]] = [
        lambda: _through_optimizer(estimator, problem, inner, state, meta),
        lambda: _through_losses(estimator, problem, state, meta, batches),
        lambda: _through_nothing(problem, state, meta, batches[1]),
        lambda: _through_initial_state(estimator, problem, state, meta),
        lambda: _meant_for_optimizer(problem, inner),
        lambda: _meant_for_initial_state(problem),
    ]
    found = next((reason for ask in reasons if (reason := ask()) is not None), None)
    if found is None:
        found = (
            "Use the `meta` that is passed to the loss, not one from an outer scope, and do not "
            "detach what it returns."
        )
    frozen = [name for name, p in problem.meta.named_parameters() if not p.requires_grad]
    if frozen:
        found += (
            f" meta also holds frozen parameters ({', '.join(frozen[:5])}); if these are meant, "
            "call requires_grad_(True) on them before the problem is made."
        )
    return UnusedMetaParameterError(f"{error} {found}")


def _through_optimizer(
    estimator: str, problem: BilevelProblem, inner: InnerLearner, state: InnerState, meta: Tensors
) -> str | None:
    """λ is a hyper-parameter of the inner learner, and the estimator does not look there."""
    live = {id(tensor) for tensor in problem.meta_parameters().values()}
    found = []
    for settings in [inner.hyperparameters, *inner.groups]:
        for name, value in settings.items():
            if isinstance(value, Tensor):
                reached = id(value) in live
            elif callable(value):
                with torch.enable_grad():
                    at_step = problem.evaluate_meta(_at(value, state.step), meta)
                reached = isinstance(at_step, Tensor) and at_step.requires_grad
            else:
                reached = False
            if reached and name not in found:
                found.append(name)
    if not found:
        return None
    return (
        f"λ enters through {', '.join(found)} of {type(inner).__name__}, and {estimator} does not "
        "differentiate the inner update; use ForwardMode or Unrolled."
    )


def _at(value: Callable[..., Any], step: int) -> Callable[[Any], Any]:
    return lambda meta: value(meta, step)


def _through_nothing(
    problem: BilevelProblem, state: InnerState, meta: Tensors, batch: Any
) -> str | None:
    """The outer loss depends on no parameter at all."""
    with torch.enable_grad():
        loss = problem.evaluate_valid(
            require_grad(state.parameters), meta, state.buffers, batch, state.key
        )
    if loss.requires_grad:
        return None
    return (
        f"valid_loss has no gradient in any inner parameter either (batch of: {describe(batch)}): "
        "compute it from the outputs of the model that it is called with, without detach() or "
        "torch.no_grad(), and leave out a task that has nothing to be judged by."
    )


def _through_initial_state(
    estimator: str, problem: BilevelProblem, state: InnerState, meta: Tensors
) -> str | None:
    """λ sets the initial state, which this state is not, or not as a function of λ."""
    if problem.initial is None:
        return None
    if state.step > 0:
        return (
            "λ sets the initial state, which counts in steps from a state of step 0 alone, and "
            f"this one is of step {state.step}. For MAML begin each task anew: "
            "MetaTrainer(tasks=...), MetaTrainer(reset_every=...) with the estimator's number of "
            "inner steps, or inner.init(problem) before each call."
        )
    with torch.enable_grad():
        given = problem.initial_parameters(meta)
    reached = [leaf for tensor in given.values() for leaf in _leaves(tensor)]
    if any(leaf is tensor for leaf in reached for tensor in meta.values()):
        return (
            f"λ sets the initial state, the one of step 0, which {estimator} does not "
            "differentiate; use Unrolled, FirstOrder or Reptile."
        )
    return (
        "The values that initial returns do not depend on the meta that it is called with; read "
        "them from its argument, for instance initial=Initialization.values or "
        "initial=lambda meta: meta.values(), and not from another module."
    )


def _meant_for_initial_state(problem: BilevelProblem) -> str | None:
    """λ looks like the parameters of the model, and the problem does not know."""
    if problem.initial is not None:
        return None
    inner = {name: tensor.shape for name, tensor in problem.parameters().items()}
    alike = [n for n, t in problem.meta_parameters().items() if inner.get(n) == t.shape]
    if not alike:
        return None
    return (
        f"meta has the names and shapes of inner parameters ({', '.join(alike[:5])}). If λ is "
        f"their initial value, say so: BilevelProblem(..., initial={type(problem.meta).__name__}"
        ".values), or initial=lambda meta: dict(meta.named_parameters())."
    )


def _meant_for_optimizer(problem: BilevelProblem, inner: InnerLearner) -> str | None:
    """λ has the name of a hyper-parameter, or is a single number, and the learner has numbers."""
    synonyms = {"lr": ("rate", "rates", "lrs")}
    plain = [
        name
        for name, value in inner.hyperparameters.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    for name in problem.meta_parameter_names:
        words = name.rsplit(".", 1)[-1].lower().split("_")
        for known in plain:
            last = name.rsplit(".", 1)[-1]
            if known == last or not {known, *synonyms.get(known, ())}.isdisjoint(words):
                return (
                    f"meta holds {name!r}, but {known} of {type(inner).__name__} is the number "
                    f"{inner.hyperparameters[known]}. To learn it, pass {known}=meta.{name}, or a "
                    f"function of it, {known}=lambda meta, step: meta.{name}.exp(), with "
                    "ForwardMode or Unrolled."
                )
    if plain and all(live.dim() == 0 for live in problem.meta_parameters().values()):
        name = problem.meta_parameter_names[0]
        return (
            "Use the `meta` that is passed to the loss, not one from an outer scope, and do not "
            f"detach what it returns. If λ is a hyper-parameter of {type(inner).__name__}, pass it "
            f"there: {plain[0]}=lambda meta, step: meta.{name}."
        )
    return None


def _through_losses(
    estimator: str,
    problem: BilevelProblem,
    state: InnerState,
    meta: Tensors,
    batches: tuple[Any, Any],
) -> str | None:
    """A loss reads λ where the estimator does not look, cuts it off, or reads something else."""
    found = []
    for kind, batch in zip(("train_loss", "valid_loss"), batches, strict=True):
        watch = _Cuts()
        arguments = (state.parameters, meta, state.buffers, batch, state.key)
        with torch.enable_grad(), watch:
            if kind == "train_loss":
                value = problem.evaluate_train(*arguments)[0]
            else:
                value = problem.evaluate_valid(*arguments)
        leaves = list(_leaves(value))
        own = [leaf for leaf in leaves if any(leaf is tensor for tensor in meta.values())]
        others = [leaf for leaf in leaves if not any(leaf is one for one in own)]
        if own and kind == "train_loss":
            return (
                f"λ acts in train_loss, which {estimator} does not differentiate in λ; use "
                "Unrolled, EvoGrad or FiniteDifference."
            )
        if watch.seen:
            found.append(
                f"{kind} cuts off what depends on λ, by {', '.join(watch.seen)}: keep it a tensor "
                "with its gradient."
            )
        if others:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in others[:3])
            found.append(
                f"{kind} reads a tensor that requires a gradient and belongs to neither module "
                f"(of shape {shapes}). Use the `meta` that is passed to the loss, not one from an "
                "outer scope."
            )
    return " ".join(found) or None


def _leaves(value: Tensor) -> Sequence[Tensor]:
    """Return the leaves that the graph of a tensor ends at."""
    found, seen, stack = [], set(), [value.grad_fn]
    if value.grad_fn is None and value.requires_grad:
        found.append(value)
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(child for child, _ in node.next_functions)
    return found


class _Cuts(TorchFunctionMode):
    """Notes what cuts the gradient of a tensor that has one.

    Attributes:
        seen: What was called, in words, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        depends = any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if depends:
            word = _CUTS.get(func)
            if word is None and not torch.is_grad_enabled():
                word = "torch.no_grad()"
            if word is not None and word not in self.seen:
                self.seen.append(word)
        return func(*args, **(kwargs or {}))
