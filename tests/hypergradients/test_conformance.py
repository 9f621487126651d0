"""What must hold for every estimator, on every problem of the bank that it applies to."""

import contextlib
import copy
import gc
import math
import pickle

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import (
    ConfigurationError,
    NonFiniteError,
    UnsupportedError,
    UnusedMetaParameterError,
)
from metatoolkit.hypergradients import Traits
from metatoolkit.hypergradients.evolution_strategies import AntitheticEvaluations
from metatoolkit.hypergradients.listing import all_estimators
from tests import bank
from tests.draws import check_draws
from tests.hypergradients.registry import ESTIMATORS

estimators = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS.keys())
cases = pytest.mark.parametrize("name", bank.CONFORMANCE)


def call(case, estimator, state=None):
    """Return the result, or skip where the estimator says that the problem is none for it."""
    try:
        return case.call(estimator, state)
    except UnsupportedError as error:
        pytest.skip(f"unsupported: {error}")
    except UnusedMetaParameterError:
        if not case.optimizer_only and case.problem.initial is None:
            raise
        pytest.skip("unsupported: λ is in the optimizer or the initial state alone")


def test_every_exported_estimator_is_under_test():
    assert set(all_estimators().values()) == {type(make()) for make in ESTIMATORS.values()}


@estimators
def test_says_what_it_is(make):
    traits = type(make()).traits
    assert isinstance(traits, Traits)
    assert all(vars(traits).values())
    assert "arXiv" in traits.paper or "doi" in traits.paper


@estimators
@cases
def test_result_has_the_form_of_the_meta_parameters(name, make):
    case = bank.CONFORMANCE[name]()
    result = call(case, make())
    expected = {n: p for n, p in case.problem.meta.named_parameters() if p.requires_grad}
    assert result.gradient.keys() == expected.keys()
    for key, parameter in expected.items():
        gradient = result.gradient[key]
        assert gradient.shape == parameter.shape
        assert gradient.dtype == parameter.dtype
        assert not gradient.requires_grad
    assert result.valid_loss.dim() == 0 and not result.valid_loss.requires_grad
    assert not any(tensor.requires_grad for tensor in result.state.tensors())
    assert result.cost.forward > 0


def snapshot(problem, state):
    """Copy all that a call must leave alone."""
    modules = [problem.model, problem.meta]
    return {
        "parameters": [p.detach().clone() for m in modules for p in m.parameters()],
        "identities": [id(p) for m in modules for p in m.parameters()],
        "buffers": [b.clone() for m in modules for b in m.buffers()],
        "gradients": [p.grad for m in modules for p in m.parameters()],
        "modes": [s.training for m in modules for s in m.modules()],
        "requires_grad": [p.requires_grad for m in modules for p in m.parameters()],
        "versions": [t._version for m in modules for t in [*m.parameters(), *m.buffers()]],
        "state": [t.clone() for t in [*state.tensors(), *state.buffers.values()]],
        "random": torch.get_rng_state(),
    }


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@estimators
@cases
def test_leaves_everything_as_it_was(name, make):
    case = bank.CONFORMANCE[name]()
    state = case.state
    torch.manual_seed(9)
    before = snapshot(case.problem, state)
    call(case, make(), state)
    after = snapshot(case.problem, state)
    for part in before:
        assert equal(before[part], after[part]), f"{part} changed"


@estimators
@cases
def test_gradients_that_a_user_holds_stay(name, make):
    case = bank.CONFORMANCE[name]()
    for parameter in [*case.problem.model.parameters(), *case.problem.meta.parameters()]:
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 7.0)
    call(case, make())
    for parameter in [*case.problem.model.parameters(), *case.problem.meta.parameters()]:
        assert parameter.grad is None or bool((parameter.grad == 7).all())


@estimators
@cases
def test_the_same_state_gives_the_same_result_whatever_the_global_seed(name, make):
    case = bank.CONFORMANCE[name]()
    state = case.state
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(call(case, make(), state))
    for key, gradient in results[0].gradient.items():
        assert torch.equal(gradient, results[1].gradient[key])


