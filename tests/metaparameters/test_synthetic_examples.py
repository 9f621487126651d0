"""Training inputs as λ."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import DataError, ShapeError
from metatoolkit.hypergradients import Unrolled
from metatoolkit.metaparameters import SyntheticExamples


def train_loss(model, meta, batch):
    return mt.losses.cross_entropy(model, meta, meta())


def make():
    torch.manual_seed(0)
    inputs = torch.randn(3, 4, dtype=torch.float64)
    meta = SyntheticExamples(inputs, torch.arange(3))
    problem = mt.BilevelProblem(nn.Linear(4, 3).double(), meta, train_loss, mt.losses.cross_entropy)
    return problem, inputs, (torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3)


def test_the_inputs_are_learned_and_the_labels_stay():
    problem, inputs, _ = make()
    assert problem.meta_parameter_names == ["inputs"]
    found, labels = problem.meta()
    assert found is problem.meta.inputs and torch.equal(found, inputs)
    # A copy: what it was made of may change.
    inputs += 1
    assert not torch.equal(problem.meta.inputs, inputs)
    assert labels.tolist() == [0, 1, 2] and "labels" in problem.meta.state_dict()


def test_the_derivative_through_several_steps_is_that_of_finite_differences():
    problem, _, valid = make()
    check = mt.check_hypergradient(problem, mt.inner.SGD(lr=0.5), Unrolled(4), [None] * 4, valid)
    assert check.relative_error < 1e-7


def test_wrong_input_is_answered():
    labels = torch.arange(3)
    for shape in ((2, 4), (0, 4), ()):
        with pytest.raises(ShapeError, match="of at least one example"):
            SyntheticExamples(torch.zeros(shape), labels)
    with pytest.raises(DataError, match=r"inputs are torch\.uint8"):
        SyntheticExamples(torch.zeros(3, 4, dtype=torch.uint8), labels)
    with pytest.raises(DataError, match=r"labels torch\.float32"):
        SyntheticExamples(torch.zeros(3, 4), labels.float())
