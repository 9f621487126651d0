"""Functions with pieces inside in finite differences: values, and the piece of the point."""

import math

import pytest
import torch
import torch.nn.functional as F

from metatoolkit.hypergradients import FiniteDifference, OneStep
from metatoolkit.hypergradients.composed import COMPOSED
from tests.hypergradients.held_losses import relative_error
from tests.hypergradients.test_pieces import assert_keeps_its_piece, case_of


def signs(x):
    return (torch.arange(x.numel()).view(x.shape) % 2 * 2 - 1).to(x.dtype)


def triplet(x, **settings):
    parts = (x, x.flip(1), x.roll(1, 1))
    return F.triplet_margin_loss(*parts, margin=0.3, reduction="none", **settings)[:, None] * x


def cosine(x):
    target = signs(x)[0, :1].expand(len(x))
    return F.cosine_embedding_loss(x, x.roll(1, 1), target, 0.1, reduction="none")[:, None] * x


def sampled(x, mode, padding="zeros", align=False):
    # Coordinates in the images and beyond their borders.
    grid = 1.3 * torch.stack([x.sin(), x.flip(1).cos() - 0.3], -1)[None]
    images = torch.linspace(-1, 1, 20, dtype=x.dtype).square().view(1, 1, 4, 5)
    return F.grid_sample(images, grid, mode, padding, align)[0, 0] + 0.1 * x


