"""EvoGrad against hand-computed values, autograd through the softmax, and its invariances."""

import inspect
import itertools
import math

import pytest
import torch

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, NonFiniteError, UnusedMetaParameterError
from metatoolkit.hypergradients import EvoGrad
from metatoolkit.randomness import fold_in, seeded
from tests import bank
from tests.draws import recorded

F64 = torch.float64


def fixed_noise(values):
    """Noise for problems with one 0-d parameter."""
    return lambda copy, name, parameter: parameter.new_tensor(values[copy])


@pytest.mark.parametrize(
    ("noise", "temperature", "expected"),
    [
        ((1.0, -1.0), 0.5, -0.0710190567),
        ((0.5, -1.0, 2.0), 0.5, -0.0083573891),
        ((0.5, -1.0, 2.0), 1e6, -1.4399966e-6),
    ],
)
@pytest.mark.parametrize("streamed", [None, True, False])
def test_hand_computed_values(noise, temperature, expected, streamed):
    estimator = EvoGrad(len(noise), 1.0, temperature, noise=fixed_noise(noise), streamed=streamed)
    result = bank.illustration().call(estimator)
    assert float(result.gradient["value"]) == pytest.approx(expected, abs=0, rel=2e-9)


def test_hand_computed_weights():
    result = bank.illustration().call(EvoGrad(2, 1.0, 0.5, noise=fixed_noise((1.0, -1.0))))
    expected = torch.tensor([0.9904346813, 0.0095653187], dtype=F64)
    torch.testing.assert_close(result.details["weights"], expected, atol=1e-10, rtol=0)
    offspring = 0.3 + float(expected[0] - expected[1])
    assert float(result.valid_loss) == pytest.approx((offspring - 0.5) ** 2, rel=1e-9)


@pytest.mark.parametrize("copies", [2, 3, 5, 7])
def test_identical_copies_give_exactly_zero(copies):
    estimator = EvoGrad(copies, 0.7, 0.3, noise=fixed_noise([1.1] * copies))
    assert float(bank.illustration().call(estimator).gradient["value"]) == 0.0


def autograd_evograd(case, state, copies, sigma, temperature, seed=0):
    """EvoGrad as the paper states it: one graph through the copies' losses and the softmax."""
    problem = case.problem
    estimator = EvoGrad(copies, sigma, temperature, seed=seed)
    noise = [dict(estimator._generation(state).perturbations(copy)) for copy in range(copies)]
    meta = {
        name: p.detach().clone().requires_grad_() for name, p in problem.meta_parameters().items()
    }
    candidates = [
        {name: p + sigma * noise[k][name] for name, p in state.parameters.items()}
        for k in range(copies)
    ]

    def run(loss, parameters, key):
        tensors = {f"model.{name}": p for name, p in parameters.items()}
        tensors |= {f"meta.{name}": p for name, p in meta.items()}
        tensors |= {name: b.clone() for name, b in state.buffers.items()}

        class Both(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model, self.meta = problem.model, problem.meta

            def forward(self, batch):
                return loss(self.model, self.meta, batch)

        batch = case.valid_batch if loss is problem.valid_loss else case.train_batches[0]
        with seeded(key):
            return torch.func.functional_call(Both(), tensors, (batch,))

    key = fold_in(state.key, state.step)
    losses = torch.stack([run(problem.train_loss, theta, key) for theta in candidates])
    losses.retain_grad()
    weights = torch.softmax(-losses / temperature, 0)
    offspring = {
        name: sum(w * theta[name] for w, theta in zip(weights, candidates, strict=True))
        for name in state.parameters
    }
    valid = run(problem.valid_loss, offspring, fold_in(state.key, state.step, -1))
    valid.backward()
    gradient = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in meta.items()}
    return gradient, losses.grad, valid.detach()


