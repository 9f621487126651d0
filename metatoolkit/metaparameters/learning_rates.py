"""LearningRates: λ is the learning rates of the inner learner (Meta-SGD, LSLR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metatoolkit.errors import ConfigurationError
from metatoolkit.metaparameters.placement import attach_at, chosen_parameters
from metatoolkit.metaparameters.registry import modules

Per = Literal["coordinate", "tensor", "layer"]


@modules.register()
class LearningRates(nn.Module):
    """Learning rates of a model's parameters, as meta-parameters.

    One for each coordinate is Meta-SGD (Li et al. 2017, arXiv 1707.09835); one for each layer and
    inner step is LSLR of MAML++ (Antoniou et al. 2019, arXiv 1810.09502). They are learned as they
    are, without a bound, so that one may become negative, as in both papers. An inner learner
    takes them by ``lr=LearningRates.at``.

    Args:
        model: Module whose parameters they are for.
        lr: First value of each.
        per: ``"coordinate"``, ``"tensor"`` or ``"layer"``, which is a module with its own
            parameters, such as weight and bias.
        steps: Number of inner steps, each of which has rates of its own, in a leading dimension;
            ``None`` for the same rates at all steps.
        parameters: Name patterns, as in :mod:`fnmatch`, of the parameters that have a rate here;
            ``None`` for all that require a gradient. Groups of the inner learner give the others
            theirs.

    Raises:
        ConfigurationError: A pattern matches no parameter, ``lr`` is not above 0, ``steps`` is
            below 1, or ``per`` is unknown.

    Example:
        >>> import torch, metatoolkit as mt
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
        >>> meta = LearningRates(model, lr=0.1, per="layer", steps=5)
        >>> [(name, tuple(rates.shape)) for name, rates in meta.named_parameters()]
        [('0.rate', (5,)), ('1.rate', (5,))]
        >>> inner = mt.inner.SGD(lr=LearningRates.at)
        >>> sorted(meta.at(step=4))
        ['0.bias', '0.weight', '1.bias', '1.weight']
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        per: Per = "coordinate",
        steps: int | None = None,
        parameters: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if per not in get_args(Per):
            raise ConfigurationError(
                f"per is {per!r}; accepted: {', '.join(map(repr, get_args(Per)))}."
            )
        if not 0 < lr < float("inf"):
            raise ConfigurationError(f"lr is {lr}; a finite number above 0 is needed.")
        if steps is not None and steps < 1:
            raise ConfigurationError(f"steps is {steps}; at least 1 is needed, or None.")
        self.steps = steps
        self._rate_of: dict[str, str] = {}
        for name, parameter in chosen_parameters(model, parameters).items():
            rate = name
            if per == "layer":
                layer = name.rpartition(".")[0]
                rate = f"{layer}.rate" if layer else "rate"
            if rate not in self._rate_of.values():
                shape = parameter.shape if per == "coordinate" else torch.Size(())
                first = torch.full(
                    shape if steps is None else (steps, *shape),
                    lr,
                    dtype=parameter.dtype.to_real(),
                    device=parameter.device,
                )
                attach_at(self, rate, nn.Parameter(first))
            self._rate_of[name] = rate

    def at(self, step: int) -> dict[str, Tensor]:
        """Return the rates at an inner step by the names of the model's parameters.

        Args:
            step: Number of inner steps taken before.

        Returns:
            One tensor for each parameter: of its shape per coordinate, 0-d else.

        Raises:
            ConfigurationError: There are rates for each step, but none for this one.
        """
        rates: dict[str, Tensor] = dict(self.named_parameters(remove_duplicate=False))
        if self.steps is not None:
            if step >= self.steps:
                raise ConfigurationError(
                    f"inner step {step + 1} has no learning rate: these are for steps=1 to "
                    f"{self.steps}. Take no more steps, make LearningRates with more, or with "
                    "steps=None."
                )
            rates = {name: each[step] for name, each in rates.items()}
        return {name: rates[rate] for name, rate in self._rate_of.items()}
