"""Types of the entries of a configuration: what each accepts, and how errors and help say it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from metatoolkit.errors import optional_import

with optional_import("metatoolkit.experiments"):
    from pydantic import AfterValidator, GetCoreSchemaHandler
    from pydantic import Field as Field
    from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Words:
    """What a type accepts, as errors and help say it, where its own parts do not tell.

    Attributes:
        words: Such as ``"a list of increasing numbers"``.
    """

    words: str


@dataclass(frozen=True, eq=False)
class Among:
    """Lets an entry accept the names of a registry: ``Annotated[str, Among(NETWORKS)]``.

    Attributes:
        names: The names, asked for anew at each check.
    """

    names: Collection[str]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return what pydantic does with a value.

        Args:
            source: The type that this stands beside.
            handler: Knows what to do with the type.
        """
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise ValueError(f"{name!r} is unknown")
        return name


def _increasing(values: list[float]) -> list[float]:
    if values != sorted(values):
        raise ValueError("it does not increase")
    return values


def _usable(device: str) -> str:
    try:
        kind = torch.device(device).type
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no GPU")
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"it cannot be used: {error}") from None
    if kind == "meta":
        raise ValueError("it holds no values")
    return device


Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Milestones = Annotated[
    list[Share], AfterValidator(_increasing), Words("a list of increasing numbers from 0 to 1")
]
Device = Annotated[
    str, AfterValidator(_usable), Words("'cpu', or 'cuda' where PyTorch finds a GPU,")
]


def entry(default: Any, help: str) -> Any:
    """Return an entry of :class:`Settings`.

    Args:
        default: Its value by default; ``...`` where a run must give it.
        help: What it is, in one line.
    """
    return Field(default, description=help)
