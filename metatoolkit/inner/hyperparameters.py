"""Hyper-parameters of inner learners: which are accepted, and what they are at a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError, UnknownNameError
from metatoolkit.inner.evaluated import Evaluated, are_numbers, leaves_of
from metatoolkit.inner.groups import Group, listed, patterns_of, with_members
from metatoolkit.inner.traced_values import value_at
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import Tensors

Value = float | Tensor
Hyperparameter = Value | Callable[[Any, int], Value | Mapping[str, Value]]


def check_values(
    values: Mapping[str, Any], below_one: Collection[str], flags: Collection[str]
) -> None:
    """Raise unless hyper-parameters are of an accepted kind, and numbers in range.

    Args:
        values: Values by name.
        below_one: Names of those that must be below 1.
        flags: Names of those that are True or False.

    Raises:
        ConfigurationError: One is not accepted.
    """
    for name, value in values.items():
        if name in flags or isinstance(value, bool):
            if name not in flags or not isinstance(value, bool):
                accepted = "True or False" if name in flags else "a number, not a truth value"
                raise ConfigurationError(f"{name} is {value!r}; accepted: {accepted}.")
            continue
        if name in below_one and isinstance(value, int | float) and value >= 1:
            raise ConfigurationError(
                f"{name} is {value}; accepted: a number of at least 0 and below 1, a tensor or "
                "a function (meta, step) -> number or tensor."
            )
        if not isinstance(value, int | float | Tensor) and not callable(value):
            raise ConfigurationError(
                f"{name} is {value!r}; accepted: a finite number of at least 0, a tensor or a "
                "function (meta, step) -> number or tensor."
            )
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ConfigurationError(
                f"{name} is {value}; accepted: a finite number of at least 0, a tensor or a "
                "function (meta, step) -> number or tensor."
            )


def split_pairs(values: Mapping[str, Any], pairs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return hyper-parameters with pairs replaced by their two entries, each under its own name.

    Args:
        values: Values by name, those of a group or of all parameters.
        pairs: Name of a pair to those of its entries.

    Raises:
        ConfigurationError: Something that must be a pair is none.
    """
    split: dict[str, Any] = {}
    for name, value in values.items():
        if name not in pairs:
            split[name] = value
            continue
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ConfigurationError(
                f"{name} is {value!r}; a pair is needed, of {' and '.join(pairs[name])}."
            )
        split |= dict(zip(pairs[name], value, strict=True))
    return split


def checked_groups(
    groups: Sequence[Group],
    known: Collection[str],
    below_one: Collection[str],
    flags: Collection[str],
) -> list[dict[str, Any]]:
    """Return copies of groups, with what they hold as lists.

    Args:
        groups: Exceptions for some parameters, as the user gave them.
        known: Names of the hyper-parameters that a group may set.
        below_one: Names of those that must be below 1.
        flags: Names of those that are True or False.

    Raises:
        ConfigurationError: A number is out of range, a group names no parameters, or is no
            mapping.
        UnknownNameError: A group sets a hyper-parameter that does not exist.
    """
    checked = [with_members(group) for group in listed(groups)]
    for group in checked:
        own = {name: value for name, value in group.items() if name != "params"}
        for name in own:
            if name not in known:
                raise UnknownNameError("hyper-parameter in groups", name, known)
        check_values(own, below_one, flags)
    return checked


