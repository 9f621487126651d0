"""One step of deep networks: Meta-Weight-Net, encoders and a language model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import metatoolkit as mt
from benchmarks.contenders.by_hand import evograd_by_hand, loop_by_hand
from benchmarks.contenders.ours import ours
from benchmarks.contenders.peers import higher, torchopt
from benchmarks.harness.declared import Benchmark, Case, Contender, Setup
from benchmarks.trajectory import ExampleWeights, weighted_loss
from metatoolkit.hypergradients import SAMA, EvoGrad, FiniteDifference, Unrolled


def weight_net(model: nn.Module, train: Any, valid: Any, lr: float = 0.1) -> Setup:
    """A network whose examples are weighted by their losses.

    Args:
        model: The network.
        train: Training batch.
        valid: Validation batch.
        lr: Learning rate of its step.
    """
    loss, weighted = mt.losses.cross_entropy, mt.losses.weighted_cross_entropy
    problem = mt.BilevelProblem(model, mt.metaparameters.WeightNet(), weighted, loss)
    return Setup(problem, [([train], valid)], lr)


def resnet(width: int, size: int) -> Setup:
    """Meta-Weight-Net on ResNet-32.

    Args:
        width: Multiple of the channels.
        size: Images of a batch.
    """
    torch.manual_seed(0)
    model = mt.networks.ResNet32(classes=10, width=width)
    inputs, labels = torch.randn(2, size, 3, 32, 32), torch.randint(10, (2, size))
    return weight_net(model, (inputs[0], labels[0]), (inputs[1], labels[1]))


class Classifier(nn.Module):
    """An encoder of Hugging Face's and a linear head on the mean over tokens.

    Args:
        encoder: The encoder.
        classes: Number of classes.
    """

    def __init__(self, encoder: Any, classes: int = 4) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.encoder(input_ids=tokens).last_hidden_state.mean(1))


def encoder(hidden: int, layers: int, size: int, length: int) -> Setup:
    """Meta-Weight-Net on an encoder of XLM-R's architecture, as drawn, for 1,000 words.

    Args:
        hidden: Width; a head has 64 units of it.
        layers: Number of layers.
        size: Sentences of a batch.
        length: Tokens of a sentence.
    """
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # A fused kernel has no double backward.
        attn_implementation="eager",
    )
    model = Classifier(XLMRobertaModel(config, add_pooling_layer=False))
    tokens, labels = torch.randint(5, 1000, (2, size, length)), torch.randint(4, (2, size))
    return weight_net(model, (tokens[0], labels[0]), (tokens[1], labels[1]), 1e-3)


class LanguageModel(nn.Module):
    """A small GPT as Hugging Face has it, which returns logits with the classes second."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=512,
            bos_token_id=0,
            eos_token_id=0,
            n_positions=64,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
            use_cache=False,
        )
        self.gpt = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, of shape (batch, words, tokens)."""
        return self.gpt(input_ids=tokens).logits.transpose(1, 2)


def example_losses(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return the loss of the next tokens, with a weight for each sentence."""
    tokens, places = batch
    losses = nn.functional.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="none")
    return (meta.logits[places].sigmoid() * losses.mean(1)).mean()


def mean_loss(model: Any, meta: Any, batch: Any) -> Tensor:
    """Return the mean loss of the next tokens."""
    return nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, 1:])


def language_model(steps: int) -> Setup:
    """A small GPT with a weight for each of its examples.

    Args:
        steps: Number of inner steps.
    """
    torch.manual_seed(0)
    problem = mt.BilevelProblem(
        LanguageModel(), ExampleWeights(8 * steps), example_losses, mean_loss
    )
    tokens = torch.randint(512, (steps + 1, 8, 33))
    places = torch.arange(8 * steps).split(8)
    train = list(zip(tokens[:steps], places, strict=True))
    return Setup(problem, [(train, tokens[steps])], 0.1, 0.9)


