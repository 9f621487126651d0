"""The former ``EvoGrad(guided=True)``, which is GuidedEvoGrad now; goes with the next release."""

from __future__ import annotations

import inspect
import warnings
from abc import ABCMeta
from typing import Any

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.guided_evograd import GuidedEvoGrad


class TakesGuided(ABCMeta):
    """Class of EvoGrad, whose former option it takes although the signature has it no more."""

    @property
    def __signature__(cls) -> inspect.Signature:
        """The signature without ``guided``."""
        own = inspect.signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:])

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """Return an instance, or one of GuidedEvoGrad for ``guided=True``; see the class."""
        if "guided" not in options or "former_options" not in vars(cls):
            return super().__call__(*args, **options)
        guided = options.pop("guided")
        if guided in ("true", "false"):  # as a command line may have it
            guided = guided == "true"
        now = "EvoGrad() without it" if guided is False else "GuidedEvoGrad()"
        warnings.warn(
            f"EvoGrad(guided={guided}) is {now} now, and the option guided goes with the next "
            "release.",
            DeprecationWarning,
            stacklevel=2,
        )
        if not isinstance(guided, bool):
            raise ConfigurationError(f"guided is {guided!r}; use EvoGrad or GuidedEvoGrad.")
        if not guided:
            return super().__call__(*args, **options)
        given = inspect.signature(cls).bind(*args, **options).arguments
        for name, value in (("candidates", 2), ("noise", "sign"), ("common_random_numbers", True)):
            if given.get(name, value) != value:
                raise ConfigurationError(
                    f"guided=True with {name}={given[name]!r}; GuidedEvoGrad has two candidates "
                    "along the gradient of the outer loss, with common masks: make it without this "
                    "argument."
                )
        given = {"sigma": inspect.signature(cls).parameters["sigma"].default, **given}
        own = inspect.signature(GuidedEvoGrad).parameters
        return GuidedEvoGrad(**{name: value for name, value in given.items() if name in own})
