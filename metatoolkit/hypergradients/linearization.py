"""One inner step with its graph, for products with its Jacobian."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metatoolkit.hypergradients.arguments import check_through
from metatoolkit.hypergradients.attention_kernels import double_backward_kernels
from metatoolkit.hypergradients.base import add_gradients, check_finite
from metatoolkit.hypergradients.learning_rates import checked_rate
from metatoolkit.hypergradients.products import Adjoint, as_real, as_vector, vector_jacobian_product
from metatoolkit.inner.base import InnerLearner
from metatoolkit.inner.traits import is_linear_in_gradient, is_own
from metatoolkit.problem import BilevelProblem
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.backward import backward
from metatoolkit.stateless.exchange import within

Through = Literal["state", "parameters"]

_kept_product = functools.partial(vector_jacobian_product, retain_graph=True)
"""A product that leaves the graph of the step for the next."""


class StepLinearization:
    """The map Φ: (state, λ) → state of one inner step at a point, for products with Jacobians.

    The variables are the parameters and, with ``through="state"``, the optimizer's slots; vectors
    over them are flat and real, in float32 or more. The graph of the step is kept, about three
    times the memory of an ordinary training step. Buffers are constants.

    Where the learner takes its step from one gradient, θ⁺ = U(θ, g(θ, λ), λ), the two parts are
    differentiated one by one: for SGD the identity in ∂Φ = I − ``lr`` · H cancels exactly in
    I − ∂Φ, and small eigenvalues of ``lr`` · H survive in float32 and bfloat16. Where U is linear
    in g, as SGD's, its derivative is a diagonal, taken once for all products.

    Args:
        problem: The bilevel problem.
        inner: Inner learner whose step is linearized.
        state: Detached state before the step.
        meta: Meta-parameters by name, leaves that require a gradient.
        batch: Training batch.
        through: Whether slots are variables (``"state"``) or constants (``"parameters"``).

    Attributes:
        after: State after the step, detached.
        transposed_products: Number of products with (I − ∂Φ)ᵀ so far.
        products: Number of products with I − ∂Φ so far.
        rounding: Relative rounding error of a product, that of the least precise variable.
        names: Names of the variables.
        shapes: Their shapes by name.
        sizes: Number of real entries of each.

    Raises:
        ConfigurationError: ``through`` is unknown.
        NonFiniteError: The training loss or the state after the step is NaN or infinite.
    """

    def __init__(
        self,
        problem: BilevelProblem,
        inner: InnerLearner,
        state: InnerState,
        meta: Tensors,
        batch: Any,
        through: Through = "state",
    ) -> None:
        check_through(through)
        self._slots = through == "state"
        self._leaves = list(meta.values())
        self._inputs = [
            tensor.detach().requires_grad_(self._slots or index < len(state.parameters))
            for index, tensor in enumerate(state.tensors())
        ]
        entry = state.with_tensors(self._inputs)
        self._reached = set(state.parameters)
        self._gradients: list[Tensor] = []
        self._gradient_leaves: list[Tensor] = []
        with double_backward_kernels(), torch.enable_grad():
            parted = not is_own(inner, InnerLearner, "step") and not problem.begins_with_meta(state)
            if parted:
                loss, gradients, buffers = inner.gradients(problem, entry, meta, batch, True)
                cut = {name: g.detach().requires_grad_() for name, g in gradients.items()}
                after = inner.apply(problem, entry, meta, cut)
                self._reached = set(gradients)
                self._gradient_names = list(gradients)
                self._gradients = list(gradients.values())
                self._gradient_leaves = list(cut.values())
                self.after = after.replaced(buffers=buffers).detach()
            else:
                after, loss = inner.step(problem, entry, meta, batch, True)
                self.after = after.detach()
        self._loss = loss
        count = len(self._inputs) if self._slots else len(state.parameters)
        self._inputs = self._inputs[:count]
        self._parameters = len(state.parameters)
        self._outputs = after.tensors()[:count]
        slots = [f"{slot} of {n}" for slot, values in state.optimizer.items() for n in values]
        self.names = [*state.parameters, *slots][:count]
        self.shapes = {n: t.shape for n, t in zip(self.names, self._inputs, strict=True)}
        check_finite(
            {"the training loss": loss}
            | {
                f"{name!r} after an inner step": tensor
                for name, tensor in zip(self.names, self._outputs, strict=True)
            }
        )
        dtypes = {as_real(tensor).dtype for tensor in self._inputs}
        self.dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        self.device = self._inputs[0].device
        # Where a vector holds the variables as they are.
        self._is_exact = all(tensor.dtype == self.dtype for tensor in self._inputs)
        self.rounding = max(torch.finfo(tensor.dtype).eps for tensor in self._inputs)
        self.sizes = [as_real(tensor).numel() for tensor in self._inputs]
        self.size = sum(self.sizes)
        self.transposed_products = 0
        self.products = 0
        self._transposed_graph: tuple[Tensor, Tensor] | None = None
        self._flat: Tensor | None = None
        self._scale: tuple[Tensor | None, float | None] | None = None
        self._diagonal: tuple[Tensor, dict[str, Tensor | None]] | None = None
        self._is_diagonal = parted and count == self._parameters and is_linear_in_gradient(inner)

    def flatten(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Return one vector from tensors of the variables' shapes; missing ones are zeros.

        Args:
            tensors: One entry for each variable; those at the end may be left out.
        """
        if self._is_exact and len(self._inputs) == 1 and tensors and tensors[0] is not None:
            return tensors[0].reshape(-1)
        padded = [*tensors, *[None] * (len(self._inputs) - len(tensors))]
        zeros = functools.partial(torch.zeros, dtype=self.dtype, device=self.device)
        pairs = zip(padded, self.sizes, strict=True)
        parts = [zeros(size) if tensor is None else tensor for tensor, size in pairs]
        if self._is_exact:
            return torch.cat([part.reshape(-1) for part in parts])
        return as_vector(parts, self.dtype)

    def right_hand_side(self, adjoint: Adjoint) -> Tensor:
        """Return the outer gradient as one vector, for a system with (I − ∂Φ)ᵀ.

        A parameter that the batch does not reach stays where it is, whatever λ and the others do:
        it is a constant of Φ, whose equation 0 = 0 has no right-hand side.

        Args:
            adjoint: Outer gradient in the tensors of the state.
        """
        pairs = zip(self.names, adjoint, strict=False)
        unreached = set(self.names[: self._parameters]) - self._reached
        return self.flatten([None if name in unreached else part for name, part in pairs])

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of a vector in the shapes and types of the variables.

        Args:
            vector: Vector of length :attr:`size`.
        """
        found = []
        parts = vector.split_with_sizes(self.sizes)
        if self._is_exact:
            return [part.view_as(like) for part, like in zip(parts, self._inputs, strict=True)]
        for part, like in zip(parts, self._inputs, strict=True):
            real = as_real(like)
            entry = part.view_as(real).to(real.dtype)
            found.append(torch.complex(*entry.unbind(-1)) if like.is_complex() else entry)
        return found

    def check(self, what: str, vector: Tensor) -> None:
        """Raise if a vector is not finite, with the name of the variable.

        Args:
            what: What the vector is, in words.
            vector: Vector of length :attr:`size`.

        Raises:
            NonFiniteError: An entry is NaN or infinite.
        """
        if math.isfinite(float(vector.sum())):
            return
        parts = vector.split(self.sizes)
        check_finite({f"{what} at {n!r}": part for n, part in zip(self.names, parts, strict=True)})

    def transposed_product(self, vector: Tensor, divisor: Tensor | None = None) -> Tensor:
        """Return (I − ∂Φ)ᵀ (u / D), a vector; one double backward pass of the training loss.

        To be called under :class:`double_backward_kernels`, once for several products.

        Args:
            vector: The vector u.
            divisor: D, a vector; ``None`` for ones.
        """
        self.transposed_products += 1
        if self._scale is None or self._scale[0] is not divisor:
            self._scale = divisor, self._hessian_scale(divisor)
        scale = self._scale[1]
        if scale is None:
            return self._pull_back(vector if divisor is None else vector / divisor, False, False)[0]
        with within(self._loss):
            found = backward([self._gradient()], self._inputs, [vector], retain_graph=True)
        image = self.flatten(found)
        return image if scale == 1.0 else scale * image

    def learning_rates(self) -> Tensor:
        """Return D of a plain gradient step θ − D g: one number, or a vector over the variables.

        Raises:
            UnsupportedError: A rate is 0 or not finite.
        """
        _, factors = self._update()
        rates = {
            name: checked_rate(name, torch.zeros(()) if factor is None else -factor)
            for name, factor in factors.items()
        }
        values = list(rates.values())
        if self._is_exact and all(rate.dim() == 0 and rate == values[0] for rate in values):
            return values[0]
        first = values[0].flatten()[0]
        # A parameter that the batch does not reach may have any, of the sign of the others.
        parts = zip(self.names, self._inputs, strict=True)
        return self.flatten([rates.get(name, first).expand_as(like) for name, like in parts])

    def pull_back(self, vector: Tensor) -> tuple[Tensor, Adjoint]:
        """Return (I − ∂Φ)ᵀ u, a vector, and uᵀ ∂Φ/∂λ, in one double backward pass.

        Args:
            vector: The vector u.
        """
        self.transposed_products += 1
        return self._pull_back(vector, True, False)

    def meta_product(self, vector: Tensor) -> Adjoint:
        """Return uᵀ ∂Φ/∂λ alone, ``None`` where nothing flows.

        Args:
            vector: The vector u.
        """
        targets = [*self._leaves, *self._gradient_leaves]
        found = _kept_product(self._outputs, targets, self.unflatten(vector))
        count = len(self._leaves)
        with double_backward_kernels(), within(self._loss):
            second = _kept_product(self._gradients, self._leaves, found[count:])
        names = [str(index) for index in range(count)]
        return list(add_gradients(names, found[:count], second).values())

    def product(self, vector: Tensor) -> Tensor:
        """Return (I − ∂Φ) x, a vector; the derivative of the transposed product, which is linear.

        The first call builds a graph of the transposed product and keeps it.

        Args:
            vector: The vector x.
        """
        self.products += 1
        if self._transposed_graph is None:
            dummy = torch.zeros(self.size, dtype=self.dtype, device=self.device, requires_grad=True)
            with torch.enable_grad():
                self._transposed_graph = (dummy, self._pull_back(dummy, False, True)[0])
        dummy, image = self._transposed_graph
        with double_backward_kernels(), within(self._loss):
            return torch.autograd.grad(image, dummy, vector, retain_graph=True)[0]

    def _pull_back(
        self, vector: Tensor, with_meta: bool, create_graph: bool
    ) -> tuple[Tensor, Adjoint]:
        leaves = self._leaves if with_meta else []
        count = len(self._inputs)
        targets = [*self._inputs, *leaves]
        cotangents = self.unflatten(vector)
        if not self._is_exact:
            # As the step saw it: a rounding of the vector must not pass for a part of I − ∂Φ.
            vector = self.flatten(cotangents)
        with double_backward_kernels(), within(self._loss):
            if self._is_diagonal and not with_meta:
                rest, factors = self._update()
                rest, meta = rest * vector, []
                named = dict(zip(self.names, cotangents, strict=True))
                through = [None if f is None else f * named[name] for name, f in factors.items()]
            else:
                every = [*targets, *self._gradient_leaves]
                found = _kept_product(self._outputs, every, cotangents, create_graph=create_graph)
                rest = vector - self.flatten(found[:count])
                meta, through = found[count : len(targets)], found[len(targets) :]
            second = _kept_product(self._gradients, targets, through, create_graph=create_graph)
        names = [str(index) for index in range(len(leaves))]
        total = add_gradients(names, meta, second[count:])
        return rest - self.flatten(second[:count]), list(total.values())

    def _gradient(self) -> Tensor:
        """Return the gradient as one vector with its graph, so that a product takes one vector."""
        if self._flat is None:
            named = dict(zip(self._gradient_names, self._gradients, strict=True))
            with torch.enable_grad():
                self._flat = self.flatten([named.get(name) for name in self.names])
        return self._flat

    def _hessian_scale(self, divisor: Tensor | None) -> float | None:
        """Return c where (I − ∂Φ)ᵀ (u / D) is c H u with the Hessian H of the training loss.

        That of a plain gradient step with one learning rate is, and a product with H alone is all
        that is computed.
        """
        if not (self._is_diagonal and self._is_exact):
            return None
        rest, factors = self._update()
        least = _constant(torch.ones((), dtype=self.dtype) if divisor is None else divisor)
        numbers = [rest, least, *factors.values()]
        if any(number is None or number.dim() > 0 for number in numbers) or float(rest) != 0.0:
            return None
        scales = {
            -float(factor) / float(least) for factor in factors.values() if factor is not None
        }
        return scales.pop() if len(scales) == 1 else None

    def _update(self) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Return the diagonals of I − ∂U/∂θ, a vector, and of ∂U/∂g by the parameter's name."""
        if self._diagonal is None:
            ones = [torch.ones_like(tensor) for tensor in self._outputs]
            every = [*self._inputs, *self._gradient_leaves]
            found = _kept_product(self._outputs, every, ones)
            count = len(self._inputs)
            rest = _constant(self.flatten(ones) - self.flatten(found[:count]))
            factors = [None if factor is None else _constant(factor) for factor in found[count:]]
            self._diagonal = rest, dict(zip(self._gradient_names, factors, strict=True))
        return self._diagonal


def _constant(tensor: Tensor) -> Tensor:
    """Return the one number that a tensor holds in all entries, or the tensor."""
    if tensor.dim() == 0 or tensor.numel() == 0:
        return tensor
    first = tensor.flatten()[:1].clone().squeeze()
    least, most = (tensor, first) if tensor.is_complex() else tensor.aminmax()
    return first if bool((least == most).all()) else tensor
