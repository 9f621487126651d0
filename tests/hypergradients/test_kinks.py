"""More piecewise functions in finite differences: the piece is that of the point."""

import math

import pytest
import torch
import torch.nn.functional as F

from metatoolkit.hypergradients.kinks import PIECES
from tests.hypergradients.test_pieces import assert_keeps_its_piece

FUNCTIONS = {
    "selu": F.selu,
    "selu, in place": lambda x: F.selu(x + 0.0, inplace=True),
    "elu": lambda x: F.elu(x, 0.3),
    "elu as it comes": lambda x: torch._C._nn.elu(x, 0.3, 1.2, 2.0),
    "rrelu": lambda x: F.dropout(F.rrelu(x, 0.1, 0.9, training=True), 0.3),
    "rrelu, in place": lambda x: F.rrelu(x + 0.0, training=True, inplace=True),
    "rrelu, as it is evaluated": lambda x: F.rrelu(x),
    "rrelu of zeros": lambda x: F.rrelu(x.relu().detach() * x, training=True),
    "remainder": lambda x: torch.remainder(4 * x, 1.0) + x,
    "remainder by a tensor": lambda x: torch.remainder(4 * x, 0.5 + x.flip(1).square()) + x,
    "remainder, in place": lambda x: (4 * x).remainder_(0.7) + x,
    "modulo": lambda x: (4 * x) % 0.6 + x,
    "fmod": lambda x: torch.fmod(4 * x, 1.0) + x,
    "frac": lambda x: (4 * x).frac() * x.exp() + x,
    "amax": lambda x: x.amax(1, keepdim=True) * x,
    "amin": lambda x: x.amin(1).unsqueeze(1) * x,
    "amax of all": lambda x: x.amax() * x,
    "amax of equal entries": lambda x: torch.cat([x, x], 1).amax(1, keepdim=True) * x,
    "amax of masked entries": lambda x: x - x.masked_fill(x > 0.3, -torch.inf).amax(1, True),
    "fmax": lambda x: torch.fmax(x, x.flip(1)),
    "fmin": lambda x: torch.fmin(x, 0.5 * x.flip(1)),
    "median": lambda x: x.median(1, keepdim=True).values * x,
    "median of all": lambda x: x.median() * x,
    "nanmedian": lambda x: x.nanmedian(1)[0].unsqueeze(1) * x,
    "kthvalue": lambda x: x.kthvalue(5, 1, keepdim=True).values * x,
    "kthvalue of the last dimension": lambda x: torch.kthvalue(x, 3)[0].unsqueeze(1) * x,
    "mode": lambda x: x.mode().values.unsqueeze(1) * x,
    "cummax": lambda x: x.cummax(1).values * x,
    "cummin": lambda x: x.cummin(dim=0).values * x,
    "l1_loss": lambda x: F.l1_loss(x, x.flip(1)) * x,
    "l1_loss of each": lambda x: F.l1_loss(x, x.flip(1), reduction="none") * x,
    "l1_loss, summed": lambda x: F.l1_loss(x, 0.1 * x.flip(1), reduction="sum") * x / 100,
    "norm of sizes": lambda x: torch.linalg.vector_norm(x, 1, 1, keepdim=True) * x / 9,
    "norm of all sizes": lambda x: torch.linalg.vector_norm(x, ord=1) * x / 100,
    "normalize": lambda x: F.normalize(x, p=1.0, dim=1) * 9,
    "norm of squares": lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True) * x / 9,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keeps_its_piece(name):
    assert_keeps_its_piece(FUNCTIONS[name])


@pytest.mark.parametrize("name", ["selu", "elu"])
def test_large_values_do_not_overflow(name):
    function = getattr(F, name)
    x = torch.tensor([-1.0, 2.0, 1000.0], dtype=torch.float64, requires_grad=True)
    kinds = {"selu": torch.selu, "elu": torch._C._nn.elu}
    piece = PIECES[kinds[name]]
    result, sides = piece.find(kinds[name], (x,), {})
    held = piece.hold(sides, kinds[name], (x,), {})
    torch.testing.assert_close(held, function(x))
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (held, result)]
    torch.testing.assert_close(*slopes)