@pytest.mark.parametrize("copies", [2, 5])
@pytest.mark.parametrize("name", ["ridge", "small_net", "inside_model", "tied"])
def test_streamed_and_kept_graphs_equal_autograd(name, copies):
    case = bank.CASES[name]()
    state, _ = case.inner.step(
        case.problem, case.state, case.problem.meta_parameters(), case.train_batches[0]
    )
    expected, coefficients, valid = autograd_evograd(case, state, copies, 0.1, 0.5)
    for streamed in (True, False, None):
        result = case.call(EvoGrad(copies, 0.1, 0.5, streamed=streamed), state)
        for key, gradient in result.gradient.items():
            scale = max(float(expected[key].norm()), 1e-12)
            assert float((gradient - expected[key]).norm()) < 1e-10 * scale
        torch.testing.assert_close(result.valid_loss, valid, rtol=1e-12, atol=0)
        given = result.details["coefficients"]
        torch.testing.assert_close(given, coefficients, rtol=1e-9, atol=1e-14)
        assert abs(float(given.sum())) < 1e-12 * float(given.abs().sum())


def variant(case, transform):
    """The case with its training loss changed."""
    problem = case.problem
    changed = mt.BilevelProblem(
        problem.model,
        problem.meta,
        lambda model, meta, batch: transform(problem.train_loss(model, meta, batch), meta),
        problem.valid_loss,
    )
    return bank.Case(changed, case.inner, case.train_batches, case.valid_batch)


def test_constant_in_the_losses_changes_nothing():
    case = bank.small_net()
    plain = case.call(EvoGrad(4, 0.1, 0.5)).gradient
    shifted = variant(case, lambda loss, meta: loss + 3.0).call(EvoGrad(4, 0.1, 0.5)).gradient
    for name in plain:
        torch.testing.assert_close(plain[name], shifted[name], rtol=1e-10, atol=1e-17)


def test_order_of_the_copies_does_not_matter():
    values = [0.5, -1.0, 2.0, 0.1]
    gradients = [
        bank.illustration().call(EvoGrad(4, 1.0, 0.5, noise=fixed_noise(order))).gradient["value"]
        for order in itertools.permutations(values)
    ]
    torch.testing.assert_close(torch.stack(gradients), gradients[0].expand(24), rtol=1e-10, atol=0)


def test_zero_where_the_dependence_on_meta_is_the_same_for_all_copies():
    case = bank.ridge()
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: model.value.square().sum() + meta.value.exp().sum(),
        case.problem.valid_loss,
    )
    case = bank.Case(problem, case.inner, case.train_batches, case.valid_batch)
    result = case.call(EvoGrad(3, 0.5, 0.5))
    assert float(result.details["coefficients"].abs().max()) > 1e-2
    assert float(result.gradient["value"].abs().max()) < 1e-15


def gauss_hermite(copies):
    """Nodes and weights of a rule that is exact for the second moments of K normal numbers."""
    if copies == 2:
        nodes = [(-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6)]
        for (a, p), (b, q) in itertools.product(nodes, nodes):
            yield (a, b), p * q
        return
    radius = math.sqrt(copies)
    for axis, sign in itertools.product(range(copies), (-1, 1)):
        yield tuple(sign * radius * (i == axis) for i in range(copies)), 1 / (2 * copies)


def signs(copies):
    """All outcomes of sign noise, those with equally many minus signs only once."""
    for minus in range(copies + 1):
        values = (-1.0,) * minus + (1.0,) * (copies - minus)
        yield values, math.comb(copies, minus) / 2**copies


