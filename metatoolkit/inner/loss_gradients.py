"""The gradient of the training loss in θ, and in λ by the same pass where it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import fold_in
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.backward import backward, gradients_recorded
from metatoolkit.stateless.exchange import within
from metatoolkit.stateless.graphs import refuse_inference_mode, unreached_error
from metatoolkit.stateless.loss_values import refuse_sparse


def loss_gradients(
    problem: BilevelProblem,
    state: InnerState,
    meta: Tensors,
    batch: Any,
    create_graph: bool = False,
    direct: bool = False,
) -> tuple[Tensor, Tensors, Sequence[Tensor | None], Tensors]:
    """Return training loss, its gradients in θ and in λ, and the buffers after it.

    Args:
        problem: Problem whose ``train_loss`` is differentiated.
        state: State whose parameters require a gradient.
        meta: Meta-parameters by name.
        batch: Training batch.
        create_graph: Whether loss and gradients carry their graphs.
        direct: Whether the loss is differentiated in ``meta``, which must be leaves, too.

    Returns:
        The loss (a scalar), the gradients by the names of the parameters that the graph of the
        loss reaches, those in λ in the order of ``meta``, ``None`` where it does not reach one and
        nothing at all without ``direct``, and the buffers. Cost: 3 F.

    Raises:
        UnsupportedError: The loss reaches no parameter.
    """
    parameters = state.parameters
    refuse_inference_mode()
    with gradients_recorded():
        loss, buffers = problem.evaluate_train(
            parameters, meta, state.buffers, batch, fold_in(state.key, state.step)
        )
        if not loss.requires_grad:
            raise unreached_error(batch)
        points = list(parameters.values())
        leaves = list(meta.values()) if direct else []
        if create_graph:
            problem.watch_second_derivatives(loss, points)
            if direct:
                problem.watch_second_derivatives(loss, leaves, "λ")
        with within(loss):
            found = backward([loss], points + leaves, create_graph=create_graph)
    refuse_sparse(found)
    pairs = zip(parameters, found, strict=False)
    gradients = {name: gradient for name, gradient in pairs if gradient is not None}
    if not gradients:
        raise unreached_error(batch)
    return loss, gradients, found[len(points) :], buffers