def hyperparameters_at(
    hyperparameters: Mapping[str, Hyperparameter],
    groups: Sequence[Group],
    problem: BilevelProblem,
    meta: Tensors,
    step: int,
) -> Evaluated:
    """Return the function that gives a parameter's hyper-parameters at a step.

    Args:
        hyperparameters: Values by name for all parameters.
        groups: Exceptions, the first that matches a name holding.
        problem: Problem whose ``meta`` gives those that come from λ.
        meta: Meta-parameters by name.
        step: Number of steps taken before this one.

    Returns:
        A function from the name of a parameter to values by name; for those that have the same
        values it returns one and the same object.

    Raises:
        ConfigurationError: A value requires a gradient, but not through λ; or a function returns
            values by parameter name and lacks one that is asked for.
        UnknownNameError: A function names what is no inner parameter.
    """
    numbers = dict(hyperparameters)
    if not groups and are_numbers(numbers):
        return Evaluated.of_numbers(numbers)
    own = [{n: v for n, v in group.items() if n != "params"} for group in groups]
    settings = [(name, v) for given in (numbers, *own) for name, v in given.items()]
    learned = any(isinstance(given, Tensor) for _, given in settings)
    names = {id(p): name for name, p in problem.meta_parameters().items()} if learned else {}
    functions = [(name, given) for name, given in settings if callable(given)]
    found: Iterator[Any] = iter(())
    if functions:
        # With their graphs even where none is wanted, which tell what the values depend on.
        with torch.enable_grad():
            found = iter(
                problem.evaluate_meta(
                    lambda module: [value_at(f, problem.meta, module, step) for _, f in functions],
                    meta,
                )
            )
    leaves: dict[int, set[int]] = {}

    def value(name: str, hyperparameter: Hyperparameter) -> Value | Mapping[str, Value]:
        if isinstance(hyperparameter, float | int):
            return hyperparameter
        if isinstance(hyperparameter, Tensor):
            key = names.get(id(hyperparameter))
            if key is None and hyperparameter.requires_grad:
                raise _foreign_error(name, "is a tensor that requires a gradient, but")
            given: Any = hyperparameter if key is None else meta[key]
        else:
            given = next(found)
        for part in given.values() if isinstance(given, Mapping) else (given,):
            if isinstance(part, Tensor) and part.requires_grad and id(part) not in leaves:
                leaves[id(part)] = leaves_of(part, meta)
                if not leaves[id(part)] <= known:
                    raise _foreign_error(name, "depends on a tensor that requires a gradient, but")
        if isinstance(given, Mapping):
            for key in given:
                if key not in problem.parameter_names:
                    kind = f"inner parameter in the values of {name}"
                    raise UnknownNameError(kind, key, problem.parameter_names)
        return given

    known = {id(tensor) for tensor in meta.values()}
    common = {name: value(name, given) for name, given in numbers.items()}
    special = [
        (patterns_of(group, problem), common | {n: value(n, given) for n, given in values.items()})
        for group, values in zip(groups, own, strict=True)
    ]
    return Evaluated(common, special, leaves)


def _foreign_error(name: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} {what} is no meta-parameter of this problem, so that the derivative through it "
        f"would be lost. Compute it at each step from the `meta` that is passed, for instance "
        f"{name}=lambda meta, step: meta.raw.exp(), or pass the meta-parameter itself, "
        f"{name}=problem.meta.raw; detach what is a constant."
    )


def is_used(value: Any) -> bool:
    """Return whether a hyper-parameter is or may become other than zero.

    Args:
        value: A number, a tensor or a function.
    """
    return not isinstance(value, int | float) or value != 0


def add_decay(gradient: Tensor, parameter: Tensor, decay: float | Tensor) -> Tensor:
    """Return the gradient with that of the L2 penalty ``decay`` / 2 · ‖θ‖² added.

    Args:
        gradient: Gradient of one parameter.
        parameter: The parameter.
        decay: Factor of the penalty.
    """
    return add_scaled(gradient, parameter, decay) if is_used(decay) else gradient


def add_scaled(tensor: Tensor, other: Tensor, factor: float | Tensor) -> Tensor:
    """Return ``tensor`` + ``factor`` · ``other``, in one operation where the factor is a number.

    Args:
        tensor: First summand.
        other: Tensor of the same shape.
        factor: A number, or a tensor that may be λ.
    """
    if isinstance(factor, Tensor):
        return tensor + factor * other
    return tensor.add(other, alpha=factor)


def add_quotient(
    tensor: Tensor, numerator: Tensor, denominator: Tensor, factor: float | Tensor
) -> Tensor:
    """Return ``tensor`` + ``factor`` · ``numerator`` / ``denominator``, rounded as in torch.

    Args:
        tensor: First summand.
        numerator: Tensor of the same shape.
        denominator: Tensor of the same shape.
        factor: A number, or a tensor that may be λ.
    """
    if isinstance(factor, Tensor):
        return tensor + factor * (numerator / denominator)
    return torch.addcdiv(tensor, numerator, denominator, value=factor)
