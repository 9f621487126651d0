"""Groups of inner parameters as in ``torch.optim``: by name, or by the tensors themselves."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from metatoolkit.components.patterns import matching
from metatoolkit.errors import ConfigurationError, warn_renamed
from metatoolkit.problem import BilevelProblem

Group = Mapping[str, Any]


def listed(groups: Iterable[Group]) -> list[Group]:
    """Return groups as a list.

    Args:
        groups: Exceptions for some parameters, as the user gave them.

    Raises:
        ConfigurationError: They are no mappings one by one.
    """
    given = None
    if isinstance(groups, Iterable) and not isinstance(groups, str | Mapping):
        given = list(groups)
    if given is None or not all(isinstance(group, Mapping) for group in given):
        raise ConfigurationError(
            f"groups is {groups!r}; give a list of mappings, for instance "
            "[{'params': ['head.*'], 'lr': 0.01}]."
        )
    return given


def with_members(group: Group) -> dict[str, Any]:
    """Return a copy of a group, with what it holds as a list under ``"params"``.

    Args:
        group: Exception for some parameters, as the user gave it.

    Raises:
        ConfigurationError: It holds nothing, or something else than names and tensors.
    """
    own = dict(group)
    if "parameters" in own:
        if "params" in own:
            raise ConfigurationError(
                f"groups: {group!r} has 'params' and its former name 'parameters'; drop the latter."
            )
        own = {"params": own.pop("parameters"), **own}
        warn_renamed("'parameters' of a group", "'params'")
    given = own.get("params")
    if isinstance(given, Tensor):
        given = [given]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise _without_members(group)
    # Of pairs from named_parameters the tensor counts: their names may be those of a part.
    own["params"] = [entry[1] if _is_named(entry) else entry for entry in given]
    if not own["params"] or not all(isinstance(entry, str | Tensor) for entry in own["params"]):
        raise _without_members(group)
    return own


def _is_named(entry: object) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Tensor)


def _without_members(group: Group) -> ConfigurationError:
    return ConfigurationError(
        f"groups: {group!r} has no list 'params' of names, patterns or parameters; give, for "
        "instance, {'params': ['head.*'], 'lr': 0.01} or {'params': model.head.parameters(), "
        "'lr': 0.01}. An iterator serves one learner alone; give a list to several."
    )


def check_groups(groups: Sequence[Group], problem: BilevelProblem) -> None:
    """Raise unless each group holds inner parameters of a problem, and nothing that is none.

    Args:
        groups: Exceptions for some parameters.
        problem: Problem whose inner parameters they shall be.

    Raises:
        ConfigurationError: A pattern matches none, or a tensor is none.
    """
    for group in groups:
        matching("groups", patterns_of(group, problem), problem.parameter_names, "inner parameter")


def patterns_of(group: Group, problem: BilevelProblem) -> list[str]:
    """Return the patterns of a group, with the names of a problem for tensors.

    Args:
        group: Exception for some parameters.
        problem: Problem whose inner parameters they are.

    Raises:
        ConfigurationError: A tensor is no inner parameter of the problem.
    """
    members: list[Any] = group["params"]
    tensors = [entry for entry in members if isinstance(entry, Tensor)]
    if not tensors:
        return members
    frozen = {id(p) for p in problem.model.parameters() if not p.requires_grad}
    names = names_of("a group", tensors, problem.inner_names(), problem.meta_parameters(), frozen)
    patterns = [entry for entry in members if isinstance(entry, str)]
    if not names and not patterns:
        raise ConfigurationError("groups: a group holds frozen parameters alone; leave it out.")
    return patterns + [glob.escape(name) for name in names]


def names_of(
    holder: str,
    tensors: Iterable[Tensor],
    names: Mapping[int, str],
    meta: Mapping[str, Tensor],
    frozen: Collection[int],
) -> list[str]:
    """Return the names of parameters that are given as torch.optim takes them.

    Args:
        holder: What holds them, at the beginning of the message.
        tensors: The parameters.
        names: Names of the inner parameters by identity.
        meta: Meta-parameters by name.
        frozen: Identities of parameters that do not move, and are passed over.

    Raises:
        ConfigurationError: A tensor is a meta-parameter, or no inner parameter.
    """
    own = {id(tensor): name for name, tensor in meta.items()}
    found = []
    for tensor in tensors:
        if id(tensor) in own:
            raise ConfigurationError(
                f"{holder} holds the meta-parameter {own[id(tensor)]!r}, which the inner "
                "learner does not move; make it from the inner parameters alone."
            )
        if id(tensor) in names:
            found.append(names[id(tensor)])
        elif id(tensor) not in frozen:
            raise ConfigurationError(
                f"{holder} holds a parameter of shape {tuple(tensor.shape)} that is no "
                "inner parameter of the problem; make it from problem.model.parameters()."
            )
    return found
