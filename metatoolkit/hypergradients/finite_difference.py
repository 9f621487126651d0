"""DARTS: the one-step hypergradient with its mixed second derivative by a finite difference."""

from __future__ import annotations

from metatoolkit.hypergradients.adapted_difference import AdaptedDifference
from metatoolkit.hypergradients.base import Traits


class FiniteDifference(AdaptedDifference):
    """The one-step hypergradient of DARTS (Liu et al. 2019, arXiv 1806.09055, section 2.3).

    With θ⁺ the parameters after one inner step and v the gradient of the outer loss L there,
    equation 7 is ∂L/∂λ − ``lr`` · ∂²L_T/∂λ∂θ · v. For any inner learner the vector is
    v̂ = ∂θ⁺/∂g · v, with g the gradient of the step, which is −``lr`` · v for SGD, and equation 8
    gives the product as (∂L_T(θ + ε v̂)/∂λ − ∂L_T(θ − ε v̂)/∂λ) / 2ε. What λ does in the optimizer
    is added exactly. The error is of the order of (ε ‖v̂‖)², and rounding adds to it where that is
    small. Both passes have the dropout masks of the step, without which their difference is
    noise, and what the loss detaches is held as it was in the step, for a derivative takes it for a
    constant. Coordinates with a gradient of exactly zero that the optimizer would amplify more
    than all others (dead ones under Adam) are left out.

    A loss whose gradient is not the derivative of its value for other reasons (a straight-through
    estimator, values computed under ``no_grad``) has no meaningful difference. The detail
    ``slope_error`` tells: (L_T(θ + ε v̂) − L_T(θ − ε v̂)) / 2ε less ⟨g, v̂⟩, over ‖g‖ ‖v̂‖, is near
    zero else.

    Cost with F one forward pass: the base step, 3 F, the outer loss, 3 F, and two passes of 3 F
    each with λ at the input and 1 F with λ in the loss alone. Memory: that of an ordinary step
    and a few copies of θ.

    Args:
        radius: Norm of the perturbation ε v̂, 0.01 in the paper; ``None`` for the cube root of the
            rounding unit times max(1, ‖θ‖). Under autocast the unit is that of its type; a loss
            that turns autocast on by itself needs a radius, about 0.2 times ‖θ‖ for bfloat16.

    Raises:
        ConfigurationError: The radius is not above 0.
    """

    traits = Traits(
        kind="approximate",
        computes="derivative through the last inner step alone",
        assumes="as OneStep, and an inner learner that tells ∂θ⁺/∂g; first derivatives only",
        passes="base step and 3 passes: 8 F to 12 F",
        memory="graph of one pass",
        paper="Liu et al. 2019, arXiv 1806.09055",
    )
    lookahead = True