def test_as_many_numbers_are_drawn_again():
    x = torch.tensor([-1.0, 2.0, 0.0, -3.0])
    piece = PIECES[torch.rrelu]
    torch.manual_seed(0)
    expected, after = torch.rrelu(x, 0.1, 0.9, True), torch.rand(1)
    torch.manual_seed(0)
    result, slopes = piece.find(torch.rrelu, (x, 0.1, 0.9), {"training": True})
    assert torch.rand(1) == after
    torch.testing.assert_close(result, expected)
    torch.manual_seed(0)
    held = piece.hold(slopes, torch.rrelu, (-x, 0.1, 0.9), {"training": True})
    assert torch.rand(1) == after
    torch.testing.assert_close(held, -result)
    assert 0.1 < slopes[2] < 0.9
    named = {"input": x, "lower": 0.5, "upper": 0.5}
    result, slopes = piece.find(torch.rrelu, (), named)
    assert result.tolist() == [-0.5, 2.0, 0.0, -1.5] and slopes.tolist() == [0.5, 1.0, 0.5, 0.5]
    assert piece.hold(slopes, torch.rrelu, (), named).tolist() == result.tolist()


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5), (3,)])
def test_a_slope_for_each_channel(shape):
    x = torch.linspace(-1, 1, math.prod(shape)).sin().view(shape)
    weight = torch.tensor([0.1, 0.2, 0.3])[: 3 if len(shape) > 1 else 1]
    piece = PIECES[torch.prelu]
    result, sides = piece.find(torch.prelu, (x, weight), {})
    assert torch.equal(result, torch.prelu(x, weight))
    assert torch.equal(piece.hold(sides, torch.prelu, (x, weight), {}), result)


# Name, further arguments, where the piece is found, and its values at (1, −1, −4).
BY_HAND = [
    ("relu", (), (-2.0, 0.5, 3.0), (0.0, -1.0, -4.0)),
    ("leaky_relu", (0.1,), (-2.0, 0.5, 3.0), (0.1, -1.0, -4.0)),
    ("leaky_relu", (), (-2.0, 0.5, 3.0), (0.01, -1.0, -4.0)),
    ("hardtanh", (), (-2.0, 0.5, 3.0), (-1.0, -1.0, 1.0)),
    ("hardtanh", (-0.3, 0.7), (-2.0, 0.5, 3.0), (-0.3, -1.0, 0.7)),
    ("clamp", (-0.3, 0.7), (-2.0, 0.5, 3.0), (-0.3, -1.0, 0.7)),
    ("clip", (-0.3, 0.7), (-2.0, 0.5, 3.0), (-0.3, -1.0, 0.7)),
    ("clamp", (0.7, -0.3), (-2.0, 0.5, 3.0), (-0.3, -0.3, -0.3)),
    ("clamp", (None, 0.7), (-2.0, 0.5, 3.0), (1.0, -1.0, 0.7)),
    ("clamp", (0.0,), (-2.0, 0.5, 3.0), (0.0, -1.0, -4.0)),
    ("clamp_min", (0.2,), (-2.0, 0.5, 3.0), (0.2, -1.0, -4.0)),
    ("clamp_max", (0.2,), (-2.0, 0.5, 3.0), (1.0, 0.2, 0.2)),
    ("abs", (), (-2.0, 0.5, 0.0), (-1.0, -1.0, 0.0)),
    ("absolute", (), (-2.0, 0.5, 3.0), (-1.0, -1.0, -4.0)),
    ("threshold", (0.2, 7.0), (-2.0, 0.5, 0.2), (7.0, -1.0, 7.0)),
    ("prelu", (torch.tensor([0.5]),), (-2.0, 0.5, 3.0), (0.5, -1.0, -4.0)),
    ("hardswish", (), (-4.0, 0.5, 4.0), (0.0, -1 / 3, -4.0)),
    ("hardsigmoid", (), (-4.0, 0.5, 4.0), (0.0, 1 / 3, 1.0)),
    ("softshrink", (), (-2.0, 0.4, 3.0), (1.5, 0.0, -4.5)),
    ("softshrink", (0.25,), (-2.0, 0.2, 3.0), (1.25, 0.0, -4.25)),
    ("hardshrink", (), (-2.0, 0.4, 3.0), (1.0, 0.0, -4.0)),
    ("hardshrink", (0.25,), (-2.0, 0.4, 0.2), (1.0, -1.0, 0.0)),
    ("maximum", (torch.tensor([0.0, 0.5, 0.0]),), (-2.0, 0.5, 3.0), (0.0, -0.25, -4.0)),
    ("minimum", (torch.tensor([0.0, 0.5, 0.0]),), (-2.0, 0.5, 3.0), (1.0, -0.25, 0.0)),
    ("fmax", (torch.tensor([0.0, 0.5, 0.0]),), (-2.0, 0.5, 3.0), (0.0, -0.25, -4.0)),
    ("fmin", (torch.tensor([0.0, 0.5, 0.0]),), (-2.0, 0.5, 3.0), (1.0, -0.25, 0.0)),
    ("max", (), (-2.0, 0.5, 3.0), -4.0),
    ("min", (), (-2.0, 0.5, 3.0), 1.0),
    ("median", (), (-2.0, 0.5, 3.0), -1.0),
    ("nanmedian", (), (-2.0, 0.5, torch.nan), 1.0),
    ("amax", (), (-2.0, 3.0, 3.0), -2.5),
    ("amin", (), (-2.0, 0.5, -2.0), -1.5),
    ("round", (), (-2.4, 0.4, 3.4), (-2.0, 0.0, 3.0)),
    ("floor", (), (-2.4, 0.4, 3.4), (-3.0, 0.0, 3.0)),
    ("ceil", (), (-2.4, 0.4, 3.4), (-2.0, 1.0, 4.0)),
    ("trunc", (), (-2.4, 0.4, 3.4), (-2.0, 0.0, 3.0)),
    ("fix", (), (-2.4, 0.4, 3.4), (-2.0, 0.0, 3.0)),
    ("sign", (), (-2.4, 0.0, 3.4), (-1.0, 0.0, 1.0)),
    ("selu", (), (0.5, 0.5, 3.0), (1.0507009873554805, -1.0507009873554805, -4.202803949421922)),
    ("elu", (0.5,), (0.5, -0.5, 3.0), (1.0, 0.5 * (math.exp(-1.0) - 1.0), -4.0)),
    ("remainder", (1.5,), (-2.0, 0.5, 3.5), (1.0 + 3.0, -1.0, -4.0 - 3.0)),
    ("fmod", (1.5,), (-2.0, 0.5, 3.5), (1.0 + 1.5, -1.0, -4.0 - 3.0)),
    ("frac", (), (-2.5, 0.5, 3.5), (1.0 + 2.0, -1.0, -4.0 - 3.0)),
    ("l1_loss", (torch.zeros(3), 0), (-2.0, 0.5, 3.0), (-1.0, -1.0, -4.0)),
    ("l1_loss", (torch.zeros(3), 1), (-2.0, 0.5, 3.0), -2.0),
    ("l1_loss", (torch.zeros(3), 2), (-2.0, 0.5, 3.0), -6.0),
]