@estimators
def test_running_statistics_move_in_real_steps_alone(make):
    case = bank.small_net()
    state = case.state
    result = call(case, make(), state)
    for key, buffer in result.state.buffers.items():
        if result.state.step == state.step:
            assert torch.equal(buffer, state.buffers[key])
        elif "num_batches" in key:
            assert int(buffer) == result.state.step - state.step


@estimators
def test_the_state_is_what_the_inner_learner_reaches(make):
    case = bank.small_net()
    estimator = make()
    state = case.state
    result = call(case, estimator, state)
    expected = state
    taken = result.state.step - state.step
    assert 0 <= taken <= estimator.horizon
    for batch in case.batches(taken):
        expected, _ = case.inner.step(case.problem, expected, case.problem.meta_parameters(), batch)
    for one, other in zip(result.state.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@estimators
def test_a_part_of_meta_that_the_training_loss_ignores_has_its_direct_gradient(make):
    case, estimator = bank.tied(), make()
    if isinstance(estimator, AntitheticEvaluations):
        pytest.skip("evaluations alone put noise into every coordinate")
    gradient = call(case, estimator).gradient
    expected = case.problem.meta.direct.detach().cos()
    torch.testing.assert_close(gradient["direct"], expected, rtol=1e-9, atol=1e-12)
    assert bool((gradient["unused"] == 0).all())
    assert "frozen" not in gradient


@estimators
def test_a_meta_module_that_nothing_depends_on_is_an_error(make):
    case = bank.small_net()
    problem = mt.BilevelProblem(
        case.problem.model, bank.Value(1.0), case.problem.valid_loss, case.problem.valid_loss
    )
    case = bank.Case(problem, case.inner, case.train_batches, case.valid_batch)
    with pytest.raises((UnusedMetaParameterError, UnsupportedError), match=r"value|meta"):
        case.call(make())


@estimators
@pytest.mark.parametrize("where", ["train", "valid"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_losses_are_errors_and_never_zeros(make, where, value):
    case = bank.ridge()
    bad = [tuple(t * value for t in batch) for batch in case.train_batches]
    case = bank.Case(
        case.problem,
        case.inner,
        bad if where == "train" else case.train_batches,
        bad[0] if where == "valid" else case.valid_batch,
    )
    with pytest.raises(NonFiniteError, match=r"not finite|is nan|is inf|NaN"):
        case.call(make())


@estimators
def test_a_non_finite_hypergradient_names_its_parameter(make):
    if isinstance(make(), AntitheticEvaluations):
        pytest.skip("evaluations alone see values, and these are finite")
    case = bank.tied()
    problem = case.problem
    with torch.no_grad():
        problem.meta.direct[0] = -1.0

    def valid_loss(model, meta, batch):
        # The root has an infinite slope at zero, where its value is finite.
        return problem.valid_loss(model, meta, batch) + (meta.direct + 1).sqrt().sum()

    bad = mt.BilevelProblem(problem.model, problem.meta, problem.train_loss, valid_loss)
    with pytest.raises(NonFiniteError, match="direct"):
        call(bank.Case(bad, case.inner, case.train_batches, case.valid_batch), make())


@estimators
@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_points_the_same_way(name, make, dtype):
    case = bank.CONFORMANCE[name]()
    exact = call(case, make())
    low = bank.CONFORMANCE[name]()
    low.problem.model.to(dtype)
    low.problem.meta.to(dtype)

    def cast(tensor):
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    low = bank.Case(
        low.problem,
        low.inner,
        [mt.state.tree_map(cast, batch) for batch in low.train_batches],
        mt.state.tree_map(cast, low.valid_batch),
    )
    result = call(low, make())
    assert all(g.dtype == dtype for g in result.gradient.values())
    if make().traits.kind == "stochastic":
        return  # Noise is drawn anew in each type.
    one = torch.cat([g.flatten() for g in exact.gradient.values()])
    other = torch.cat([g.flatten().double() for g in result.gradient.values()])
    limit = {torch.float32: 1e-3, torch.bfloat16: 0.3}[dtype]
    assert float((one - other).norm()) <= limit * (float(one.norm()) + 1e-2)


@estimators
@pytest.mark.parametrize("name", ["ridge", "learned_rates", "tied", "initialized"])
@pytest.mark.parametrize(
    ("theta", "meta"), [(torch.float32, torch.float64), (torch.float64, torch.float32)]
)
def test_meta_parameters_of_another_type_than_the_model(theta, meta, name, make):
    expected = call(bank.CONFORMANCE[name](), make())
    case = bank.CONFORMANCE[name]()
    case.problem.model.to(theta)
    case.problem.meta.to(meta)

    def cast(tensor):
        return tensor.to(theta) if tensor.is_floating_point() else tensor

    batches = [mt.state.tree_map(cast, batch) for batch in case.train_batches]
    case = bank.Case(case.problem, case.inner, batches, mt.state.tree_map(cast, case.valid_batch))
    result = call(case, make())
    assert all(gradient.dtype == meta for gradient in result.gradient.values())
    assert all(tensor.dtype == theta for tensor in result.state.tensors())
    if make().traits.kind == "stochastic":
        return  # Noise is drawn anew in each type.
    one = torch.cat([g.flatten() for g in expected.gradient.values()])
    other = torch.cat([g.flatten().double() for g in result.gradient.values()])
    assert float((one - other).norm()) <= 1e-3 * (float(one.norm()) + 1e-2)


@estimators
def test_masks_are_those_of_the_inner_steps(make):
    try:
        check_draws(make)
    except UnsupportedError as error:
        pytest.skip(f"unsupported: {error}")


@estimators
def test_memory_does_not_grow(make):
    pairs = []
    for build in bank.CONFORMANCE.values():
        case, estimator = build(), make()
        with contextlib.suppress(UnsupportedError, UnusedMetaParameterError):
            case.call(estimator)
            pairs.append((case, estimator, case.state))
    assert pairs
    counts = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            for case, estimator, state in pairs:
                for _ in range(3):
                    case.call(estimator, state)
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[1] == counts[2]


@estimators
def test_batches_must_be_as_many_as_the_horizon(make):
    case = bank.ridge()
    estimator = make()
    for given in ([], case.train_batches * (estimator.horizon + 1), case.train_batches[0][0]):
        with pytest.raises(ConfigurationError, match="train_batches is"):
            estimator(case.problem, case.inner, case.state, given, case.valid_batch)


@estimators
def test_a_wrong_batch_shape_tells_the_shapes(make):
    case = bank.small_net()
    inputs, targets = case.train_batches[0]
    bad = bank.Case(case.problem, case.inner, [(inputs[:, :4], targets)], case.valid_batch)
    with pytest.raises(RuntimeError) as caught:
        bad.call(make())
    told = "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "(10, 4) float64" in told and "train_loss" in told


@estimators
def test_can_be_copied_and_pickled(make):
    estimator = make()
    case = bank.ridge()
    expected = call(case, make()).gradient["value"]
    assert torch.equal(call(case, copy.deepcopy(estimator)).gradient["value"], expected)
    again = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(call(case, again).gradient["value"], expected)


@estimators
def test_training_goes_on_bitwise_from_a_checkpoint(make, tmp_path):
    def train(steps, resume=False):
        case = bank.small_net()
        trainer = mt.MetaTrainer(
            case.problem,
            case.inner,
            make(),
            torch.optim.Adam(case.problem.meta.parameters(), lr=0.01),
        )
        try:
            trainer.fit(
                case.train_batches,
                [case.valid_batch],
                steps,
                checkpoint=tmp_path / "c.pt",
                resume=resume,
                progress=False,
            )
        except UnsupportedError as error:
            pytest.skip(f"unsupported: {error}")
        return [*case.problem.model.state_dict().values(), *case.problem.meta.parameters()]

    whole = train(6)
    train(3)
    resumed = train(6, resume=True)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
