"""More piecewise functions in finite differences: the piece is that of the point."""

import pytest
import torch
import torch.nn.functional as F

from metatoolkit.hypergradients import SAMA, EvoGrad, FiniteDifference, OneStep
from metatoolkit.hypergradients.kinks import PIECES
from tests.hypergradients.test_detached import relative_error
from tests.hypergradients.test_pieces import case_of

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
    case = case_of(FUNCTIONS[name])
    state = case.state
    exact = case.call(OneStep(), state)
    # A radius at which many entries change sides.
    for estimator, limit in ((FiniteDifference(), 1e-6), (FiniteDifference(0.02), 2e-2)):
        assert relative_error(case.call(estimator, state), exact) < limit
    exact = case.call(OneStep(False), state)
    assert relative_error(case.call(SAMA(), state), exact) < 1e-6
    guided = EvoGrad(2, 1e-5, 5.0, guided=True, rescale=1.0)
    assert relative_error(case.call(guided, state), exact) < 1e-3


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
