"""Losses that compute in less than float32: their hypergradients are compared with float64."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import AccuracyWarning
from metatoolkit.hypergradients import (
    SAMA,
    ConjugateGradient,
    EvoGrad,
    FiniteDifference,
    ForwardMode,
    GuidedEvoGrad,
    Implicit,
    OneStep,
    Unrolled,
)

INNER = mt.inner.SGD(lr=0.1)


class Weights(nn.Module):
    """One logit for each example's weight."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(12))


class Losses:
    """Losses of a linear classifier in a type, which count their evaluations."""

    def __init__(self, dtype, in_float64=True):
        self.dtype, self.in_float64, self.count = dtype, in_float64, 0

    def _each(self, model, batch):
        self.count += 1
        inputs, labels = batch
        if inputs.dtype == torch.float64 and not self.in_float64:
            raise RuntimeError("no kernel for double")
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            outputs = model(inputs)
        return F.cross_entropy(outputs.to(torch.float32), labels, reduction="none")

    def train(self, model, meta, batch):
        return (torch.sigmoid(meta.logits) * self._each(model, batch)).mean()

    def valid(self, model, meta, batch):
        return self._each(model, batch).mean()


def given(dtype=torch.bfloat16, offset=0.0, in_float64=True):
    """Return a problem and its batches; beside a large offset, rounding takes what examples are.

    The outer gradient is orthogonal to the offset, of which nothing is left in λ.
    """
    torch.manual_seed(0)
    model = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        model.weight -= model.weight.mean(1, keepdim=True)
    losses = Losses(dtype, in_float64)
    problem = mt.BilevelProblem(model, Weights(), losses.train, losses.valid)
    batches = [(torch.randn(12, 6) + offset, torch.arange(12) % 3) for _ in range(3)]
    centered = torch.randn(12, 6)
    valid = (centered - centered.mean(1, keepdim=True), torch.arange(12) % 3)
    return problem, losses, [*batches, valid]


def called(estimator, problem, batches):
    state = INNER.init(problem)
    return estimator(problem, INNER, state, batches[: estimator.horizon], batches[-1])


