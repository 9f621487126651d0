"""Warp layers: at the identity nothing changes; elsewhere they precondition what steps move."""

import copy
import itertools

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, ShapeError
from metatoolkit.metaparameters import WarpLayer, WarpLayers, insert_warp_layers

F64 = torch.float64


def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


def convolutional():
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(inputs, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        for inputs in (1, 4)
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * 36, 2))


def squared_error(model, meta, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def batch_for(model, seed=1):
    torch.manual_seed(seed)
    inputs = torch.randn(6, *((3,) if isinstance(model[0], nn.Linear) else (1, 6, 6)), dtype=F64)
    return inputs, torch.randn(6, 2, dtype=F64)


@pytest.mark.parametrize("make", [dense, convolutional])
def test_a_network_with_warps_at_the_identity_is_and_learns_as_the_plain_one(make):
    plain, warped = make().double(), make().double()
    where = ["0", "1"] if make is convolutional else None
    meta = insert_warp_layers(warped, where)
    batch = batch_for(plain)
    value = mt.metaparameters.Proximal(1.0)
    problems = [
        mt.BilevelProblem(plain, value, squared_error, squared_error),
        mt.BilevelProblem(warped, meta, squared_error, squared_error),
    ]
    assert problems[0].parameter_names == problems[1].parameter_names
    assert torch.equal(plain(batch[0]), warped(batch[0]))
    inner = mt.inner.SGD(lr=0.1, momentum=0.9)
    states = [inner.init(problem) for problem in problems]
    before = {name: p.detach().clone() for name, p in meta.named_parameters()}
    for _ in range(4):
        states = [
            inner.step(problem, state, problem.meta_parameters(), batch)[0]
            for problem, state in zip(problems, states, strict=True)
        ]
    for name, tensor in states[0].parameters.items():
        torch.testing.assert_close(states[1].parameters[name], tensor, rtol=0, atol=1e-12)
    # Adaptation moves no warp.
    assert all(torch.equal(p, before[name]) for name, p in meta.named_parameters())


def test_behind_a_linear_layer_the_step_is_one_that_the_warp_preconditions():
    model = dense().double()[:3]
    meta = insert_warp_layers(model, ["0"], identity=False)
    omega, shift = meta.after.get_submodule("0").weight, meta.after.get_submodule("0").bias
    inputs, targets = batch_for(model)
    batch, lr = (inputs, targets @ torch.randn(2, 4, dtype=F64)), 0.1
    problem = mt.BilevelProblem(model, meta, squared_error, squared_error)
    inner = mt.inner.SGD(lr=lr)
    after, _ = inner.step(problem, inner.init(problem), problem.meta_parameters(), batch)
    last = model[2]

    def loss(matrix, bias):
        return (last(torch.tanh(batch[0] @ matrix.T + bias)) - batch[1]).square().mean()

    product = (omega @ model[0].weight).detach(), (omega @ model[0].bias + shift).detach()
    slopes = torch.autograd.grad(loss(*(p.requires_grad_() for p in product)), product)
    moved = [p - lr * omega @ omega.T @ s for p, s in zip(product, slopes, strict=True)]
    weight, bias = (after.parameters[f"0.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(omega @ weight, moved[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(omega @ bias + shift, moved[1], rtol=1e-12, atol=1e-14)


class Point(nn.Module):
    """A point θ, and its image γ = Ω tanh θ + c."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.point = nn.Parameter(torch.randn(4, dtype=F64))
        self.warp_layer = WarpLayer(4, identity=False).double()

    def forward(self):
        return self.warp_layer(self.point.tanh())


def test_a_warped_step_is_preconditioned_descent_to_second_order():
    model = Point()
    pull = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)

    def loss(gamma):
        return (gamma * pull).sin().sum() + gamma.square().sum()

    train_loss = lambda model, meta, batch: loss(model())  # noqa: E731
    problem = mt.BilevelProblem(model, model.warp_layer, train_loss, train_loss)
    image = lambda point: model.warp_layer(point.tanh())  # noqa: E731
    jacobian = torch.func.jacrev(image)(model.point.detach())
    gamma = image(model.point.detach())
    slope = torch.func.grad(loss)(gamma)

    def gap(lr):
        inner = mt.inner.SGD(lr=lr)
        meta = problem.meta_parameters()
        after, _ = inner.step(problem, inner.init(problem), meta, None)
        preconditioned = gamma - lr * jacobian @ jacobian.T @ slope
        return float((loss(image(after.parameters["point"])) - loss(preconditioned)).detach().abs())

    gaps = [gap(0.0125 / 2**halvings) for halvings in range(4)]
    assert all(3.5 < a / b < 4.5 for a, b in itertools.pairwise(gaps))


def test_what_is_followed_and_how():
    meta = insert_warp_layers(model := convolutional())
    assert isinstance(meta, WarpLayers)
    kinds = {name: (layer.kind, layer.size) for name, layer in meta.layers().items()}
    assert kinds == {"0.0": ("conv", 4), "1.0": ("conv", 4)}
    assert model[0][0].warp_layer.weight.shape == (4, 4, 3, 3)
    assert dict(meta.named_parameters())["after.0.0.bias"] is model[0][0].warp_layer.bias
    where = ["0", "1.1", "3"]
    chosen = insert_warp_layers(convolutional(), where, bias=False).layers()
    assert [(n, layer.kind, layer.size) for n, layer in chosen.items()] == [
        *(("0", "conv", 4), ("1.1", "conv", 4), ("3", "linear", 2))
    ]
    assert all(layer.bias is None for layer in chosen.values())
    # The projection of attention is read, and never called.
    attending = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = insert_warp_layers(attending, ["linear?", "norm2"]).layers()
    assert [layer.size for layer in found.values()] == [16, 8, 8]
    assert list(insert_warp_layers(nn.Sequential(attending.self_attn, *dense())).layers()) == [
        *("1", "3")
    ]
    normed = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    assert insert_warp_layers(normed.double(), ["0"]).layers()["0"].weight.dtype == F64
    with pytest.raises(ConfigurationError, match="layer or block whose features are known"):
        insert_warp_layers(nn.Sequential(nn.BatchNorm3d(3), *dense()), ["0"])


def test_behind_batch_norm_channels_are_not_taken_for_positions():
    normed = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    meta = insert_warp_layers(normed, ["0"])
    with torch.no_grad():
        meta.layers()["0"].weight.copy_(torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 2]]))
    inputs = torch.randn(5, 3)
    plain = (inputs - inputs.mean(0)) / (inputs.var(0, unbiased=False) + 1e-5).sqrt()
    expected = normed[1](plain[:, [1, 0, 2]] * torch.tensor([1.0, 1, 2]))
    torch.testing.assert_close(normed(inputs), expected)
    # As many positions as channels: the last dimension has the right size, and the wrong meaning.
    with pytest.raises(ShapeError, match=r"\(5, 3, 3\); this warp layer takes \(batch, 3\)"):
        normed[0](torch.randn(5, 3, 3))


def test_a_random_warp_is_no_identity_and_acts():
    plain, model = dense(), dense()
    insert_warp_layers(model, identity=False)
    inputs = torch.randn(3, 3)
    assert not torch.allclose(plain(inputs), model(inputs))
    hidden = model[0].warp_layer(plain[0](inputs))
    expected = plain[4](plain[3](model[2].warp_layer(plain[2](plain[1](hidden)))))
    torch.testing.assert_close(model(inputs), expected)


def test_a_copy_uses_its_own_layers():
    model = dense()
    insert_warp_layers(model)
    other, inputs = copy.deepcopy(model), torch.randn(2, 3)
    before = model(inputs)
    with torch.no_grad():
        other[0].warp_layer.weight.mul_(2)
    assert torch.equal(model(inputs), before) and not torch.equal(other(inputs), before)


def test_arguments():
    assert repr(WarpLayer(3)) == "WarpLayer(3, 'linear')"
    with pytest.raises(ConfigurationError, match="size is 0"):
        WarpLayer(0)
    with pytest.raises(ConfigurationError, match="kind is 'affine'"):
        WarpLayer(2, "affine")
    with pytest.raises(ShapeError, match=r"\(2, 3\); this warp layer takes \(\.\.\., 4\)"):
        WarpLayer(4)(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"takes \(\.\.\., 4\)"):
        WarpLayer(4)(torch.zeros(()))
    for shape in ((2, 4), (2, 3, 5, 5)):
        with pytest.raises(ShapeError, match=r"takes \(batch, 4, height, width\)"):
            WarpLayer(4, "conv")(torch.zeros(shape))
    with pytest.raises(ConfigurationError, match="1 layers of the types Linear"):
        insert_warp_layers(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ConfigurationError, match="where is empty"):
        insert_warp_layers(dense(), [])
    with pytest.raises(ConfigurationError, match=r"'1' matches no layer or block"):
        insert_warp_layers(dense(), ["1"])
    model = dense()
    insert_warp_layers(model, ["0"])
    with pytest.raises(ConfigurationError, match=r"warp layers already \(0\.warp_layer\)"):
        insert_warp_layers(model)
