from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatoolkit.errors import DataError, LabelError, ShapeError
from metatoolkit.losses import (
    cross_entropy,
    episode_cross_entropy,
    reweighted_cross_entropy,
    sample_losses,
    squared_error,
    transformed_cross_entropy,
    weighted_cross_entropy,
)
from metatoolkit.metaparameters import ExampleWeights, WeightNet

DTYPE = torch.float64
# torch scripts its forward-mode formulas when the first one is used.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(DTYPE)


@pytest.fixture
def meta() -> WeightNet:
    torch.manual_seed(1)
    return WeightNet(5).to(DTYPE)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(8, 4, dtype=DTYPE, generator=generator)
    return inputs, torch.arange(8) % 3


def functional(loss: Any, model: nn.Module, meta: nn.Module, batch: Any) -> Any:
    """The loss as a pure function of inner parameters and meta-parameters."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.meta = model, meta

        def forward(self, pair: Any) -> Tensor:
            value: Tensor = loss(self.model, self.meta, pair)
            return value

    def call(parameters: dict[str, Tensor], metas: dict[str, Tensor], pair: Any = batch) -> Tensor:
        named = {f"model.{k}": v for k, v in parameters.items()}
        named |= {f"meta.{k}": v for k, v in metas.items()}
        value: Tensor = torch.func.functional_call(Pair(), named, (pair,))
        return value

    return call


def detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_cross_entropy_is_the_mean(model: nn.Module, meta: nn.Module, batch: Any) -> None:
    inputs, labels = batch
    torch.testing.assert_close(
        cross_entropy(model, meta, batch), F.cross_entropy(model(inputs), labels)
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_weighted_cross_entropy_is_the_weighted_mean(
    model: nn.Module, meta: nn.Module, batch: Any, normalize: bool
) -> None:
    inputs, labels = batch
    losses = F.cross_entropy(model(inputs), labels, reduction="none")
    weights = meta(losses)
    expected = (weights * losses).sum() / (weights.sum() if normalize else len(labels))
    result = weighted_cross_entropy(model, meta, batch, normalize=normalize)
    torch.testing.assert_close(result, expected)


def test_examples_are_weighted_by_their_places(model: nn.Module, batch: Any) -> None:
    meta = ExampleWeights(20).to(DTYPE)
    torch.nn.init.normal_(meta.logits, generator=torch.Generator().manual_seed(3))
    places = torch.tensor([19, 0, 7, 7, 2, 3, 11, 5])
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    expected = sum(w * loss for w, loss in zip(meta.values()[places], losses, strict=True)) / 8
    torch.testing.assert_close(reweighted_cross_entropy(model, meta, (*batch, places)), expected)
    with pytest.raises(DataError, match=r"\(inputs, labels, places\) is needed"):
        reweighted_cross_entropy(model, meta, batch)
    with pytest.raises(ShapeError, match=r"weights of shape \(3,\) for 8 losses"):
        reweighted_cross_entropy(model, meta, (*batch, places[:3]))


def test_equal_weights_give_the_plain_loss(model: nn.Module, batch: Any) -> None:
    class Equal(nn.Module):
        def forward(self, losses: Tensor) -> Tensor:
            return torch.full_like(losses, 0.3)

    torch.testing.assert_close(
        weighted_cross_entropy(model, Equal(), batch), cross_entropy(model, Equal(), batch)
    )


def test_the_model_gets_no_gradient_through_its_weights(
    model: nn.Module, meta: nn.Module, batch: Any
) -> None:
    inputs, labels = batch
    losses = F.cross_entropy(model(inputs), labels, reduction="none")
    with torch.no_grad():
        weights = meta(losses)
    fixed = (weights * losses).sum() / weights.sum()
    expected = torch.autograd.grad(fixed, list(model.parameters()))
    result = torch.autograd.grad(
        weighted_cross_entropy(model, meta, batch), list(model.parameters())
    )
    torch.testing.assert_close(result, expected)


@FORWARD_MODE
def test_the_weights_stay_detached_in_every_transform(
    model: nn.Module, meta: nn.Module, batch: Any
) -> None:
    call = functional(weighted_cross_entropy, model, meta, batch)
    parameters, metas = detached(model), detached(meta)
    plain = torch.autograd.grad(
        weighted_cross_entropy(model, meta, batch), list(model.parameters())
    )
    gradient = torch.func.grad(call)(parameters, metas)
    torch.testing.assert_close(tuple(gradient.values()), plain)
    tangents = {name: torch.ones_like(value) for name, value in parameters.items()}
    _, forward = torch.func.jvp(lambda p: call(p, metas), (parameters,), (tangents,))
    torch.testing.assert_close(forward, torch.stack([g.sum() for g in plain]).sum())


def test_the_mixed_derivative_agrees_with_finite_differences(
    model: nn.Module, meta: nn.Module, batch: Any
) -> None:
    call = functional(weighted_cross_entropy, model, meta, batch)
    parameters, metas = detached(model), detached(meta)

    def inner(values: dict[str, Tensor]) -> Tensor:
        gradient = torch.func.grad(call)(parameters, values)
        return torch.stack([g.pow(2).sum() for g in gradient.values()]).sum()

    exact = torch.func.grad(inner)(metas)
    name, step = "output.weight", 1e-6
    for index in range(5):
        moved = metas[name].clone()
        moved[0, index] += step
        other = metas[name].clone()
        other[0, index] -= step
        difference = (inner({**metas, name: moved}) - inner({**metas, name: other})) / (2 * step)
        torch.testing.assert_close(exact[name][0, index], difference, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("loss", [cross_entropy, weighted_cross_entropy])
def test_vmap_over_batches_and_parameters(
    model: nn.Module, meta: nn.Module, batch: Any, loss: Any
) -> None:
    call = functional(loss, model, meta, batch)
    parameters, metas = detached(model), detached(meta)
    inputs = torch.stack([batch[0], batch[0] + 1])
    labels = torch.stack([batch[1], (batch[1] + 1) % 3])
    together = torch.func.vmap(lambda x, y: call(parameters, metas, (x, y)))(inputs, labels)
    single = [call(parameters, metas, pair) for pair in zip(inputs, labels, strict=True)]
    torch.testing.assert_close(together, torch.stack(single))
    stacked = {name: torch.stack([value, value + 1]) for name, value in parameters.items()}
    gradients = torch.func.vmap(torch.func.grad(call), in_dims=(0, None))(stacked, metas)
    for index in range(2):
        one = torch.func.grad(call)({k: v[index] for k, v in stacked.items()}, metas)
        torch.testing.assert_close({k: v[index] for k, v in gradients.items()}, one)


def test_compiling_breaks_no_graph(model: nn.Module, meta: nn.Module, batch: Any) -> None:
    loss = torch.compile(functools.partial(weighted_cross_entropy), backend="eager", fullgraph=True)
    torch.testing.assert_close(loss(model, meta, batch), weighted_cross_entropy(model, meta, batch))


@pytest.mark.parametrize("loss", [cross_entropy, weighted_cross_entropy])
def test_batches_that_are_no_pair_or_do_not_fit(
    model: nn.Module, meta: nn.Module, batch: Any, loss: Any
) -> None:
    inputs, labels = batch
    for wrong in (inputs, (inputs,), (inputs, labels, labels), {"inputs": inputs}, None):
        with pytest.raises(DataError, match=r"a pair \(inputs, labels\) is needed"):
            loss(model, meta, wrong)
    with pytest.raises(DataError, match=r"float32; an int64 tensor is needed"):
        loss(model, meta, (inputs, labels.float()))
    with pytest.raises(DataError, match=r"int32; an int64 tensor is needed"):
        loss(model, meta, (inputs, labels.int()))
    with pytest.raises(ShapeError, match=r"labels of the batch have shape \(8, 1\)"):
        loss(model, meta, (inputs, labels[:, None]))
    with pytest.raises(ShapeError, match=r"inputs have shape \(8, 4\), labels \(7,\)"):
        loss(model, meta, (inputs, labels[:7]))
    with pytest.raises(DataError, match="the batch is empty"):
        loss(model, meta, (inputs[:0], labels[:0]))
    with pytest.raises(DataError, match=r"uint8.*transform=dataset\.transform"):
        loss(model, meta, (inputs.to(torch.uint8), labels))


@pytest.mark.parametrize("value", [3, -1, -100])
def test_labels_without_a_logit(model: nn.Module, meta: nn.Module, batch: Any, value: int) -> None:
    inputs, labels = batch
    labels[5] = value
    with pytest.raises(LabelError, match=rf"hold {value} at index 5; with 3 classes.*0 to 2"):
        cross_entropy(model, meta, (inputs, labels))


def test_outputs_of_another_shape(model: nn.Module, batch: Any) -> None:
    with pytest.raises(ShapeError, match=r"returned \(32, 1\) for 8 labels"):
        cross_entropy(nn.Flatten(0, 1), model, (torch.rand(8, 4, 1), batch[1]))
    with pytest.raises(ShapeError, match=r"weights of shape \(8, 2\) for 8 losses"):
        weighted_cross_entropy(model, WeightNet(outputs=2).to(DTYPE), batch)
    with pytest.raises(ShapeError, match=r"weights of shape \(\) for 8 losses"):
        weighted_cross_entropy(model, _Mean(), batch)


class _Mean(nn.Module):
    def forward(self, losses: Tensor) -> Tensor:
        return losses.mean()


def test_sample_losses_are_not_reduced(model: nn.Module, batch: Any) -> None:
    losses = sample_losses(model, batch)
    assert losses.shape == (8,)
    torch.testing.assert_close(losses.mean(), cross_entropy(model, model, batch))


def test_squared_error_pairs_each_output_with_its_target() -> None:
    model = nn.Linear(3, 1)
    inputs, targets = torch.randn(5, 3), torch.randn(5, 1)
    loss = squared_error(model, nn.Identity(), (inputs, targets))
    pairs = zip(model(inputs).tolist(), targets.tolist(), strict=True)
    expected = sum((one - two) ** 2 for (one,), (two,) in pairs) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    stacked = torch.vmap(lambda i, t: squared_error(model, model, (i, t)))(inputs, targets)
    torch.testing.assert_close(stacked.mean(), loss)
    for wrong in (targets[:, 0], targets.expand(-1, 2), targets[:4]):
        with pytest.raises(ShapeError, match=r"the model returned \(5, 1\) for targets of shape"):
            squared_error(model, nn.Identity(), (inputs, wrong))
    for batch in (inputs, (inputs,), (inputs, None), (inputs[:0], targets[:0])):
        with pytest.raises(DataError, match=r"a pair \(inputs, targets\) is needed"):
            squared_error(model, nn.Identity(), batch)


def test_inputs_are_transformed_before_the_model(model: nn.Module, batch: Any) -> None:
    torch.manual_seed(3)
    meta = nn.Linear(4, 4).to(DTYPE)
    inputs, labels = batch
    expected = cross_entropy(model, meta, (meta(inputs), labels))
    assert torch.equal(transformed_cross_entropy(model, meta, batch), expected)
    assert not torch.equal(cross_entropy(model, meta, batch), expected)
    with pytest.raises(DataError, match="uint8"):
        transformed_cross_entropy(model, meta, (inputs.to(torch.uint8), labels))


class _Nearest(nn.Module):
    """Logits of the queries, class by class: minus the distances to the means of the classes."""

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        return -(query.flatten(0, 1).unsqueeze(1) - support.mean(1)).square().sum(2)


def test_the_loss_of_an_episode_is_that_of_its_queries(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    support = torch.randn(3, 2, 4, dtype=DTYPE, generator=generator)
    query = torch.randn(3, 5, 4, dtype=DTYPE, generator=generator)
    losses = []
    for way in range(3):
        for index in range(5):
            logits = -(query[way, index] - support.mean(1)).square().sum(1)
            losses.append(logits.logsumexp(0) - logits[way])
    expected = torch.stack(losses).mean()
    for batch in ((support, query), [support, query]):
        torch.testing.assert_close(episode_cross_entropy(_Nearest(), model, batch), expected)
    for wrong in (support, (support,), (support, query, query), {"support": support}):
        with pytest.raises(DataError, match=r"an episode \(support, query\) is needed"):
            episode_cross_entropy(_Nearest(), model, wrong)
    with pytest.raises(ShapeError, match=r"\(15, 2\) for 3 ways with 5 queries.*\(15, 3\) are"):
        episode_cross_entropy(_Nearest(), model, (support[:2], query))


def test_errors_name_the_batch_and_its_length(model: nn.Module, batch: Any) -> None:
    with pytest.raises(DataError, match=r"the batch is a tuple of 3; a pair"):
        cross_entropy(model, model, (*batch, None))
    with pytest.raises(DataError, match=r"the batch is a Tensor; a pair"):
        cross_entropy(model, model, batch[0])
    with pytest.raises(LabelError, match="labels of the batch hold 7 at index 0"):
        cross_entropy(model, model, (batch[0], batch[1] + 7))
    with pytest.raises(ShapeError, match=r"inputs have shape \(\), labels \(8,\)"):
        cross_entropy(model, model, (torch.tensor(1.0), batch[1]))
    with pytest.raises(ShapeError, match="the model returned tuple for 8 labels"):
        cross_entropy(_Pair(), model, batch)
    with pytest.raises(ShapeError, match="weights of shape list for 8 losses"):
        weighted_cross_entropy(model, _Listed(), batch)


class _Pair(nn.Module):
    def forward(self, inputs: Tensor) -> Any:
        return inputs, inputs


class _Listed(nn.Module):
    def forward(self, losses: Tensor) -> Any:
        return list(losses)


def test_labels_elsewhere_are_not_looked_at(model: nn.Module, batch: Any) -> None:
    inputs, labels = (part.to("meta") for part in batch)
    losses = sample_losses(model.to("meta"), (inputs, labels))
    assert losses.device.type == "meta" and losses.shape == (8,)
    support, query = torch.ones(3, 2, 4, device="meta"), torch.ones(3, 5, 4, device="meta")
    loss = episode_cross_entropy(_Nearest(), model, (support, query))
    assert loss.device.type == "meta" and loss.shape == ()
