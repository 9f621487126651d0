"""Rprop against torch.optim.Rprop and finite differences; its signs let nothing through."""

import pytest
import torch

from metatoolkit import hypergradients as hg
from metatoolkit.errors import ConfigurationError
from metatoolkit.inner import Rprop
from tests.inner import reference

OPTIONS = [
    {"lr": 0.02},
    {"lr": 0.05, "etas": (0.3, 1.7), "step_sizes": (1e-3, 0.1)},
    {"lr": 0.0, "step_sizes": (0.01, 0.02)},
    {"lr": 0.002, "maximize": True, "step_sizes": (0.0, 0.003)},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_torch(options):
    reference.assert_follows(Rprop(**options), torch.optim.Rprop, options)


def test_groups_equal_torch():
    options = {"lr": 0.02}
    special = [{"lr": 0.05, "etas": (0.4, 1.5)}, {"step_sizes": (0.01, 0.03)}]
    inner = Rprop(**options, groups=reference.groups_of(special))
    reference.assert_follows(inner, torch.optim.Rprop, options, special)


def test_the_rate_is_read_at_the_first_step_alone():
    reference.assert_follows(
        Rprop(lr=lambda meta, step: 0.02 / (step + 1)),
        torch.optim.Rprop,
        {"lr": 0.02},
        schedule=lambda step: {"lr": 0.02 / (step + 1)},
    )


def test_learned_rate_and_factors():
    values = {"lr": 0.05, "minus": 0.4, "plus": 1.3}

    def make(meta):
        return Rprop(lr=meta["lr"], etas=(meta["minus"], lambda meta, step: meta["plus"]))

    reference.assert_differences(make, values, steps=6)


def test_learned_limits():
    values = {"least": 0.05, "largest": 0.09}

    def make(meta):
        return Rprop(lr=0.07, etas=(0.3, 1.5), step_sizes=(meta["least"], meta["largest"]))

    reference.assert_differences(make, values, steps=6)


def test_the_signs_let_nothing_through():
    problem, batches = reference.make_problem(), reference.make_batches(4)
    inner = Rprop(lr=0.01)
    for estimator in (hg.Unrolled(3), hg.FiniteDifference()):
        given = batches[: estimator.horizon]
        result = estimator(problem, inner, inner.init(problem), given, batches[3])
        assert result.gradient["log_penalty"].tolist() == [0.0, 0.0]


def test_gradient_sensitivity_is_zero():
    problem, batches = reference.make_problem(), reference.make_batches(1)
    inner, meta = Rprop(), problem.meta_parameters()
    state = inner.init(problem)
    leaves = state.map(lambda tensor: tensor.detach().requires_grad_())
    _, gradients, _ = inner.gradients(problem, leaves, meta, batches[0])
    found = inner.gradient_sensitivity(problem, state, meta, gradients)
    for name, parameter in state.parameters.items():
        assert torch.equal(found[name], torch.zeros_like(parameter))


@pytest.mark.parametrize("etas", [(0.0, 1.2), (1.0, 1.2), (0.5, 1.0), (0.5, 0.9), 0.5])
def test_arguments_out_of_range(etas):
    with pytest.raises(ConfigurationError, match="eta"):
        Rprop(etas=etas)
    with pytest.raises(ConfigurationError, match="eta"):
        Rprop(groups=[{"params": ["head.*"], "etas": etas}])
