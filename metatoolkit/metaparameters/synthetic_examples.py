"""SyntheticExamples: λ is the inputs that a network is trained on (data distillation)."""

from __future__ import annotations

from torch import Tensor, nn

from metatoolkit.errors import DataError, ShapeError
from metatoolkit.metaparameters.registry import modules


@modules.register()
class SyntheticExamples(nn.Module):
    """Training examples whose inputs are learned, and whose labels stay.

    Maclaurin et al. 2015 (arXiv 1502.03492) learn training data by hypergradients; a few examples
    that stand for a data set are dataset distillation (Wang et al. 2018, arXiv 1811.10959). The
    training loss takes them from ``meta`` in the place of a batch, which may be
    ``None``. Cost: no pass; the inputs.

    Args:
        inputs: First inputs, (examples, ...), floating point; they are copied.
        labels: Their labels, int64 of shape (examples,).

    Raises:
        ShapeError: There is no example, or another number of labels.
        DataError: A type is not accepted.

    Attributes:
        inputs: λ.
        labels: As given; a buffer.

    Example:
        >>> import torch, metatoolkit as mt
        >>> meta = SyntheticExamples(torch.zeros(10, 1, 8, 8), torch.arange(10))
        >>> def train_loss(model, meta, batch):
        ...     return mt.losses.cross_entropy(model, meta, meta())
        >>> train_loss(mt.networks.MLP(64), meta, None).shape
        torch.Size([])
    """

    labels: Tensor

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        super().__init__()
        shapes = tuple(inputs.shape), tuple(labels.shape)
        if inputs.dim() < 1 or len(inputs) == 0 or labels.shape != inputs.shape[:1]:
            raise ShapeError(
                f"inputs have the shape {shapes[0]}, labels {shapes[1]}; (examples, ...) and "
                "(examples,) are needed, of at least one example."
            )
        if not inputs.is_floating_point() or labels.dtype.is_floating_point:
            raise DataError(
                f"inputs are {inputs.dtype}, labels {labels.dtype}; a floating-point type and "
                "int64 are needed."
            )
        self.inputs = nn.Parameter(inputs.detach().clone())
        self.register_buffer("labels", labels.detach().clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the inputs and their labels, as a batch."""
        return self.inputs, self.labels

    def extra_repr(self) -> str:
        """Return what tells this module from another one."""
        return f"examples={len(self.labels)}, shape={tuple(self.inputs.shape[1:])}"
