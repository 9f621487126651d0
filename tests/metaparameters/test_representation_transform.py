"""The representation transformation network against its formula, inside several encoders."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
import transformers

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, ShapeError, UnsupportedError
from metatoolkit.metaparameters.representation_transform import (
    RepresentationTransform,
)
from tests.metaparameters.encoders import ENCODERS, SMALL, build, inputs
from tests.metaparameters.transforms import randomized

F64 = torch.float64


def layer_outputs(model, name, run):
    """What each layer of the encoder returns, read by hooks of this test alone."""
    seen, handles = [], []
    for layer in model.get_submodule(ENCODERS[name][1]):
        handles.append(
            layer.register_forward_hook(
                lambda module, arguments, output: seen.append(
                    output if isinstance(output, torch.Tensor) else output[0]
                )
            )
        )
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def change(network, hidden):
    """The formula, from the tensors of one network alone."""
    first, second = network[0], network[2]
    inside = (hidden @ first.weight.T + first.bias).clamp(min=0)
    output = inside @ second.weight.T + second.bias
    return output[..., :-1] / (1 + torch.exp(-output[..., -1:]))


def test_number_of_parameters_at_the_papers_size():
    transform = RepresentationTransform(768, 384)
    assert sum(parameter.numel() for parameter in transform.parameters()) == 591_361
    assert sum(p.numel() for p in RepresentationTransform(768).parameters()) == 591_361


def test_initialization_is_xaviers():
    torch.manual_seed(0)
    network = RepresentationTransform(300, 200).networks[0]
    for linear in (network[0], network[2]):
        expected = (2 / sum(linear.weight.shape)) ** 0.5
        assert float(linear.weight.detach().std()) == pytest.approx(expected, rel=0.02)
        assert bool((linear.bias == 0).all())


@pytest.mark.parametrize("layers", [1, 3])
def test_formula(layers):
    transform = randomized(RepresentationTransform(8, 5, layers).double())
    hidden = torch.randn(2, 4, 8, dtype=F64)
    weights = transform.weights
    expected = torch.ones(1, dtype=F64)
    if layers > 1:
        expected = transform.alpha.exp() / transform.alpha.exp().sum()
    torch.testing.assert_close(weights, expected)
    for layer in range(layers):
        expected = hidden + weights[layer] * change(transform.networks[layer], hidden)
        given = transform(hidden, layer)
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-14)


def test_a_closed_gate_and_a_zero_map_are_the_identity():
    hidden = torch.randn(2, 4, 8, dtype=F64)
    transform = randomized(RepresentationTransform(8).double())
    with torch.no_grad():
        transform.networks[0][2].weight[-1] = 0.0
        transform.networks[0][2].bias[-1] = -1e4
        assert torch.equal(transform(hidden), hidden)
        transform = randomized(RepresentationTransform(8).double())
        transform.networks[0][2].weight[:-1] = 0.0
        transform.networks[0][2].bias[:-1] = 0.0
        assert torch.equal(transform(hidden), hidden)


def test_gradients():
    transform = randomized(RepresentationTransform(6, 4, 2).double())
    names = [name for name, _ in transform.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in transform.parameters()]
    hidden = torch.randn(2, 3, 6, dtype=F64, requires_grad=True)

    def run(*tensors):
        named = dict(zip(names, tensors, strict=True))
        call = torch.func.functional_call(transform, named, (hidden,), {"layer": 1})
        return call.sin().sum()

    assert torch.autograd.gradcheck(run, values)
    # The input of the map is detached: the gradient in h is that of the residual alone.
    output = transform(hidden)
    (gradient,) = torch.autograd.grad(output.sum(), hidden)
    assert torch.equal(gradient, torch.ones_like(hidden))


@pytest.mark.parametrize("name", ENCODERS)
def test_attached_to_the_last_layer(name):
    model = build(name)
    tokens = inputs(name)
    plain = layer_outputs(model, name, lambda: model(tokens))
    parameters = [n for n, _ in model.named_parameters()]
    transform = randomized(RepresentationTransform.attach(model, layers=[-1]))
    assert transform.size == 8
    assert [n for n, _ in model.named_parameters()] == parameters
    switched_off = layer_outputs(model, name, lambda: model(tokens))
    assert torch.equal(switched_off[-1], plain[-1])

    def run():
        with transform.active():
            model(tokens)

    switched_on = layer_outputs(model, name, run)
    expected = plain[-1] + change(transform.networks[0], plain[-1])
    torch.testing.assert_close(switched_on[-1], expected, rtol=1e-12, atol=1e-14)
    transform.remove()
    assert torch.equal(layer_outputs(model, name, run)[-1], plain[-1])


def test_several_layers_have_weights_and_networks_of_their_own():
    model, tokens = build("xlm_roberta"), inputs("xlm_roberta")
    plain = layer_outputs(model, "xlm_roberta", lambda: model(tokens))
    transform = randomized(RepresentationTransform.attach(model, layers=[2, 0], bottleneck=3))

    def run():
        with transform.active():
            model(tokens)

    seen = layer_outputs(model, "xlm_roberta", run)
    alpha = transform.weights
    expected = plain[0] + alpha[1] * change(transform.networks[1], plain[0])
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=1e-14)
    hidden = model.encoder.layer[2](seen[1])
    hidden = hidden if isinstance(hidden, torch.Tensor) else hidden[0]
    expected = hidden + alpha[0] * change(transform.networks[0], hidden)
    torch.testing.assert_close(seen[2], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(3,), (3, 5)])
def test_only_source_tokens_are_transformed(shape):
    model, tokens = build("bert"), inputs("bert")
    transform = randomized(RepresentationTransform.attach(model))
    off = model(tokens).logits
    with transform.active():
        on = model(tokens).logits
    source = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert bool(source.any()) and not bool(source.all())
    with transform.active(source):
        mixed = model(tokens).logits
    choice = source.reshape(*shape, *([1] * (3 - len(shape))))
    torch.testing.assert_close(mixed, torch.where(choice, on, off), rtol=1e-12, atol=1e-14)
    with (
        pytest.raises(ShapeError, match=r"tokens have shape \(4,\)"),
        transform.active(torch.ones(4, dtype=torch.bool)),
    ):
        model(tokens)
    assert torch.equal(model(tokens).logits, off)


def test_a_layer_that_occurs_twice_is_transformed_twice_by_one_network():
    model, tokens = build("xlm_roberta"), inputs("xlm_roberta")
    model.encoder.layer[1] = model.encoder.layer[2]
    transform = randomized(RepresentationTransform.attach(model, layers=[-1]))
    first = model(tokens, output_hidden_states=True).hidden_states[1]
    with transform.active():
        after = model(tokens).last_hidden_state
    layer = model.encoder.layer[2]
    hidden = first
    transform.remove()
    for _ in range(2):
        hidden = layer(hidden)
        hidden = hidden if isinstance(hidden, torch.Tensor) else hidden[0]
        hidden = hidden + change(transform.networks[0], hidden)
    torch.testing.assert_close(after, hidden, rtol=1e-12, atol=1e-14)


def problem_of(name, layers):
    model = build(name)
    transform = randomized(RepresentationTransform.attach(model, layers=layers))
    head = torch.nn.Linear(8, 3).double()
    whole = torch.nn.ModuleDict({"encoder": model, "head": head})

    def logits(model, batch):
        return model["head"](model["encoder"](batch[0])[0])

    def train_loss(model, meta, batch):
        with meta.active():
            return F.cross_entropy(logits(model, batch).flatten(0, 1), batch[1].flatten())

    def valid_loss(model, meta, batch):
        return F.cross_entropy(logits(model, batch).flatten(0, 1), batch[1].flatten())

    return mt.BilevelProblem(whole, transform, train_loss, valid_loss)


@pytest.mark.parametrize("name", ["xlm_roberta", "distilbert"])
@pytest.mark.parametrize("layers", [[-1], [0]])
def test_hypergradient_through_the_attached_transform(name, layers):
    problem = problem_of(name, layers)
    assert not [n for n in problem.parameter_names if "networks" in n or "alpha" in n]
    generator = torch.Generator().manual_seed(4)
    batches = [
        (
            torch.randint(5, 30, (2, 5), generator=generator),
            torch.randint(3, (2, 5), generator=generator),
        )
        for _ in range(2)
    ]
    check = mt.check_hypergradient(
        *(problem, mt.inner.SGD(lr=0.3), mt.hypergradients.Unrolled(1)),
        *(batches[:1], batches[1]),
        coordinates=24,
    )
    assert check.relative_error < 1e-6


def test_copies_and_stored_encoders_keep_their_transform():
    model, tokens = build("xlm_roberta"), inputs("xlm_roberta")
    transform = randomized(RepresentationTransform.attach(model))
    both = copy.deepcopy({"model": model, "transform": transform})
    file = io.BytesIO()
    torch.save({"model": model, "transform": transform}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=False)
    with transform.active():
        expected = model(tokens).last_hidden_state
    for other in (both, stored):
        off = other["model"](tokens).last_hidden_state
        assert not torch.equal(off, expected)
        with other["transform"].active():
            assert torch.equal(other["model"](tokens).last_hidden_state, expected)


def test_type_of_the_encoder_is_kept():
    model = build("xlm_roberta").to(torch.bfloat16)
    transform = RepresentationTransform.attach(model)
    assert next(transform.parameters()).dtype == torch.bfloat16
    transform.float()
    with transform.active():
        assert model(inputs("xlm_roberta")).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([3], "layers holds 3; the encoder has 3 layers"),
        ([-4], "from -3 to 2"),
        ([0, -3], "none twice"),
        ([], "at least one"),
        (["last"], "layers holds 'last'"),
        (-1, r"layers is -1; give a list: \[-1\]"),
    ],
)
def test_layers_that_do_not_exist(layers, message):
    with pytest.raises(ConfigurationError, match=message):
        RepresentationTransform.attach(build("bert"), layers=layers)


def test_models_whose_layers_cannot_be_found():
    with pytest.raises(UnsupportedError, match="one ModuleList of equal layers, but there is none"):
        RepresentationTransform.attach(torch.nn.Linear(3, 3))
    albert = transformers.AlbertModel(transformers.AlbertConfig(embedding_size=8, **SMALL))
    with pytest.raises(UnsupportedError, match=r"of length 3.*stack="):
        RepresentationTransform.attach(albert)
    xlm = transformers.XLMModel(
        transformers.XLMConfig(vocab_size=30, emb_dim=8, n_layers=3, n_heads=2)
    )
    with pytest.raises(UnsupportedError, match="several: attentions, ffns"):
        RepresentationTransform.attach(xlm)
    assert RepresentationTransform.attach(xlm, stack="ffns").size == 8
    with pytest.raises(ConfigurationError, match=r"stack is 'ffn'.*ffns"):
        RepresentationTransform.attach(xlm, stack="ffn")


def test_arguments_out_of_range():
    for arguments in ({"size": 0}, {"size": 4, "bottleneck": 0}, {"size": 4, "layers": 0}):
        name = next(reversed(arguments))
        with pytest.raises(ConfigurationError, match=f"^{name} is 0; at least 1 is needed"):
            RepresentationTransform(**arguments)
    with pytest.raises(ShapeError, match=r"takes \(\.\.\., 4\)"):
        RepresentationTransform(4)(torch.zeros(2, 5))


def test_the_size_is_that_of_the_last_normalization_of_a_layer():
    def layer():
        return torch.nn.Sequential(
            torch.nn.LayerNorm(6),
            torch.nn.Linear(6, 8),
            torch.nn.Linear(8, 4),
            torch.nn.LayerNorm(4),
        )

    model = torch.nn.ModuleDict({"stack": torch.nn.ModuleList([layer(), layer()])})
    assert RepresentationTransform.attach(model).size == 4
    plain = torch.nn.ModuleList([torch.nn.Bilinear(2, 2, 2), torch.nn.Bilinear(2, 2, 2)])
    model = torch.nn.ModuleDict({"stack": plain})
    with pytest.raises(ConfigurationError, match="stack is 'other'"):
        RepresentationTransform.attach(model, stack="other")