def by_hand(problem, batches, dtype):
    """Return the derivative through one step by PyTorch alone, for any type of the losses."""
    model = problem.model
    weight = model.weight.detach().to(dtype).requires_grad_()
    logits = torch.zeros(12, dtype=dtype, requires_grad=True)
    (x, y), (v, w) = batches[0], batches[-1]

    def each(weight, inputs, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
            outputs = F.linear(inputs.to(dtype), weight)
        return F.cross_entropy(outputs.to(dtype), labels, reduction="none")

    loss = (torch.sigmoid(logits) * each(weight, x, y)).mean()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    return torch.autograd.grad(each(weight - 0.1 * gradient, v, w).mean(), logits)[0].double()


@pytest.mark.parametrize("estimator", [Unrolled(1), OneStep()], ids=["unrolled", "one_step"])
def test_the_distance_to_float64_is_told(estimator):
    problem, _, batches = given()
    result = called(estimator, problem, batches)
    low, high = (by_hand(problem, batches, t) for t in (torch.float32, torch.float64))
    expected = float((low - high).norm() / high.norm())
    assert 1e-4 < expected < 0.05
    assert float(result.details["rounding_error"]) == pytest.approx(expected, rel=0.3)
    cosine = float(F.cosine_similarity(low, high, dim=0))
    assert float(result.details["rounding_cosine"]) == pytest.approx(cosine, abs=1e-4)


@pytest.mark.parametrize(
    "estimator",
    [
        Unrolled(1),
        Unrolled(2),
        OneStep(),
        ForwardMode(2),
        FiniteDifference(),
        SAMA(),
        Implicit(ConjugateGradient(3, damping=1.0, negative_curvature="stop")),
        GuidedEvoGrad(),
    ],
    ids=lambda estimator: f"{type(estimator).__name__}-{estimator.horizon}",
)
def test_what_rounding_destroys_is_a_warning(estimator):
    problem, _, batches = given(offset=1000.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = called(estimator, problem, batches)
    # Differences may have seen some of it themselves.
    told = str(caught[-1].message)
    assert caught[-1].category is AccuracyWarning
    assert "compute in bfloat16" in told and "cosine of" in told and "in float32" in told
    assert float(result.details["rounding_error"]) > 0.1


def test_a_model_in_half_precision():
    problem, _, batches = given(torch.float32)
    problem.model.half()
    batches = [(x.half(), y) for x, y in batches]
    result = called(Unrolled(1), problem, batches)
    assert problem.coarse == {torch.float16}
    assert 1e-6 < float(result.details["rounding_error"]) < 0.01
    assert {p.dtype for p in problem.model.parameters()} == {torch.float16}


def test_float32_costs_nothing_and_the_second_call_is_as_without():
    problem, losses, batches = given(torch.float32)
    estimator = Unrolled(1)
    assert not {"rounding_error"} & set(called(estimator, problem, batches).details)
    plain, losses.count = losses.count, 0
    low, counted, _ = given()
    first = called(estimator, low, batches)
    # Without the evaluation that tells whether the loss is a function.
    assert counted.count == plain + 2
    counted.count = 0
    second = called(estimator, low, batches)
    assert counted.count < plain and "rounding_error" not in second.details
    assert torch.equal(first.gradient["logits"], second.gradient["logits"])


def test_the_comparison_can_be_left_out():
    problem, losses, batches = given(offset=1000.0)
    estimator = Unrolled(1)
    estimator.checks_rounding = False
    assert "rounding_error" not in called(estimator, problem, batches).details
    assert losses.count == 3


def test_what_an_estimator_carries_moves_once():
    found = []
    for seen in (False, True):
        problem, _, batches = given()
        estimator = Implicit(ConjugateGradient(2, damping=1.0), warm_start=True)
        estimator.checks_rounding = not seen
        found.append([called(estimator, problem, batches).gradient["logits"] for _ in range(3)])
    for compared, alone in zip(*found, strict=True):
        assert torch.equal(compared, alone)


def test_a_radius_is_chosen_by_the_type_that_losses_compute_in():
    problem, _, batches = given()
    low = called(GuidedEvoGrad(), problem, batches).details
    high = called(GuidedEvoGrad(), given(torch.float32)[0], batches).details
    ratio = (torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float32).eps) ** (1 / 3)
    assert float(low["sigma"] / high["sigma"]) == pytest.approx(ratio, rel=0.05)
    assert float(low["rounding_error"]) < 0.03
    # Half a rounding unit of losses in bfloat16, over how far the two candidates are apart.
    assert 1e-3 < float(low["rounding"]) < 0.2


def test_the_comparison_begins_where_the_call_began():
    problem, _, batches = given()
    # One iteration; a second one, from where the first ended, would be far from it.
    solver = ConjugateGradient(1, damping=1.0)
    result = called(Implicit(solver, warm_start=True), problem, batches)
    alone = called(Implicit(solver), problem, batches)
    assert torch.equal(result.details["rounding_error"], alone.details["rounding_error"])


def test_a_random_estimator_is_not_compared():
    problem, _, batches = given()
    result = called(EvoGrad(), problem, batches)
    assert problem.coarse == {torch.bfloat16} and "rounding_error" not in result.details


def test_a_problem_that_does_not_run_in_float64_is_told():
    problem, _, batches = given(in_float64=False)
    with pytest.warns(AccuracyWarning, match=r"could not be measured: .*no kernel for double"):
        result = called(OneStep(), problem, batches)
    assert "rounding_error" not in result.details
    # Everything is back in its place, and the next call is a plain one.
    assert {p.dtype for p in problem.model.parameters()} == {torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called(OneStep(), given(torch.float32)[0], batches)
