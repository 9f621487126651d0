"""The steps of ARUBA: SGD without refinement, and the derivative in the gradient with it."""

import pytest
import torch

from metatoolkit.inner import ARUBA
from tests.inner import reference


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"lr": 0.002, "maximize": True}])
def test_without_refinement_it_is_sgd(options):
    reference.assert_follows(ARUBA(**options), torch.optim.SGD, options)


@pytest.mark.parametrize("refinement", [0.0, 0.7])
def test_gradient_sensitivity(refinement):
    reference.assert_sensitivity(ARUBA(0.1, refinement))