def perceptron(steps: int) -> Setup:
    """A perceptron 64-32-10 with momentum and a weight for each example.

    Args:
        steps: Number of inner steps.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    inputs, labels = torch.randn(5, 32, 64), torch.randint(10, (5, 32))
    places = torch.arange(128).split(32)
    train = [(inputs[i % 4], labels[i % 4], places[i % 4]) for i in range(steps)]
    plain = mt.losses.cross_entropy
    problem = mt.BilevelProblem(model, ExampleWeights(128), weighted_loss, plain)
    return Setup(problem, [(train, (inputs[4], labels[4]))], 0.1, 0.9)


def unrolls(steps: int) -> dict[str, Contender]:
    """Return ways to the exact derivative through so many steps.

    Args:
        steps: Number of inner steps.
    """
    return {
        "by hand": loop_by_hand(),
        "Unrolled": ours(Unrolled(steps)),
        "Unrolled, mixed mode": ours(Unrolled(steps, product="forward_over_reverse")),
        "higher": higher(),
        "TorchOpt": torchopt(),
    }


def compiled(steps: int) -> dict[str, Contender]:
    """Return ways through so many steps, with the whole call compiled, too.

    Args:
        steps: Number of inner steps.
    """
    return {
        **unrolls(steps),
        'Unrolled, compile="graph"': ours(Unrolled(steps), "graph"),
        "Unrolled, compile=True": ours(Unrolled(steps), True),
    }


def one_step(lr: float) -> dict[str, Contender]:
    """Return ways through one step, with EvoGrad at the paper's constants.

    Args:
        lr: Learning rate to which EvoGrad is scaled.
    """
    return {
        **unrolls(1),
        "FiniteDifference": ours(FiniteDifference()),
        "SAMA": ours(SAMA()),
        "EvoGrad": ours(EvoGrad(2, 1e-3, 0.05, rescale=lr)),
        "EvoGrad by hand": evograd_by_hand(2, 1e-3, 0.05, lr),
    }


WIDTHS = ("by hand", "Unrolled", "Unrolled, mixed mode", "higher", "EvoGrad", "EvoGrad by hand")

BENCHMARKS = [
    Benchmark(
        name="networks",
        title="Hypergradients of networks",
        about="What one hypergradient takes on problems from a perceptron to encoders, float32. "
        "Meta-Weight-Net weights examples by their losses (301 meta-parameters), the perceptron "
        "and the language model have a weight for each example. The encoders have XLM-R's "
        "architecture, with 1,000 words: the small one two layers of 128 units, the large one "
        "XLM-R's own width of 768 and 4 of its 12 layers. The error is the difference to the exact "
        "derivative by hand, in plain PyTorch; EvoGrad's is that of its noise.",
        cases={
            "MLP 64-32-10, 1 step": Case(partial(perceptron, 1), compiled(1), rounds=101),
            "MLP 64-32-10, 10 steps": Case(
                partial(perceptron, 10), compiled(10), rounds=41, quick=False
            ),
            "MLP 64-32-10, 20 steps": Case(partial(perceptron, 20), unrolls(20), rounds=41),
            "ResNet-32, 8 images": Case(partial(resnet, 1, 8), one_step(0.1), quick=False),
            "ResNet-32, 100 images": Case(
                partial(resnet, 1, 100), one_step(0.1), rounds=3, quick=False
            ),
            "BERT-like encoder, 2 × 128": Case(partial(encoder, 128, 2, 8, 32), one_step(1e-3)),
            "small GPT, 5 steps": Case(partial(language_model, 5), unrolls(5), quick=False),
            "XLM-R's width, 4 × 768": Case(
                partial(encoder, 768, 4, 2, 32), one_step(1e-3), rounds=3, quick=False
            ),
        },
        after="What is checked of a call, of modules, losses, their graphs and results, takes "
        "nearly half as long as one step of the perceptron by hand; TorchOpt looks at none of "
        "it. Over many steps that is nothing, and a call that is compiled does it once: it "
        "takes a third of the time by hand, or less than by hand as a graph. Parameters of "
        "networks so small are moved by operations on lists, whose graphs hold each tensor: "
        "faster than by hand, for half a MiB more. Above 4,096 parameters they are moved one by "
        "one. The language model's first and last layers share their weights. TorchOpt's steps "
        "move them apart, which is its error there; where they are two, it has none. TorchOpt "
        "launches what `Unrolled` does for the small encoder, without what is checked of a "
        "call. `Unrolled` differentiates the outer loss and the step in one pass, and holds "
        "neither the gradient between them nor a copy of the parameters: at XLM-R's width 0.7 "
        "of the memory. With 8 images the steps of ResNet-32 are so short that its operations "
        "between convolutions count, with 100, the batch of its paper, the convolutions do. At "
        "XLM-R's width the batch is two sentences of 32 words: what `FiniteDifference` and "
        "`SAMA` do with each of 30 million parameters, the size of the step, its radius and "
        "coordinates whose gradient is zero, takes as long there as their passes.",
    ),
    Benchmark(
        name="widths",
        title="Meta-Weight-Net over the width",
        about="One hypergradient of Meta-Weight-Net on ResNet-32 with so many times its channels, "
        "batches of two images, float32. EvoGrad has two candidates.",
        figure="curves",
        axis="width of ResNet-32",
        cases={
            f"width {width}": Case(
                partial(resnet, width, 2),
                {name: one_step(0.1)[name] for name in WIDTHS},
                rounds=3,
                size=width,
                quick=width == 1,
            )
            for width in (1, 2, 3, 4)
        },
    ),
]