INF = math.inf
FUNCTIONS = {
    "margin ranking": lambda x: F.margin_ranking_loss(x, x.flip(1), signs(x), 0.1) * x,
    "margin ranking of each": lambda x: (
        F.margin_ranking_loss(x, x.flip(1), signs(x), 0.1, reduction="none") + 0.1 * x
    ),
    "hinge": lambda x: F.hinge_embedding_loss(x, signs(x), 0.2, reduction="none") + 0.1 * x,
    "cosine": cosine,
    "triplet": triplet,
    "triplet, swapped": lambda x: triplet(x, swap=True),
    "triplet of sizes, swapped": lambda x: triplet(x, swap=True, p=1) / 5,
    "distances of sizes": lambda x: torch.cdist(x, x.flip(1) + 1, p=1.0)[:, :3] / 9,
    "largest distances": lambda x: torch.cdist(x, x.flip(1) + 1, p=INF)[:, :3],
    "pairwise, of sizes": lambda x: F.pairwise_distance(x, x.flip(1), 1.0)[:, None] * x / 5,
    "pairwise, largest": lambda x: F.pairwise_distance(x, x.flip(1), INF)[:, None] * x,
    "pdist": lambda x: F.pdist(x, 1.0).mean() * x / 9,
    "largest size": lambda x: torch.linalg.vector_norm(x, INF, 1, keepdim=True) * x,
    "smallest size": lambda x: torch.linalg.vector_norm(x, -INF, 1, keepdim=True) * x,
    "dist": lambda x: torch.dist(x, x.flip(1), 1) * x / 99,
    "quantile": lambda x: x.quantile(0.3, 1, keepdim=True) * x,
    "nanquantile": lambda x: x.nanquantile(0.3, 1, keepdim=True) * x,
    "aminmax": lambda x: x.aminmax(dim=1, keepdim=True).max * x,
    "msort": lambda x: x.msort() * x,
    "sampled at the nearest": lambda x: sampled(x, "nearest"),
    "sampled between four": lambda x: sampled(x, "bilinear"),
    "sampled, border": lambda x: sampled(x, "bilinear", "border", True),
    "sampled between sixteen": lambda x: sampled(x, "bicubic"),
    "sampled between sixteen, border": lambda x: sampled(x, "bicubic", "border"),
    "sampled between sixteen, reflected": lambda x: sampled(x, "bicubic", "reflection", True),
    "sampled, reflected": lambda x: sampled(x, "bilinear", "reflection"),
    "division to steps": lambda x: torch.div(4 * x, 0.5, rounding_mode="floor") * x + x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keeps_its_piece(name):
    assert_keeps_its_piece(FUNCTIONS[name])


X = torch.linspace(-1, 1, 24, dtype=torch.float64).sin().roll(5).view(4, 6)[:, [3, 1, 5, 0, 4, 2]]
Y = torch.tensor([0, 5, 2, 3])
NAN = X.masked_fill(X > 0.6, math.nan)
LABELS = torch.tensor([[1, 3, -1, 0, 0, 2], [0, 0, -1, 1, 1, 1], [-1] * 6, [5, 4, 3, 2, 1, 0]])
WEIGHT = torch.linspace(0.5, 1.0, 6, dtype=torch.float64)
CALLS = [
    (torch._C._nn.multi_margin_loss, (X, Y), {"reduction": 1}),
    (torch._C._nn.multi_margin_loss, (X, Y, 2, 0.4, WEIGHT, 0), {}),
    (torch._C._nn.multi_margin_loss, (X[0], Y[1], 1, 0.7, WEIGHT, 2), {}),
    (torch._C._nn.multilabel_margin_loss, (X, LABELS, 0), {}),
    (torch._C._nn.multilabel_margin_loss, (X[0], LABELS[0]), {}),
    (torch.margin_ranking_loss, (X, X.flip(1), signs(X), 0.2, 2), {}),
    (torch.hinge_embedding_loss, (X, signs(X)), {"margin": 0.4, "reduction": 1}),
    (torch.cosine_embedding_loss, (X, X.flip(1), signs(X[:, 0]), 0.1, 0), {}),
    (torch.triplet_margin_loss, (X, X.flip(1), X.roll(1, 1), 0.2, 1.0, 1e-6, True, 0), {}),
    (torch.pairwise_distance, (X, X.flip(1), 1.0, 0.1, True), {}),
    (torch.pairwise_distance, (X, X[0]), {"p": INF}),
    (torch.cdist, (X, X.flip(1) + WEIGHT, INF), {}),
    (torch.cdist, (X.view(2, 2, 6), X.view(2, 2, 6).flip(2)), {"p": 1.0}),
    (torch.cdist, (X, X.flip(1)), {}),
    (torch.pdist, (X, 1.0), {}),
    (torch.pdist, (X,), {}),
    (torch.dist, (X, X.flip(1), INF), {}),
    (torch.linalg.vector_norm, (X, INF), {}),
    (torch.linalg.vector_norm, (X, -INF, (0, 1), True), {"dtype": torch.float64}),
    (torch.linalg.vector_norm, (X, 3, 1), {}),
    (torch.aminmax, (X,), {}),
    (torch.aminmax, (X,), {"dim": 1, "keepdim": True}),
    (torch.msort, (X,), {}),
    (torch.div, (X, 0.3), {"rounding_mode": "trunc"}),
    (torch.div, (X, 0.3), {}),
    *[
        (function, (x, q, *rest), {"interpolation": kind})
        for kind in ("linear", "lower", "higher", "midpoint", "nearest")
        for function, x, q, *rest in (
            (torch.quantile, X, 0.3),
            (torch.quantile, NAN, torch.tensor([0.1, 0.75]).double(), 1),
            (torch.quantile, X, torch.tensor([0.1, 0.75]).double(), 0, True),
            (torch.quantile, X, torch.tensor([0.1]).double(), None, True),
            (torch.nanquantile, NAN, 0.3, 1, True),
        )
    ],
]


@pytest.mark.parametrize("place", range(len(CALLS)))
def test_values_and_gradients_are_those_of_torch(place):
    function, args, kwargs = CALLS[place]
    results = []
    for call in (function, COMPOSED[function]):
        given = args[0].clone().requires_grad_()
        result = call(given, *args[1:], **kwargs)
        values = result if isinstance(result, tuple) else (result,)
        slopes = None
        if values[0].requires_grad:
            total = sum((v * v.detach().cos().nan_to_num()).sum() for v in values)
            (slopes,) = torch.autograd.grad(total, given)
        results.append((values, torch.zeros_like(given) if slopes is None else slopes))
    (values, slopes), (others, other_slopes) = results
    torch.testing.assert_close(others, values, equal_nan=True)
    torch.testing.assert_close(other_slopes, slopes, equal_nan=True)


def test_losses_without_a_second_derivative_keep_their_piece():
    def written_out(x):
        wrong = torch.arange(x.shape[1]) != (torch.arange(len(x)) % x.shape[1])[:, None]
        own = x[torch.arange(len(x)), torch.arange(len(x)) % x.shape[1]][:, None]
        return ((0.3 - own + x).relu() * wrong).sum(1).mean() / x.shape[1] * x

    def of_torch(x):
        return F.multi_margin_loss(x, torch.arange(len(x)) % x.shape[1], margin=0.3) * x

    exact = case_of(written_out)
    exact = exact.call(OneStep(), exact.state)
    case = case_of(of_torch)
    for radius, limit in ((None, 1e-6), (0.02, 2e-2)):
        assert relative_error(case.call(FiniteDifference(radius), case.state), exact) < limit


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("sizes", [(4, 5), (1, 3), (3, 4, 2)])
def test_samples_of_grids_are_those_of_torch(sizes, mode, padding, align):
    if mode == "bicubic" and len(sizes) == 3:
        pytest.skip("torch has none")
    generator = torch.Generator().manual_seed(len(padding))
    options = {"generator": generator, "dtype": torch.float64}
    images = torch.randn(2, 3, *sizes, **options).requires_grad_()
    shape = (2, 7, 6, 2) if len(sizes) == 2 else (2, 3, 4, 5, 3)
    grid = (2 * torch.randn(*shape, **options)).requires_grad_()
    expected = F.grid_sample(images, grid, mode, padding, align)
    numbers = [
        ("bilinear", "nearest", "bicubic").index(mode),
        ("zeros", "border", "reflection").index(padding),
    ]
    found = COMPOSED[torch.grid_sampler](images, grid, *numbers, align)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, **options)
    both = [
        torch.autograd.grad((y * weights).sum(), [images, grid], materialize_grads=True)
        if mode != "nearest"
        else torch.autograd.grad((y * weights).sum(), [images])
        for y in (found, expected)
    ]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("p", [1, 1.0, INF, 0.5, 2.0, 3.0])
def test_distances_with_pieces_are_no_single_operators(p):
    given = X.clone().requires_grad_()
    for function, args in ((torch.pdist, (given, p)), (torch.cdist, (given, X.flip(1), p))):
        waiting, names = [COMPOSED[function](*args).grad_fn], set()
        while waiting:
            node = waiting.pop()
            names.add(node.name())
            waiting += [after for after, _ in node.next_functions if after is not None]
        single = any("dist" in name.lower() for name in names)
        # The pieces of a sum and of a maximum of sizes are those of their parts.
        assert single == (p not in (1, INF)), names
