"""Lion against a loop of its own, autograd and finite differences."""

import pytest
import torch

from metatoolkit import hypergradients as hg
from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import Lion
from tests.inner import reference


class LoopLion(torch.optim.Optimizer):
    """Lion as the paper's algorithm 2 has it."""

    def __init__(self, params, **options):
        defaults = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False}
        super().__init__(params, defaults | options)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = -p.grad if group["maximize"] else p.grad
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = first * m + (1 - first) * g
                p -= group["lr"] * (torch.sign(c) + group["weight_decay"] * p)
                self.state[p]["m"] = second * m + (1 - second) * g


OPTIONS = [
    {"lr": 0.01},
    {"lr": 0.02, "betas": (0.5, 0.8), "weight_decay": 0.3},
    {"lr": 0.003, "betas": (0.0, 0.0), "maximize": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_algorithm(options):
    reference.assert_follows(Lion(**options), LoopLion, options)


def test_groups_equal_the_algorithm():
    options = {"lr": 0.01, "weight_decay": 0.1}
    special = [{"lr": 0.002, "betas": (0.7, 0.8)}, {"weight_decay": 0.0, "maximize": True}]
    inner = Lion(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, LoopLion, options, special)


def test_learned_rate_and_decay():
    values = {"lr": 0.05, "decay": 0.2}
    reference.assert_differences(lambda m: Lion(lr=m["lr"], weight_decay=m["decay"]), values)


def test_a_smooth_sign_lets_everything_through():
    values = {"lr": 0.05, "beta1": 0.7, "beta2": 0.8, "decay": 0.2, "smoothing": 0.3}

    def make(meta):
        return Lion(
            lr=meta["lr"],
            betas=(meta["beta1"], lambda meta, step: meta["beta2"]),
            weight_decay=meta["decay"],
            smoothing=meta["smoothing"],
        )

    reference.assert_differences(make, values)
    check = reference.loss_check(Lion(lr=0.05, smoothing=0.2), dead=(0, 3))
    assert check.relative_error < 1e-6, check
    assert float(check.estimate.norm()) > 1e-4
    reference.assert_sensitivity(Lion(lr=0.05, betas=(0.8, 0.9), smoothing=0.2, maximize=True))


def test_the_sign_itself_lets_nothing_through():
    problem, batches = reference.make_problem(), reference.make_batches(4)
    inner = Lion(lr=0.01)
    for estimator in (hg.Unrolled(1), hg.FiniteDifference()):
        result = estimator(problem, inner, inner.init(problem), batches[:1], batches[1])
        assert result.gradient["log_penalty"].tolist() == [0.0, 0.0]


def test_arguments_out_of_range():
    with pytest.raises(ConfigurationError, match=r"beta1 is 1.0"):
        Lion(betas=(1.0, 0.9))
    with pytest.raises(ConfigurationError, match=r"beta2 is 1.0"):
        Lion(betas=(0.9, 1.0))
    with pytest.raises(ConfigurationError, match=r"smoothing is -1"):
        Lion(smoothing=-1)


def test_what_is_left_out():
    reference.assert_defaults(Lion, LoopLion, own=("smoothing",))
    assert Lion().hyperparameters["smoothing"] == 0.0


def test_a_gradient_of_zero_has_the_slope_of_a_linear_step():
    # c / √(c² + s²) has the slope 1 / s at 0, and c = (1 − β₁) g.
    reference.assert_rest(Lion(lr=0.1, betas=(0.7, 0.9), smoothing=0.5), -0.1 * 0.3 / 0.5)
    found = Lion(lr=0.1).sensitivity(
        torch.ones(2), torch.ones(2), {"momentum": torch.zeros(2)}, Lion(lr=0.1).hyperparameters, 0
    )
    assert found.shape == () and float(found) == 0.0
