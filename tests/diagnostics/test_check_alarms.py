"""Problems on which a check could raise a false alarm, each with its right verdict."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import metatoolkit as mt
from metatoolkit.hypergradients import (
    EvoGrad,
    FiniteDifference,
    FirstOrder,
    ForwardMode,
    GuidedEvoGrad,
    OneStep,
    Unrolled,
)
from metatoolkit.testing import bank
from tests.diagnostics.checked import (
    SGD,
    build,
    check,
    images,
    network,
    plain,
    weight_net,
    weighted,
)


@pytest.mark.parametrize(
    "estimator",
    [
        Unrolled(1),
        Unrolled(3),
        Unrolled(2, product="forward_over_reverse"),
        ForwardMode(2),
        OneStep(),
        OneStep(lookahead=False),
        EvoGrad(2, 0.05, 0.5),
        EvoGrad(2, 0.05, 0.5, rescale=0.3),
        GuidedEvoGrad(0.05, 0.5, rescale=0.3),
    ],
)
def test_losses_that_are_weighted_by_what_they_detach(estimator):
    # The problem of README.md, with a smaller network.
    model = network()
    problem = build(mt.losses.weighted_cross_entropy, mt.losses.cross_entropy, model, weight_net())
    result = check(problem, SGD, estimator, images(), images(1), coordinates=20)
    assert result.verdict == "agrees" and result.relative_error < 1e-5, str(result)


@pytest.mark.parametrize(
    "estimator",
    [
        *(EvoGrad(2, 0.02, 0.1, rescale=rescale) for rescale in (None, 1e-3, 50.0)),
        GuidedEvoGrad(0.02, 0.1),
    ],
)
def test_rescale_with_a_direct_part(estimator):
    def valid_loss(model, meta, batch):
        return plain(model, meta, batch) * meta.value.square().mean()

    result = check(build(valid_loss=valid_loss), SGD, estimator, images(), images(1))
    assert result.relative_error < 1e-6, str(result)


def tiny(kind):
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 17, "attn_implementation": "eager"}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=8, n_layer=1, n_head=2, n_positions=8, **common, bos_token_id=0, eos_token_id=0
        )
        kind = transformers.GPT2LMHeadModel
    else:
        config = transformers.LlamaConfig(
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            **common,
        )
        kind = transformers.LlamaForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("estimator", [Unrolled(2), EvoGrad(2, 0.05, 0.5)])
def test_language_models_that_compute_their_loss_in_float32(kind, estimator):
    def loss(model, meta, batch):
        embedded = model.get_input_embeddings()(batch) * meta.value.exp()
        return model(inputs_embeds=embedded, labels=batch, use_cache=False).loss

    problem = build(loss, loss, tiny(kind), bank.Value([0.3, -0.2, *[0.0] * 6]).float())
    tokens = torch.randint(17, (2, 8), generator=torch.Generator().manual_seed(0))
    result = check(problem, mt.inner.SGD(lr=0.5), estimator, tokens, tokens.flip(0))
    assert result.verdict == "agrees" and result.relative_error < 1e-5, str(result)
    assert all(p.dtype == torch.float32 for p in problem.model.parameters())


def test_a_loss_that_closes_over_meta():
    meta = bank.Value(torch.linspace(-1, 1, 8).tolist()).float()

    def train_loss(model, _, batch):
        return weighted(model, meta, batch)

    result = check(build(train_loss, meta=meta), SGD, Unrolled(2), images(), images(1))
    assert result.relative_error < 1e-6, str(result)


def test_a_rate_that_is_a_meta_parameter_itself():
    meta = bank.Value(0.1).float()
    problem = build(plain, meta=meta)
    inner = mt.inner.SGD(lr=meta.value)
    state = inner.init(problem)
    direct = Unrolled(2)(problem, inner, state, [images()] * 2, images(1)).gradient["value"]
    result = check(problem, inner, Unrolled(2), images(), images(1))
    assert result.relative_error < 1e-6
    assert float(result.estimate) == pytest.approx(float(direct), rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("kind", ["forward hook", "pruned", "weight_norm", "lock"])
def test_what_cannot_be_copied(kind):
    model = network()
    if kind == "forward hook":
        kept = []
        model[1].register_forward_hook(lambda module, inputs, output: kept.append(output))
        model(images()[0])
        model.seen = kept
    elif kind == "pruned":
        prune.l1_unstructured(model[0], "weight", amount=0.4)
        model(images()[0])
    elif kind == "weight_norm":
        nn.utils.weight_norm(model[0])
        model(images()[0])
    else:
        import threading

        model.lock = threading.Lock()
    problem = build(model=model)
    inner = mt.inner.SGD(lr=0.3)
    result = check(problem, inner, EvoGrad(2, 0.05, 0.5), images(), images(1))
    assert result.relative_error < 1e-6, str(result)


def test_channels_last_meta_parameters():
    kernel = torch.linspace(-1, 1, 24).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    meta = bank.Value(0.0)
    meta.value = nn.Parameter(kernel)

    def train_loss(model, meta, batch):
        return plain(model, meta, batch) * (meta.value * kernel.sin()).sum().exp()

    result = check(build(train_loss, meta=meta), SGD, Unrolled(2), images(), images(1))
    assert result.relative_error < 1e-6 and result.reference.numel() == 24
    assert meta.value.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "estimator", [Unrolled(2), EvoGrad(2, 0.05, 0.5), OneStep(), FirstOrder(2)]
)
def test_losses_that_differentiate_inside_themselves(estimator):
    def penalized(model, meta, batch):
        inputs = batch[0].detach().requires_grad_()
        losses = F.cross_entropy(model(inputs), batch[1], reduction="none")
        (slope,) = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
        return losses.mean() + (meta.value.exp() * slope.square().sum(1)).mean()

    problem = build(plain if isinstance(estimator, FirstOrder) else penalized, penalized)
    result = check(problem, SGD, estimator, images(), images(1))
    assert result.relative_error < 1e-5, str(result)


def test_running_statistics_are_constants_of_the_derivative():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    problem = build(model=model, valid_mode="eval")
    result = check(problem, SGD, Unrolled(3), images(), images(1))
    assert result.relative_error < 1e-6, str(result)


def test_class_weights_and_batches_of_another_type():
    weights = torch.tensor([1.0, 0.5, 2.0])

    class Batch:
        def __init__(self, inputs, targets):
            self.inputs, self.targets = inputs, targets

    def train_loss(model, meta, batch):
        scores = model(batch.inputs) * meta.value.mean()
        return F.cross_entropy(scores, batch.targets, weight=weights)

    def valid_loss(model, meta, batch):
        return F.cross_entropy(model(batch.inputs), batch.targets, weight=weights)

    problem = build(train_loss, valid_loss)
    result = check(problem, SGD, Unrolled(2), Batch(*images()), Batch(*images(1)))
    assert result.relative_error < 1e-6, str(result)


def test_finite_difference_on_the_losses_of_the_readme():
    problem = build(
        mt.losses.weighted_cross_entropy, mt.losses.cross_entropy, network(), weight_net()
    )
    result = check(problem, SGD, FiniteDifference(), images(), images(1))
    assert result.verdict == "agrees", str(result)


def under_no_grad(losses, meta):
    with torch.no_grad():
        return torch.softmax(losses * meta.value.exp(), 0)


CONSTANTS = {
    "no_grad": under_no_grad,
    "item": lambda losses, meta: losses.sum().item(),
    "detach": lambda losses, meta: losses.detach() * meta.value.exp(),
    "data": lambda losses, meta: losses.data,
    "detached λ": lambda losses, meta: meta.value.detach().exp(),
}


@pytest.mark.parametrize("constant", CONSTANTS.values(), ids=CONSTANTS.keys())
@pytest.mark.parametrize("estimator", [Unrolled(2), OneStep(), EvoGrad(2, 0.05, 0.5)])
def test_what_a_loss_takes_for_a_constant(constant, estimator):
    def train_loss(model, meta, batch):
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (losses * meta.value.sigmoid() * constant(losses, meta)).sum()

    result = check(build(train_loss), SGD, estimator, images(), images(1))
    assert result.relative_error < 1e-6 and result.verdict == "agrees", str(result)


def test_the_problem_of_the_readme():
    problem = build(
        mt.losses.weighted_cross_entropy,
        mt.losses.cross_entropy,
        mt.networks.ResNet32(classes=10),
        mt.metaparameters.WeightNet(),
    )
    train, valid = (
        (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(4))
        for seed in (0, 1)
    )
    inner = mt.inner.SGD(lr=0.1, momentum=0.9, weight_decay=5e-4)
    # Thousands of rectified units have their kinks close by.
    result = check(problem, inner, Unrolled(1), train, valid, coordinates=2)
    assert result.relative_error < 1e-6, str(result)


def test_many_steps_of_a_network_with_kinks():
    model = nn.Sequential(nn.Linear(6, 200), nn.ReLU(), nn.MaxPool1d(4), nn.Linear(50, 3))
    result = check(build(model=model), SGD, Unrolled(5), images(), images(1))
    assert result.relative_error < 1e-6, str(result)


class Recomputed(nn.Module):
    """Runs in float32, and once more during the backward pass."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, inputs):
        block = lambda x: self.layers(x.float().sin()).to(x.dtype)  # noqa: E731
        return torch.utils.checkpoint.checkpoint(block, inputs, use_reentrant=False)


def test_a_model_that_runs_again_during_backward():
    result = check(build(model=Recomputed()), SGD, Unrolled(2), images(), images(1))
    assert result.relative_error < 1e-6 and not result.note, str(result)
