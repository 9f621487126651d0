"""What Unrolled says of itself in each of its settings."""

from __future__ import annotations

import dataclasses

from metatoolkit.hypergradients.base import Traits
from metatoolkit.hypergradients.truncation import truncated


def described(
    traits: Traits,
    product: str,
    arity: int | None,
    truncation: tuple[int | None, int],
    *,
    checkpoints: bool,
    weighted: bool,
    first_order: bool,
) -> Traits:
    """Return the traits of an unroll.

    Args:
        traits: Those of the plain one.
        product: How adjoints are multiplied with Jacobians.
        arity: Arity of the tree of states, where there is one.
        truncation: Number of last steps that are differentiated, ``None`` for all; and of steps.
        checkpoints: Whether only some states are kept.
        weighted: Whether there is an outer loss after each step.
        first_order: Whether second derivatives are left out.
    """
    if first_order:
        traits = dataclasses.replace(
            traits,
            kind="approximate",
            computes="derivative through T updates",
            assumes="λ as initial state, learning rate or in the outer loss; small learning rates",
            passes="(3 T + 3) F",
            memory="T inner states and gradients, and the graph of one pass",
            paper="Finn et al. 2017, arXiv 1703.03400",
        )
    elif product == "forward_over_reverse":
        traits = dataclasses.replace(
            traits,
            assumes="second derivatives of the training loss, in forward mode and symmetric",
            passes="12 F for each step, 3 F for the outer loss",
            memory="T inner states and gradients, and the graph of one pass",
            paper="Kemaev et al. 2025, arXiv 2505.00793",
        )
    if checkpoints:
        count = "2 √T" if arity is None else f"{arity} log_{arity} T"
        further = "3 F" if arity is None else f"3 (log_{arity} T − 1) F"
        graph = traits.memory.split("and ")[-1]
        traits = dataclasses.replace(
            traits,
            passes=f"{traits.passes}; up to {further} more for each step",
            memory=f"{count} inner states and {graph}",
            paper=traits.paper if arity is None else "Engstrom et al. 2025, arXiv 2503.13751",
        )
    traits = truncated(traits, *truncation)
    if weighted:
        traits = dataclasses.replace(
            traits,
            kind="approximate",
            computes="derivative of the weighted outer losses after each of T inner steps",
            passes=f"{traits.passes}; 3 F for the outer loss after each",
            memory=traits.memory.replace("graph of one step, or of those kept", "graph of T steps"),
            paper="Antoniou et al. 2019, arXiv 1810.09502",
        )
    if first_order:
        computes = f"{traits.computes}, gradients of the training loss held"
        traits = dataclasses.replace(traits, computes=computes)
    return traits
