"""iMAML: initial values are learned by implicit differentiation of a proximal inner problem."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metatoolkit.algorithms.assembly import Algorithm, assemble
from metatoolkit.algorithms.registry import algorithms
from metatoolkit.hypergradients.implicit import Implicit
from metatoolkit.hypergradients.linear_solvers import ConjugateGradient, LinearSolver
from metatoolkit.metaparameters import Proximal
from metatoolkit.stateless.passes import Loss


@algorithms.register()
def imaml(
    model: nn.Module,
    train_loss: Loss,
    valid_loss: Loss,
    lr: float,
    steps: int = 16,
    strength: float = 2.0,
    learn_strength: bool = False,
    solver: LinearSolver | None = None,
) -> Algorithm:
    """Return iMAML (Rajeswaran et al. 2019, arXiv 1909.04630).

    The inner loss is ``train_loss`` + s/2 ‖θ − φ‖² with φ the initial values, and the derivative
    in φ that of the inner optimum, s (H + s)⁻¹ ∂L/∂θ with H the Hessian of ``train_loss``. It is
    right as far as T steps reach the optimum. Conjugate gradient needs H + s to be positive
    definite there, and says where it is not: a larger s or more steps help, or ``MINRES``. Cost
    for a task, with F one forward pass and k iterations: (3 T + 6) F + 6 (k + 1) F. Memory: the
    graph of one inner step.

    Args:
        model: Network.
        train_loss: Inner loss.
        valid_loss: Outer loss.
        lr: Inner learning rate.
        steps: Number of inner steps T.
        strength: s, or its first value.
        learn_strength: Whether s is learned, too.
        solver: Solver of the linear system; ``None`` for the paper's 5 iterations of conjugate
            gradient.

    Example:
        >>> loss = lambda model, meta, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> algorithm = imaml(nn.Linear(1, 1), loss, loss, lr=0.1, learn_strength=True)
        >>> sorted(algorithm.meta)
        ['initialization', 'proximal']
    """

    def pulled(model: Any, meta: Any, batch: Any) -> Tensor:
        pull = meta["proximal"].term(model, meta["initialization"].values())
        return train_loss(model, meta, batch) + pull

    estimator = Implicit(solver or ConjugateGradient(5), steps)
    parts = {"proximal": Proximal(strength, learn_strength)}
    return assemble(model, pulled, valid_loss, lr, estimator, also=parts)