@pytest.mark.parametrize(
    ("name", "rest", "start", "expected"),
    BY_HAND,
    ids=[f"{n}-{i}" for i, (n, *_) in enumerate(BY_HAND)],
)
def test_by_hand(name, rest, start, expected):
    homes = (torch, torch.Tensor, torch._C._nn)
    found = [
        function
        for variant in (name, f"{name}_")
        for home in homes
        if (function := getattr(home, variant, None)) is not None
    ]
    assert found
    for function in found:
        x, other = torch.tensor(start), torch.tensor([1.0, -1.0, -4.0])
        value = function(x.clone(), *rest)
        result, piece = PIECES[function].find(function, (x.clone(), *rest), {})
        torch.testing.assert_close(result, value)
        again = PIECES[function].hold(piece, function, (x.clone(), *rest), {})
        torch.testing.assert_close(again, value, equal_nan=True)
        held = PIECES[function].hold(piece, function, (other.clone(), *rest), {})
        torch.testing.assert_close(held, torch.tensor(expected))


PAIRS = [
    ("max", (1,), [2.0, -4.0], [0, 1]),
    ("min", (1,), [3.0, 5.0], [1, 0]),
    ("median", (1,), [3.0, 5.0], [1, 0]),
    ("nanmedian", (1,), [3.0, 5.0], [1, 0]),
    ("mode", (), [3.0, 5.0], [1, 0]),
    ("kthvalue", (2,), [2.0, -4.0], [0, 1]),
    ("topk", (1,), [[2.0], [-4.0]], [[0], [1]]),
    ("sort", (), [[3.0, 2.0], [5.0, -4.0]], [[1, 0], [0, 1]]),
    ("cummax", (1,), [[2.0, 2.0], [5.0, -4.0]], [[0, 0], [0, 1]]),
    ("cummin", (1,), [[2.0, 3.0], [5.0, 5.0]], [[0, 1], [0, 0]]),
]


@pytest.mark.parametrize(("name", "rest", "values", "places"), PAIRS, ids=[n for n, *_ in PAIRS])
def test_selections_by_hand(name, rest, values, places):
    start, other = torch.tensor([[1.0, -1.0], [-3.0, 4.0]]), torch.tensor([[2.0, 3.0], [5.0, -4.0]])
    for function in (getattr(torch, name), getattr(torch.Tensor, name)):
        result, piece = PIECES[function].find(function, (start, *rest), {})
        held = PIECES[function].hold(piece, function, (other, *rest), {})
        assert type(held) is type(result) is getattr(torch.return_types, name)
        assert held[0].tolist() == values and held[1].tolist() == places
