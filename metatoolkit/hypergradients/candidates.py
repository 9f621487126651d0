"""The random candidates of one call of EvoGrad, drawn again from their seeds when needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients.detached import HeldConstants
from metatoolkit.hypergradients.mapped_candidates import mapped_losses
from metatoolkit.hypergradients.noise import stream_noise
from metatoolkit.hypergradients.products import Adjoint, loss_gradient
from metatoolkit.hypergradients.recording import recording
from metatoolkit.hypergradients.replaying import replaying
from metatoolkit.hypergradients.trajectory import valid_key
from metatoolkit.problem import BilevelProblem
from metatoolkit.randomness import Stream, fold_in
from metatoolkit.state import InnerState, Tensors
from metatoolkit.stateless.traced_flags import holds

Noise = Callable[[int, str, Tensor], Tensor]
"""Function ``(candidate, parameter name, parameter) -> tensor``, a function of these alone."""


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The candidates θ_k = θ + σ ε_k of the inner parameters; none of them is kept.

    Attributes:
        state: Detached state with θ.
        names: Inner parameters to perturb.
        number: Their number K.
        sigma: Size of the perturbations σ.
        temperature: Temperature τ of the softmax.
        noise: Kind of the noise ε, or a function that returns it.
        common_random_numbers: Whether all candidates share their dropout masks.
        seed: Seed of the noise, beside its key.
        key: Random key of the noise, beside the step.
        held: Takes what the loss at θ detaches, by :meth:`hold`, for all candidates; ``None``
            leaves each its own.
    """

    state: InnerState
    names: Sequence[str]
    number: int
    sigma: float
    temperature: float
    noise: Literal["sign", "gaussian"] | Noise
    common_random_numbers: bool
    seed: int
    key: int
    held: HeldConstants | None = None

    def perturbations(self, candidate: int) -> Iterator[tuple[str, Tensor]]:
        """Yield parameter names and ε of one candidate, the same at every call.

        Args:
            candidate: Number of the candidate.

        Yields:
            Name and noise, tensor by tensor.
        """
        parameters = {name: self.state.parameters[name] for name in self.names}
        if callable(self.noise):
            for name, parameter in parameters.items():
                yield name, self.noise(candidate, name, parameter)
            return
        key = fold_in(self.key, self.state.step, Stream.CANDIDATES, self.seed, candidate)
        yield from stream_noise(parameters, self.noise, key)

    def point(self, candidate: int) -> Tensors:
        """Return the inner parameters θ_k of a candidate by name.

        Args:
            candidate: Number of the candidate.
        """
        parameters = dict(self.state.parameters)
        for name, epsilon in self.perturbations(candidate):
            parameters[name] = parameters[name] + self.sigma * epsilon
        return parameters

    def loss_key(self, candidate: int) -> int:
        """Return the random key that a candidate is scored with.

        Args:
            candidate: Number of the candidate.
        """
        key = fold_in(self.state.key, self.state.step)
        return key if self.common_random_numbers else fold_in(key, candidate)

    def train_loss(
        self, problem: BilevelProblem, candidate: int, meta: Tensors, batch: Any
    ) -> Tensor:
        """Return the training loss of one candidate, a scalar. Cost: 1 F.

        Args:
            problem: The bilevel problem.
            candidate: Number of the candidate.
            meta: Meta-parameters by name.
            batch: Training batch.
        """
        parameters = self.point(candidate)
        rest = (meta, self.state.buffers, batch, self.loss_key(candidate))
        if self.held is None:
            return problem.evaluate_train(parameters, *rest)[0]
        graph = torch.is_grad_enabled()
        # What is computed without a graph is a constant.
        with torch.enable_grad():
            loss = replaying(problem, self.held).evaluate_train(parameters, *rest)[0]
        return loss if graph else loss.detach()

    def hold(self, problem: BilevelProblem, meta: Tensors, batch: Any) -> Tensor:
        """Return the training loss at θ, detached, and let all candidates take what it holds.

        What one of the candidates held would leave an error of the order of σ. Cost: 1 F.

        Args:
            problem: The bilevel problem.
            meta: Meta-parameters by name.
            batch: Training batch.
        """
        assert self.held is not None
        with torch.enable_grad():
            return self.middle(recording(problem, self.held), meta, batch)

    def middle(self, problem: BilevelProblem, meta: Tensors, batch: Any) -> Tensor:
        """Return the training loss at θ, detached. Cost: 1 F.

        Args:
            problem: The bilevel problem.
            meta: Meta-parameters by name.
            batch: Training batch.
        """
        state = self.state
        key = fold_in(state.key, state.step)
        return problem.evaluate_train(state.parameters, meta, state.buffers, batch, key)[0].detach()

    def score(
        self,
        problem: BilevelProblem,
        meta: Tensors,
        batch: Any,
        streamed: bool | Literal["vmap"] | None,
        given: BilevelProblem | None = None,
    ) -> tuple[list[Tensor], bool]:
        """Return the training losses of all candidates, with graphs where these are kept.

        Args:
            problem: The bilevel problem.
            meta: Meta-parameters by name, leaves that require a gradient.
            batch: Training batch.
            streamed: Whether no graph is kept; ``None`` keeps them where those of all candidates,
                by that of the first, take no more memory than θ; ``"vmap"`` keeps that of one
                pass which is mapped over all.
            given: The problem as the estimator was given it, where ``problem`` has a prefix.

        Returns:
            The losses, and whether they carry their graphs in λ. Cost: 1 F for each candidate.

        Raises:
            ConfigurationError: The perturbations are lost in the rounding of the parameters.
            UnsupportedError: The loss cannot be mapped, or has other values where it is.
        """
        if streamed == "vmap":
            losses, keep = mapped_losses(self, problem, meta, batch, given or problem), True
        else:
            losses, keep = self._one_by_one(problem, meta, batch, streamed)
        values = torch.stack([loss.detach() for loss in losses])
        # With common masks candidates that do not differ have equal losses.
        if not self.common_random_numbers or holds((values == values[0]).all()):
            self._refuse_lost()
        return losses, keep

    def _one_by_one(
        self, problem: BilevelProblem, meta: Tensors, batch: Any, streamed: bool | None
    ) -> tuple[list[Tensor], bool]:
        losses: list[Tensor] = []
        keep = streamed is not True
        budget = sum(t.numel() * t.element_size() for t in self.state.parameters.values())
        for candidate in range(self.number):
            held = 0

            def count(tensor: Tensor) -> Tensor:
                nonlocal held
                held += tensor.numel() * tensor.element_size()
                # A node that kept its own output with its history would never be freed. What is
                # done here is nothing that the loss does.
                with torch._C.DisableTorchFunction():
                    return tensor.detach()

            with torch.set_grad_enabled(keep):
                if keep and streamed is None and candidate == 0:
                    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
                    try:
                        with hooks:
                            loss = self.train_loss(problem, candidate, meta, batch)
                    except RuntimeError as error:
                        # torch.func.grad in a loss forbids to look at what a graph holds.
                        if "saved tensor hooks" not in str(error):
                            raise
                        with torch.no_grad():
                            loss = self.train_loss(problem, candidate, meta, batch)
                    if not loss.requires_grad or held * self.number > budget:
                        keep, loss = False, loss.detach()
                else:
                    loss = self.train_loss(problem, candidate, meta, batch)
            losses.append(loss)
        return losses, keep

    def _refuse_lost(self) -> None:
        """Raise where the first candidate is θ itself, for all that its noise is not zero."""
        same, moving, dtypes = [], [], []
        for name, epsilon in self.perturbations(0):
            parameter = self.state.parameters[name]
            same.append((parameter + self.sigma * epsilon == parameter).all())
            moving.append((epsilon != 0).any())
            dtypes.append(str(parameter.dtype).removeprefix("torch."))
        if holds(torch.stack(same).all() & torch.stack(moving).any()):
            raise ConfigurationError(
                f"sigma is {self.sigma}, and perturbations of that size are lost in the rounding "
                f"of {dtypes[0]} parameters; raise sigma."
            )

    def weights(self, losses: Tensor) -> Tensor:
        """Return w = softmax(−ℓ/τ).

        Args:
            losses: Training losses ℓ of the candidates, shape (K,).
        """
        return torch.softmax(-losses / self.temperature, dim=0)

    def offspring(self, weights: Tensor) -> Tensors:
        """Return θ⁺ = θ + σ Σ_k w_k ε_k by name.

        Args:
            weights: Weights w of the candidates, shape (K,).
        """
        parameters = dict(self.state.parameters)
        for candidate, weight in enumerate(weights):
            for name, epsilon in self.perturbations(candidate):
                parameters[name] = parameters[name] + (
                    self.sigma * weight.to(epsilon.dtype) * epsilon
                )
        return parameters

    def evolve(self, problem: BilevelProblem, meta: Tensors, batch: Any) -> Tensors:
        """Return θ⁺ by name, from scores that are taken anew. Cost: K F.

        Args:
            problem: The bilevel problem.
            meta: Meta-parameters by name.
            batch: Training batch.
        """
        held = None if self.held is None else HeldConstants(everything=True)
        scored = dataclasses.replace(self, held=held)
        if held is not None:
            scored.hold(problem, meta, batch)
        losses = [scored.train_loss(problem, k, meta, batch) for k in range(self.number)]
        return self.offspring(self.weights(torch.stack(losses)))

    def outer(
        self, problem: BilevelProblem, offspring: Tensors, meta: Tensors, batch: Any
    ) -> tuple[Tensor, Tensors, Adjoint]:
        """Return the outer loss at θ⁺, its gradient there, and its direct gradient in λ.

        Args:
            problem: The bilevel problem.
            offspring: θ⁺ by name.
            meta: Meta-parameters by name, leaves that require a gradient.
            batch: Batch for the outer loss. Cost: 3 F.

        Returns:
            The loss, detached; the gradient in what is perturbed, by name, without what the loss
            does not depend on; and that in λ.
        """
        # The coefficients need the gradient in what is perturbed alone.
        state, names = self.state, set(self.names)
        point = {n: tensor.detach().requires_grad_(n in names) for n, tensor in offspring.items()}
        inner = [tensor for tensor in point.values() if tensor.requires_grad]
        with torch.enable_grad():
            loss = problem.evaluate_valid(point, meta, state.buffers, batch, valid_key(state))
        gradients = loss_gradient(loss, [*inner, *meta.values()])
        named = zip([n for n in point if n in names], gradients[: len(inner)], strict=True)
        return (
            loss.detach(),
            {name: gradient for name, gradient in named if gradient is not None},
            gradients[len(inner) :],
        )

    def coefficients(self, weights: Tensor, gradient: Tensors, factor: float) -> Tensor:
        """Return c_k = −(w_k/τ) ⟨g, θ_k − θ⁺⟩ times a factor, shape (K,).

        Args:
            weights: Weights w of the candidates, shape (K,).
            gradient: Gradient g of the outer loss at θ⁺ by name; missing ones are zeros.
            factor: The factor.
        """
        projections = torch.stack(
            [
                sum(
                    (
                        (gradient[name].to(weights.dtype) * epsilon).sum()
                        for name, epsilon in self.perturbations(candidate)
                        if name in gradient
                    ),
                    start=weights.new_zeros(()),
                )
                for candidate in range(self.number)
            ]
        )
        # Σ_j w_j ⟨g, ε_k − ε_j⟩ over pairs, so that equal candidates have exactly no say.
        centered = self.sigma * (weights * (projections.unsqueeze(1) - projections)).sum(1)
        return -(factor / self.temperature) * weights * centered