@pytest.mark.parametrize("outcomes", [signs, gauss_hermite])
@pytest.mark.parametrize("copies", [2, 10])
@pytest.mark.parametrize(("sigma", "temperature"), [(1e-2, 0.5), (1e-3, 0.05)])
def test_mean_at_small_sigma_is_the_one_step_hypergradient(outcomes, copies, sigma, temperature):
    # With η = 1 the one-step hypergradient is −(2x)(2(x − ½)) = 0.24 at x = 0.3.
    mean = 0.0
    for values, probability in outcomes(copies):
        estimator = EvoGrad(copies, sigma, temperature, noise=fixed_noise(values), rescale=1.0)
        mean += probability * float(bank.illustration().call(estimator).gradient["value"])
    assert mean == pytest.approx(0.24, abs=1e-3)


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
@pytest.mark.parametrize("copies", [2, 10])
def test_mean_over_its_own_noise(noise, copies):
    case = bank.illustration()
    state = case.state
    draws = torch.stack(
        [
            case.call(
                EvoGrad(copies, 1e-2, 0.5, noise=noise, rescale=0.5, seed=seed), state
            ).gradient["value"]
            for seed in range(400)
        ]
    )
    error = abs(float(draws.mean()) - 0.5 * 0.24)
    assert error < 3.5 * float(draws.std()) / math.sqrt(len(draws))
    assert float(draws.std()) < 0.3


def test_half_of_the_sign_draws_of_two_copies_are_exactly_zero():
    case = bank.illustration()
    state = case.state
    draws = [
        float(case.call(EvoGrad(2, 1.0, 0.5, seed=seed), state).gradient["value"])
        for seed in range(400)
    ]
    zeros = sum(draw == 0 for draw in draws)
    assert 160 <= zeros <= 240
    # The others are the one value at ε = (1, −1), whichever copy comes first.
    assert all(draw == 0 or draw == pytest.approx(-0.0710190567, rel=1e-8) for draw in draws)


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
def test_noise_is_standard_and_independent(noise):
    model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 100))
    problem = mt.BilevelProblem(model, bank.Value(0.0), lambda *_: None, lambda *_: None)
    inner = mt.inner.SGD(lr=0.1)
    state = inner.init(problem)
    later = inner.init(problem, seed=1)
    draws = []
    for estimator in (EvoGrad(noise=noise), EvoGrad(noise=noise, seed=1)):
        for where in (state, later):
            for copy in range(2):
                generation = estimator._generation(where)
                parts = [e.flatten() for _, e in generation.perturbations(copy)]
                draws.append(torch.cat(parts).double())
    matrix = torch.stack(draws)
    size = matrix.shape[1]
    second = matrix @ matrix.T / size
    assert float(matrix.mean(1).abs().max()) < 5 / math.sqrt(size)
    torch.testing.assert_close(
        second, torch.eye(len(draws), dtype=F64), atol=8 / math.sqrt(size), rtol=0
    )
    assert bool((matrix.abs() == 1).all()) == (noise == "sign")


def test_perturb_moves_only_what_it_names():
    case = bank.small_net()
    estimator = EvoGrad(2, 0.1, 0.5, perturb=["4.*"])
    names = {name for name, _ in estimator._generation(case.state).perturbations(0)}
    assert names == {"4.weight", "4.bias"}
    both = EvoGrad(2, 0.1, 0.5, perturb=["0.*", "*.bias"])._generation(case.state).names
    assert list(both) == ["0.weight", "0.bias", "1.bias", "4.bias"]
    everything = case.call(EvoGrad(2, 0.1, 0.5)).gradient
    some = case.call(estimator).gradient
    assert not torch.equal(some["layers.0.weight"], everything["layers.0.weight"])
    with pytest.raises(ConfigurationError, match=r"'head\.\*' matches no inner parameter"):
        case.call(EvoGrad(perturb=["head.*"]))


def test_rescale_multiplies_the_estimate():
    case = bank.ridge()
    plain, rescaled = EvoGrad(3, 1e-2, 0.5), EvoGrad(3, 1e-2, 0.5, rescale=0.1)
    assert plain.learning_rate == pytest.approx(1e-4 * 2 / 1.5)
    assert rescaled.learning_rate == 0.1
    expected = case.call(plain).gradient["value"] * (0.1 / plain.learning_rate)
    error = case.call(rescaled).gradient["value"] - expected
    assert float(error.norm()) < 1e-12 * float(expected.norm())


