"""What torch.optim has: taking over its settings and state, and saying what goes in its place."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.inner.adadelta import Adadelta
from metatoolkit.inner.adagrad import Adagrad
from metatoolkit.inner.adam import Adam
from metatoolkit.inner.adamax import Adamax
from metatoolkit.inner.adamw import AdamW
from metatoolkit.inner.asgd import ASGD
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.groups import names_of
from metatoolkit.inner.muon import Muon
from metatoolkit.inner.nadam import NAdam
from metatoolkit.inner.radam import RAdam
from metatoolkit.inner.rmsprop import RMSprop
from metatoolkit.inner.rprop import Rprop
from metatoolkit.inner.sgd import SGD
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors

_LEARNERS: dict[type[torch.optim.Optimizer], type[InnerLearner]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
    torch.optim.RMSprop: RMSprop,
    torch.optim.Adagrad: Adagrad,
    torch.optim.RAdam: RAdam,
    torch.optim.NAdam: NAdam,
    torch.optim.Adamax: Adamax,
    torch.optim.Adadelta: Adadelta,
    torch.optim.ASGD: ASGD,
    torch.optim.Rprop: Rprop,
}
if hasattr(torch.optim, "Muon"):
    _LEARNERS[torch.optim.Muon] = Muon

_IMPLEMENTATION = {"foreach", "capturable", "differentiable", "fused"}
"""Options of torch.optim that say how a step is computed, and not what it is."""

_COMMON = {"initial_accumulator_value", "ns_coefficients", "ns_steps", "adjust_lr_fn"}
"""Options that an inner learner has for all parameters alike; so is the eps of Muon."""

_SLOTS = {
    "momentum_buffer": "velocity",
    "exp_avg": "first_moment",
    "exp_avg_sq": "second_moment",
    "max_exp_avg_sq": "largest_second_moment",
    "square_avg": "square_average",
    "grad_avg": "gradient_average",
    "sum": "square_sum",
    "mu_product": "momentum_product",
    "exp_inf": "largest_gradient",
    "acc_delta": "step_square_average",
    "ax": "average",
    "eta": "rate",
    "prev": "last_gradient",
    "step_size": "step_size",
}


def from_torch(
    optimizer: torch.optim.Optimizer, problem: BilevelProblem | nn.Module
) -> InnerLearner:
    """Return the inner learner that moves θ as an optimizer of ``torch.optim`` does.

    Its groups become groups of names, and its options are taken as they are now. How it computes
    (``foreach``, ``fused`` and the like) does not matter. A tensor that is a meta-parameter stays
    λ; any other becomes a number. For the momenta, too, see :func:`state_from_torch`.

    Args:
        optimizer: SGD, Adam, AdamW, Adamax, NAdam, RAdam, Adagrad, Adadelta, RMSprop, ASGD, Rprop
            or Muon of ``torch.optim``.
        problem: The bilevel problem, or its model; it must hold the optimizer's parameters, and no
            inner parameter besides.

    Raises:
        ConfigurationError: The optimizer's parameters are not those of the problem, it has a
            scheduler, or it is no optimizer.
        UnsupportedError: The optimizer, or an option of it, has no counterpart.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> from_torch(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)
        SGD(lr=0.1, momentum=0.9, dampening=0, weight_decay=0, nesterov=False, maximize=False, \
groups=0)
    """
    _check_kind(optimizer)
    if _is_scheduled(optimizer):
        raise ConfigurationError(
            "the optimizer has a scheduler, which is not taken over; make the inner learner with "
            "a schedule, for instance lr=mt.inner.cosine(0.1, steps), or take the optimizer "
            "before a scheduler is made for it. state_from_torch takes its momenta all the same."
        )
    return _counterpart(optimizer, problem)


def _check_kind(optimizer: object) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigurationError(
            f"optimizer is {optimizer!r}; accepted: an instance of a torch.optim optimizer."
        )


def _is_scheduled(optimizer: torch.optim.Optimizer) -> bool:
    return any("initial_lr" in group for group in optimizer.param_groups)


def _counterpart(
    optimizer: torch.optim.Optimizer, problem: BilevelProblem | nn.Module
) -> InnerLearner:
    """Return the inner learner with the options that an optimizer has now."""
    kind = type(optimizer)
    if kind not in _LEARNERS:
        known = ", ".join(known.__name__ for known in _LEARNERS)
        raise UnsupportedError(
            f"{kind.__name__} has no counterpart among the inner learners; there are those of "
            f"{known}. Derive from mt.inner.InnerLearner for another update."
        )
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if any(getattr(optimizer, name, None) for name in hooks):
        raise UnsupportedError(
            f"the {kind.__name__} has step hooks, which are not taken over; remove them, and write "
            "what they do as an inner learner or a schedule."
        )
    names, meta = _parameters(problem)
    groups = []
    for group in optimizer.param_groups:
        frozen = {id(p) for p in group["params"] if not p.requires_grad}
        members = names_of("the optimizer", group["params"], names, meta, frozen)
        if members:
            groups.append((members, _options(optimizer, group, meta)))
    _check_complete(names, [name for members, _ in groups for name in members])
    learner = _LEARNERS[kind]
    if learner in (Adam, AdamW):
        decoupled = {options.pop("decoupled_weight_decay") for _, options in groups}
        if len(decoupled) > 1:
            raise UnsupportedError(
                "decoupled_weight_decay differs between groups; use Combined(Adam(...), {...: "
                "AdamW(...)})."
            )
        learner = AdamW if True in decoupled else Adam
    common = groups[0][1]
    exceptions = []
    for members, options in groups[1:]:
        own = {name: value for name, value in options.items() if not _same(value, common[name])}
        fixed = sorted(own.keys() & (_COMMON | ({"eps"} if learner is Muon else set())))
        if fixed:
            raise UnsupportedError(
                f"{fixed[0]} differs between groups, and {learner.__name__} has one for all "
                "parameters; use Combined with a learner for each."
            )
        if own:
            exceptions.append({"params": [glob.escape(name) for name in members], **own})
    if learner is Muon:
        common = common | {"ns_dtype": torch.bfloat16}
    return learner(**common, groups=exceptions)


def state_from_torch(
    optimizer: torch.optim.Optimizer,
    problem: BilevelProblem,
    seed: int = 0,
    steps: int | None = None,
) -> InnerState:
    """Return the inner state that a ``torch.optim`` optimizer has reached, its momenta included.

    Args:
        optimizer: Optimizer that :func:`from_torch` takes over; it may have a scheduler.
        problem: The bilevel problem, whose model holds the parameters that were reached.
        seed: Seed of the trajectory's random key.
        steps: Number of steps that were taken, from which schedules of the learner go on. By
            default the largest number of steps of a parameter, as the optimizer counts them. SGD
            and Muon do not: there it is 1 where a momentum has begun, and else 0.

    Returns:
        A state for the learner of :func:`from_torch`, or for one with schedules besides.

    Raises:
        ConfigurationError: ``steps`` is less than a parameter took, or it is missing though the
            optimizer has a scheduler and does not count.
    """
    _check_kind(optimizer)
    inner = _counterpart(optimizer, problem)
    state = inner.init(problem, seed)
    names, _ = _parameters(problem)
    slots = {slot: dict(values) for slot, values in state.optimizer.items()}
    taken = dict.fromkeys(state.parameters, 0)
    for parameter, saved in optimizer.state.items():
        name = names.get(id(parameter))
        if name is None:
            continue
        for key, value in saved.items():
            slot = "momentum" if isinstance(inner, Muon) else _SLOTS.get(key)
            if slot in slots and isinstance(value, Tensor):
                slots[slot][name] = value.detach().to(slots[slot][name], copy=True)
        started = any(isinstance(value, Tensor) for value in saved.values())
        taken[name] = int(saved["step"]) if "step" in saved else int(started)
    most = max(taken.values())
    if steps is None and _is_scheduled(optimizer) and isinstance(inner, SGD | Muon):
        raise ConfigurationError(
            f"the optimizer has a scheduler, and {type(optimizer).__name__} does not count its "
            "steps; give steps=, how many were taken, from which a schedule goes on."
        )
    step = most if steps is None else steps
    if step < most:
        raise ConfigurationError(
            f"steps is {steps}; accepted: at least {most}, which is what a parameter took."
        )
    missed = {name: step - count for name, count in taken.items() if count < step}
    return dataclasses.replace(state, optimizer=slots, step=step, missed=missed)


def require_learner(value: object) -> None:
    """Raise unless something is an inner learner, and say what goes in its place.

    Args:
        value: What was given as ``inner``.

    Raises:
        ConfigurationError: It is something else: a torch optimizer, a class, anything.
    """
    if isinstance(value, InnerLearner):
        return
    kind = value if isinstance(value, type) else type(value)
    given = f"the class {kind.__name__}" if isinstance(value, type) else f"a {kind.__name__}"
    if isinstance(value, type) and issubclass(value, InnerLearner):
        raise ConfigurationError(
            f"inner is {given}; give an instance, for instance mt.inner.{kind.__name__}(lr=0.1)."
        )
    if not issubclass(kind, torch.optim.Optimizer):
        raise ConfigurationError(
            f"inner is {given}; give an inner learner, which is an instance such as "
            "mt.inner.SGD(lr=0.1)."
        )
    given = f"the torch optimizer {kind.__name__}"
    why = "which moves parameters in place, where no derivative follows"
    if kind in _LEARNERS:
        raise ConfigurationError(
            f"inner is {given}, {why}; give mt.inner.{_LEARNERS[kind].__name__}(...), or "
            "mt.inner.from_torch(optimizer, problem), which takes over the settings of an "
            "optimizer."
        )
    if kind is torch.optim.LBFGS:
        why += ", and evaluates the loss as often as its line search asks for"
    known = ", ".join(f"mt.inner.{learner.__name__}" for learner in _LEARNERS.values())
    raise ConfigurationError(
        f"inner is {given}, {why}; it has no counterpart. Use one of {known} (for a deterministic "
        "problem mt.inner.SGD with many steps, and Implicit), or derive from InnerLearner; "
        "mt.inner.from_torch(optimizer, problem) takes over the settings of these from torch.optim."
    )


def _parameters(problem: BilevelProblem | nn.Module) -> tuple[dict[int, str], Tensors]:
    """Return the names of the inner parameters by identity, and the meta-parameters."""
    if isinstance(problem, BilevelProblem):
        return problem.inner_names(), problem.meta_parameters()
    if isinstance(problem, nn.Module):
        named = problem.named_parameters()
        return {id(p): name for name, p in named if p.requires_grad}, {}
    raise ConfigurationError(
        f"problem is a {type(problem).__name__}; accepted: a BilevelProblem or its model."
    )


def _same(one: Any, other: Any) -> bool:
    """Return whether two options are the same; meta-parameters of one value are not."""
    return one is other if isinstance(one, Tensor) or isinstance(other, Tensor) else one == other


def _check_complete(names: Mapping[int, str], held: list[str]) -> None:
    missing = [name for name in names.values() if name not in held]
    if missing:
        raise ConfigurationError(
            f"the optimizer does not hold the inner parameters {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}, which an inner learner would move; add them, "
            "or freeze them with requires_grad_(False) before the problem is made."
        )


def _options(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], meta: Tensors
) -> dict[str, Any]:
    """Return the options of a group under the names that inner learners have for them."""
    own = {id(tensor) for tensor in meta.values()}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if id(value) in own else value.item()
        return tuple(plain(entry) for entry in value) if isinstance(value, tuple | list) else value

    return {name: plain(group[name]) for name in optimizer.defaults if name not in _IMPLEMENTATION}
