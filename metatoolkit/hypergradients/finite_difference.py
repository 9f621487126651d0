"""DARTS: the one-step hypergradient with its mixed second derivative by a finite difference."""

from __future__ import annotations

from metatoolkit.hypergradients.adapted_difference import AdaptedDifference
from metatoolkit.hypergradients.base import Traits
from metatoolkit.hypergradients.registry import estimators


@estimators.register()
class FiniteDifference(AdaptedDifference):
    """The one-step hypergradient of DARTS (Liu et al. 2019, arXiv 1806.09055, section 2.3).

    With θ⁺ the parameters after one inner step and v the gradient of the outer loss L there,
    equation 7 is ∂L/∂λ − ``lr`` · ∂²L_T/∂λ∂θ · v. For any inner learner the vector is
    v̂ = ∂θ⁺/∂g · v, with g the gradient of the step, which is −``lr`` · v for SGD, and equation 8
    gives the product as (∂L_T(θ + ε v̂)/∂λ − ∂L_T(θ − ε v̂)/∂λ) / 2ε. What λ does in the optimizer
    is added exactly. v̂ is taken by differentiating the update, so that it may be any. Both passes
    have the dropout masks of the step, without which their difference is noise, and hold what a
    derivative takes for a constant as it was in the step: what the loss detaches, reads as a number
    or computes without recording gradients, integers, and the pieces of piecewise functions, such
    as the sides of rectified units. Coordinates with a gradient of exactly zero that the optimizer
    would amplify more than all others (dead ones under Adam) are left out.

    A loss whose gradient is not the derivative of its value (a straight-through estimator, a
    quantizer, a hook that changes gradients) has no meaningful difference, and is an error. Custom
    functions are compared with their backward passes in each call.

    The details tell ``radius``, ``difference_error``, an estimate of the error relative to the
    whole hypergradient, usually too large, and ``slope_error``: (L_T(θ + ε v̂) − L_T(θ − ε v̂)) / 2ε
    less ⟨g, v̂⟩, over Σ |g_i v̂_i|. The error is of the order of (ε ‖v̂‖)², and rounding adds to it
    where that is small: 1e-3 and below in float32, as a rule. Where the two sides of θ disagree, or
    the loss computes in few digits (autocast), other radii are tried, at two passes each; an
    estimate above a tenth is an :class:`~metatoolkit.errors.AccuracyWarning`, one above 1 an error.
    θ or λ in bfloat16 have but one or two digits, with neither.

    Cost with F one forward pass: the base step, 3 F, the outer loss, 3 F, and two passes of 3 F
    each with λ at the input and 1 F with λ in the loss alone. Memory: that of an ordinary step
    and a few copies of θ.

    Args:
        radius: Norm of the perturbation ε v̂, 0.01 in the paper; ``None`` for the cube root of the
            rounding unit times the distance over which the losses change, by their slopes.

    Raises:
        ConfigurationError: The radius is not above 0.

    Example:
        >>> FiniteDifference(radius=0.01).lookahead
        True
    """

    traits = Traits(
        kind="approximate",
        computes="derivative through the last inner step alone",
        assumes="as OneStep; an update by the gradient; first derivatives only",
        passes="base step and 3 passes: 8 F to 12 F",
        memory="graph of one pass",
        paper="Liu et al. 2019, arXiv 1806.09055",
    )
    lookahead = True