def test_rescale_leaves_the_direct_gradient_alone():
    case = bank.tied()
    direct = case.problem.meta.direct.detach().cos()
    for rescale in (None, 7.0):
        gradient = case.call(EvoGrad(2, 0.1, 0.5, rescale=rescale)).gradient
        torch.testing.assert_close(gradient["direct"], direct)


def test_dropout_masks_are_common_to_the_copies():
    case = bank.small_net()
    same = {"noise": lambda copy, name, parameter: torch.zeros_like(parameter)}
    common = case.call(EvoGrad(3, 0.1, 0.5, **same)).details["train_losses"]
    assert torch.equal(common, common[:1].expand(3))
    independent = case.call(EvoGrad(3, 0.1, 0.5, common_random_numbers=False, **same))
    assert len(set(independent.details["train_losses"].tolist())) == 3


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, factor):
        ctx.save_for_backward(inputs, factor)
        return inputs * factor

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative here")
        inputs, factor = ctx.saved_tensors
        return gradient * factor, gradient * inputs


@pytest.mark.parametrize("streamed", [True, False])
def test_needs_no_second_derivative(streamed):
    case = bank.ridge()
    hard = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: OnceDifferentiable.apply(
            model.value.square(), meta.value.exp()
        ).sum(),
        lambda model, meta, batch: OnceDifferentiable.apply(model.value, model.value).sum(),
    )
    easy = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: (model.value.square() * meta.value.exp()).sum(),
        lambda model, meta, batch: model.value.square().sum(),
    )
    estimator = EvoGrad(3, 0.1, 0.5, streamed=streamed, fresh=False)
    gradients = [
        bank.Case(problem, case.inner, [None], None).call(estimator).gradient["value"]
        for problem in (hard, easy)
    ]
    torch.testing.assert_close(*gradients)
    with pytest.raises(RuntimeError, match="no second derivative"):
        bank.Case(hard, case.inner, [None], None).call(mt.hypergradients.Unrolled())


def test_no_graph_is_asked_for(monkeypatch):
    real, asked = torch.autograd.grad, []

    def grad(*args, **kwargs):
        asked.append(kwargs.get("create_graph", False))
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    result = bank.inside_model().call(EvoGrad(2, 0.1, 0.5))
    assert asked and not any(asked)
    assert not any(gradient.requires_grad for gradient in result.gradient.values())


def test_meta_in_the_optimizer_alone_is_an_error():
    with pytest.raises(UnusedMetaParameterError, match="lr"):
        bank.learned_rates().call(EvoGrad())


@pytest.mark.parametrize(
    "arguments",
    [
        {"candidates": 1},
        {"candidates": 2.5},
        {"sigma": 0.0},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"noise": "uniform"},
        {"rescale": 0.0},
        {"perturb": "head"},
    ],
)
def test_arguments_out_of_range(arguments):
    (name,) = arguments
    with pytest.raises(ConfigurationError, match=name):
        EvoGrad(**arguments)


