"""SAMA: the identity for the inner Hessian, adapted to the optimizer, by first derivatives."""

from __future__ import annotations

from metatoolkit.hypergradients.adapted_difference import AdaptedDifference
from metatoolkit.hypergradients.base import Traits
from metatoolkit.hypergradients.registry import estimators


@estimators.register()
class SAMA(AdaptedDifference):
    """SAMA (Choe et al. 2023, arXiv 2310.05674, section 3).

    With v the gradient of the outer loss L at θ, u(g) the update of the optimizer and θ⁺ = θ − u,
    the hypergradient is ∂L/∂λ + ∂²L_T/∂λ∂θ · v̂ with v̂ = ∂θ⁺/∂g · v = −∂u/∂g · v: the base
    Jacobian is the identity, and ∂u/∂g the optimizer's own adaptation, a diagonal for SGD, Adam,
    AdamW and RMSprop; the update is differentiated, so that it may be any. The product is the
    central difference (∂L_T(θ + ε v̂)/∂λ − ∂L_T(θ − ε v̂)/∂λ) / 2ε with the dropout masks of the
    step in both passes, and with what is held, told, warned of and refused as FiniteDifference
    has it. It is the limit of OneStep(lookahead=False) for small ε; with plain SGD, at an inner
    optimum, it takes ``lr`` · I for the inverse Hessian. What λ does in the optimizer is added
    exactly.

    Cost with F one forward pass: the base step, whose gradient is needed, 3 F, the outer loss,
    3 F, and two passes of 3 F each with λ at the input and 1 F with λ in the loss alone. Memory:
    that of an ordinary step and a few copies of θ.

    Args:
        radius: Norm of the perturbation ε v̂, 1.0 in the paper; ``None`` chooses as
            FiniteDifference does.

    Raises:
        ConfigurationError: The radius is not above 0.

    Example:
        >>> SAMA(radius=1.0).lookahead
        False
    """

    traits = Traits(
        kind="approximate",
        computes="derivative through the last inner step alone, at the θ before it",
        assumes="inner Hessian near a multiple of the identity; an update by the gradient",
        passes="base step and 3 passes: 8 F to 12 F",
        memory="graph of one pass",
        paper="Choe et al. 2023, arXiv 2310.05674",
    )
    lookahead = False