def test_a_call_by_hand_at_a_later_step():
    case = recorded()
    first, meta = case.state, case.problem.meta_parameters()
    state, _ = case.inner.step(case.problem, first, meta, 1.0)
    noise, sigma, temperature, batch = (0.5, -1.0, 2.0), 0.5, 0.25, 3.0
    theta, rate, points = float(state.parameters["value"]), -0.4, []
    for epsilon in noise:
        points.append(theta + sigma * epsilon)
    losses = [x * x / 2 + batch * rate * x for x in points]
    total = sum(math.exp(-loss / temperature) for loss in losses)
    weights = [math.exp(-loss / temperature) / total for loss in losses]
    offspring = sum(w * x for w, x in zip(weights, points, strict=True))
    outer = offspring - 0.25
    pairs = zip(weights, points, strict=True)
    expected = sum(-w / temperature * outer * (x - offspring) * batch * x for w, x in pairs)
    for streamed, passes in ((True, 7), (False, 4)):
        for rescale in (None, 0.3):
            estimator = EvoGrad(
                3, sigma, temperature, fixed_noise(noise), streamed=streamed, rescale=rescale
            )
            own = sigma**2 * 2 / (3 * temperature)
            factor = 1.0 if rescale is None else rescale / own
            result = estimator(case.problem, case.inner, state, [batch], 0.25)
            assert float(result.gradient["value"]) == pytest.approx(factor * expected, rel=1e-12)
            assert float(result.valid_loss) == pytest.approx(outer**2 / 2, rel=1e-12)
            assert result.details["weights"].tolist() == pytest.approx(weights, rel=1e-12)
            assert result.details["train_losses"].tolist() == pytest.approx(losses, rel=1e-12)
            assert (result.cost.forward, result.cost.backward) == (passes, 4)
            value = estimator.objective(
                case.problem, case.inner, state, [batch], 0.25, case.problem.meta_leaves()
            )
            assert float(value) == pytest.approx(outer**2 / 2, rel=1e-12)
            assert not value.requires_grad


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
def test_directions_are_drawn_anew_at_every_step(noise):
    case = bank.quadratic(size=12)
    state, rows = case.state, []
    for _ in range(6):
        gradient = case.call(EvoGrad(4, 0.1, 0.5, noise=noise), state).gradient["value"]
        rows.append(gradient / gradient.norm())
        state, _ = case.inner.step(
            case.problem, state, case.problem.meta_parameters(), case.train_batches[0]
        )
    assert float(torch.linalg.svdvals(torch.stack(rows))[1]) > 0.1


def test_losses_are_weighted_in_single_precision_at_least():
    case = bank.ridge()
    case.problem.model.bfloat16()
    case.problem.meta.bfloat16()
    low = [tuple(t.bfloat16() for t in b) for b in (*case.train_batches, case.valid_batch)]
    case = bank.Case(case.problem, case.inner, low[:1], low[1])
    result = case.call(EvoGrad(4, 0.1, 0.5))
    assert result.details["weights"].dtype == torch.float32
    assert float(result.details["weights"].sum()) == pytest.approx(1.0, abs=1e-6)
    assert result.gradient["value"].dtype == torch.bfloat16


def test_a_perturbed_copy_that_is_not_finite_is_named():
    case = bank.illustration()
    problem = mt.BilevelProblem(
        case.problem.model,
        case.problem.meta,
        lambda model, meta, batch: meta.value * (model.value - 0.2).sqrt(),
        case.problem.valid_loss,
    )
    case = bank.Case(problem, case.inner, [None], None)
    estimator = EvoGrad(2, 1.0, 0.5, noise=fixed_noise((1.0, -1.0)))
    with pytest.raises(NonFiniteError, match="the training loss of a perturbed copy"):
        case.call(estimator)


@pytest.mark.parametrize("arguments", [{"candidates": 3}, {"noise": "gaussian"}])
def test_guided_takes_no_argument_of_the_random_copies(arguments):
    with pytest.raises(ConfigurationError, match="guided=True with candidates="):
        EvoGrad(guided=True, **arguments)


def test_guided_needs_common_masks_and_a_prefix_does_too():
    with pytest.raises(ConfigurationError, match="common_random_numbers=False"):
        EvoGrad(guided=True, common_random_numbers=False)
    with pytest.raises(ConfigurationError, match="prefix with common_random_numbers=False"):
        EvoGrad(prefix=lambda model, meta, batch: batch, common_random_numbers=False)
    with pytest.raises(ConfigurationError, match="prefix is 'encoder'"):
        EvoGrad(prefix="encoder")
    for value in (True, "2", 2.0):
        with pytest.raises(ConfigurationError, match="candidates is"):
            EvoGrad(candidates=value)
    assert EvoGrad(noise=fixed_noise((0, 1)), prefix=lambda *_: None).learning_rate > 0


def test_learning_rates_and_traits():
    # The paper's values: K = 2, σ = 1e-3, τ = 0.05.
    assert EvoGrad().learning_rate == pytest.approx(1e-5)
    assert (EvoGrad().candidates, EvoGrad().temperature) == (2, 0.05)
    assert EvoGrad(3, 0.1, 0.5).learning_rate == pytest.approx(0.01 * 2 / 1.5)
    assert EvoGrad(2, 0.1, 0.5, guided=True).learning_rate == pytest.approx(0.02)
    assert EvoGrad(2, 0.1, 0.5, guided=True, rescale=3.0).learning_rate == 3.0
    assert EvoGrad().traits.kind == "stochastic"
    assert EvoGrad(guided=True).traits.kind == "approximate"


def test_what_is_left_out_has_the_values_that_are_told():
    given = inspect.signature(EvoGrad).parameters
    assert {name: parameter.default for name, parameter in given.items()} == {
        **{"candidates": 2, "sigma": 1e-3, "temperature": 0.05, "noise": "sign"},
        **dict.fromkeys(("rescale", "perturb", "streamed", "prefix")),
        **{"common_random_numbers": True, "seed": 0, "guided": False, "fresh": True},
    }


def test_the_guided_variant_tells_its_own_cost_and_error():
    plain, guided = (vars(EvoGrad(guided=guided).traits) for guided in (False, True))
    changed = {name: words for name, words in guided.items() if words != plain[name]}
    assert changed == {
        "kind": "approximate",
        "computes": "for small σ, derivative through one SGD step, at the θ before it",
        "passes": "5 F to 9 F",
    }
    assert plain["passes"] == "(K+3) F to (3K+3) F" and EvoGrad.traits.kind == "stochastic"


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
@pytest.mark.parametrize("options", [{}, {"streamed": True}, {"common_random_numbers": False}])
def test_perturbations_that_rounding_swallows_are_an_error(options, noise):
    def case_of(dtype):
        model = torch.nn.ParameterDict({"large": torch.full((3,), 64.0), "none": torch.zeros(0)})
        problem = mt.BilevelProblem(
            model.to(dtype),
            bank.Value(0.4).to(dtype),
            lambda model, meta, batch: meta.value * model["large"].square().sum(),
            lambda model, meta, batch: model["large"].sum(),
        )
        return bank.Case(problem, mt.inner.SGD(lr=0.1), [None], None)

    make = lambda sigma: EvoGrad(4, sigma, 50.0, noise=noise, **options)  # noqa: E731
    with pytest.raises(ConfigurationError, match=r"sigma is 0\.001.*of bfloat16.*raise sigma"):
        case_of(torch.bfloat16).call(make(1e-3))
    assert float(case_of(torch.bfloat16).call(make(4.0)).gradient["value"]) != 0
    assert float(case_of(torch.float32).call(make(1e-3)).gradient["value"]) != 0


@pytest.mark.parametrize("common", [True, False])
def test_copies_with_equal_losses_may_differ(common):
    # One parameter is lost and the other is not; the training loss sees neither.
    model = torch.nn.ParameterDict({"large": torch.full((3,), 1e9), "small": torch.zeros(())})
    problem = mt.BilevelProblem(
        model,
        bank.Value(0.4).float(),
        lambda model, meta, batch: meta.value.square() + 0 * model["small"],
        lambda model, meta, batch: model["small"] + meta.value,
    )
    case = bank.Case(problem, mt.inner.SGD(lr=0.1), [None], None)
    result = case.call(EvoGrad(3, 0.1, 0.5, common_random_numbers=common))
    assert float(result.gradient["value"]) == pytest.approx(1.0)
