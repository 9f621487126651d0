"""Meta-gradients of the algorithms are those of learn2learn and of torch.func by hand."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops
from metatoolkit.errors import ConfigurationError, UnknownNameError, UnsupportedError
from tests.training.across_tasks import TASKS, largest_difference, listed, sinusoids, squared_error

LR, STEPS = 0.05, 3
LAST = {"2.weight", "2.bias"}
# What class means are for is in test_protonet.py.
REGRESSION = sorted(set(mt.algorithms.algorithms) - {"protonet"})
WAYS = [
    pytest.param("loop", id="loop"),
    pytest.param("vmap", id="vmap"),
    pytest.param(mt.TaskBatching("vmap", chunk=3), id="chunks"),
]
ALGORITHMS = {
    "maml": ("maml", {}),
    "fomaml": ("fomaml", {}),
    "anil": ("anil", {}),
    "boil": ("boil", {}),
    "meta_sgd": ("meta_sgd", {}),
    "per tensor": ("meta_sgd", {"per": "tensor"}),
    "lslr": ("meta_sgd", {"per": "layer", "per_step": True}),
    "coordinate and step": ("meta_sgd", {"per_step": True}),
    "maml++": ("maml++", {}),
    "maml++, annealed": ("maml++", {"progress": 0.7}),
}


def network(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 6), *middle, nn.Tanh(), nn.Linear(6, 1)).double()


def build(name, model=None, **options):
    model = network() if model is None else model
    built = mt.algorithms.build(
        name, model, squared_error, squared_error, lr=LR, steps=STEPS, **options
    )
    return perturbed(built)


def perturbed(algorithm):
    """Let no two learned rates be equal, so that one in the place of another shows."""
    if "rates" in algorithm.meta:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for rate in filter(lambda p: p.requires_grad, algorithm.meta["rates"].parameters()):
                rate.mul_(1 + torch.rand(rate.shape, generator=generator, dtype=rate.dtype))
    return algorithm


def gradient_of(algorithm, way="loop", batch=None):
    batch = sinusoids() if batch is None else batch
    parts = (algorithm.problem, algorithm.inner, algorithm.estimator)
    return mt.over_tasks(*parts, batch, way).gradient


def by_hand(algorithm, batch, adapted=None, first_order=False):
    """The mean gradient over tasks of a whole inner loop in torch.func, in all of λ at once."""
    meta = {name: tensor.detach() for name, tensor in algorithm.meta.named_parameters()}
    model = algorithm.problem.model
    names = [name for name, _ in model.named_parameters()]
    adapted = set(names) if adapted is None else adapted

    def rate(meta, name, step):
        if "rates" not in algorithm.meta:
            return LR
        per_layer = f"rates.{name.split('.')[0]}.rate"
        value = meta[per_layer] if per_layer in meta else meta[f"rates.{name}"]
        return value if algorithm.meta["rates"].steps is None else value[step]

    def loss(parameters, inputs, targets):
        return (functional_call(model, parameters, (inputs,)) - targets).square().mean()

    weights = getattr(algorithm.estimator, "step_weights", None) or [0] * (STEPS - 1) + [1]

    def outer(meta, support, query):
        total = 0.0
        own = {n: meta[f"initialization.{n}"] for n in names if n in adapted}
        common = {n: meta[f"shared.{n}"] for n in names if n not in adapted}
        for step in range(STEPS):
            slopes = grad(lambda moved: loss({**moved, **common}, *support))(own)
            if first_order:
                slopes = {n: slope.detach() for n, slope in slopes.items()}
            own = {n: p - rate(meta, n, step) * slopes[n] for n, p in own.items()}
            total = total + weights[step] * loss({**own, **common}, *query)
        return total

    each = [grad(outer)(meta, support, query) for support, query in listed(batch)]
    return {name: torch.stack([one[name] for one in each]).mean(0) for name in meta}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label", sorted(ALGORITHMS))
def test_the_meta_gradient_is_that_of_torch_func_by_hand(label, way):
    name, options = ALGORITHMS[label]
    algorithm, batch = build(name, **options), sinusoids()
    adapted = {"anil": LAST, "boil": {"0.weight", "0.bias"}}.get(name)
    expected = by_hand(algorithm, batch, adapted, first_order=name == "fomaml")
    assert min(float(part.abs().max()) for part in expected.values()) > 1e-3
    assert largest_difference(gradient_of(algorithm, way, batch), expected) < 1e-12


def learn2learn_gradient(wrapped, parameters, outputs, batch):
    """The mean gradient over tasks by learn2learn's own clone and adapt."""
    for (inputs, targets), (query_inputs, query_targets) in listed(batch):
        learner = wrapped.clone()
        for _ in range(STEPS):
            learner.adapt((outputs(learner, inputs) - targets).square().mean())
        loss = (outputs(learner, query_inputs) - query_targets).square().mean()
        (loss / TASKS).backward()
    return {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "meta_sgd"])
def test_the_meta_gradient_is_that_of_learn2learn(name, way):
    l2l = pytest.importorskip("learn2learn")
    algorithm, model, batch = build(name), network(), sinusoids()
    values = dict(model.named_parameters())
    parameters = {f"initialization.{n}": p for n, p in values.items()}
    call = lambda learner, inputs: learner(inputs)  # noqa: E731
    if name == "meta_sgd":
        wrapped = l2l.algorithms.MetaSGD(model, lr=LR)
        rates = dict(zip(values, wrapped.lrs, strict=True))
        with torch.no_grad():
            for key, rate in rates.items():
                rate.copy_(algorithm.meta["rates"].at(0)[key])
        parameters |= {f"rates.{key}": rate for key, rate in rates.items()}
    elif name == "anil":
        body, wrapped = model[:2], l2l.algorithms.MAML(model[2], lr=LR)
        parameters = {
            f"{'initialization' if n in LAST else 'shared'}.{n}": p for n, p in values.items()
        }
        call = lambda learner, inputs: learner(body(inputs))  # noqa: E731
    else:
        wrapped = l2l.algorithms.MAML(model, lr=LR, first_order=name == "fomaml")
    expected = learn2learn_gradient(wrapped, parameters, call, batch)
    assert largest_difference(gradient_of(algorithm, way, batch), expected) < 1e-12


def test_reptile_is_the_mean_way_back_from_where_inner_steps_lead():
    algorithm, batch = build("reptile"), sinusoids()
    start = dict(algorithm.meta["initialization"].named_parameters())
    ends = []
    for support, _ in listed(batch):
        state = algorithm.inner.init(algorithm.problem)
        for _ in range(STEPS):
            meta = algorithm.problem.meta_parameters()
            state, _ = algorithm.inner.step(algorithm.problem, state, meta, support)
        ends.append(state.parameters)
    expected = {
        f"initialization.{n}": (p - torch.stack([end[n] for end in ends]).mean(0)).detach()
        for n, p in start.items()
    }
    for way in ("loop", "vmap"):
        assert largest_difference(gradient_of(algorithm, way, batch), expected) < 1e-12


@pytest.mark.parametrize("name", REGRESSION)
def test_buffers_of_the_meta_model_do_not_move_where_learn2learns_do(name):
    model = network(nn.BatchNorm1d(6).double())
    before = {n: buffer.clone() for n, buffer in model.named_buffers()}
    gradient_of(build(name, model))
    assert before and all(torch.equal(before[n], b) for n, b in model.named_buffers())


def test_buffers_of_learn2learns_meta_model_move():
    l2l = pytest.importorskip("learn2learn")
    model = network(nn.BatchNorm1d(6).double())
    before = model[1].running_mean.clone()
    learner = l2l.algorithms.MAML(model, lr=LR).clone()
    (inputs, targets), _ = listed(sinusoids())[0]
    learner.adapt((learner(inputs) - targets).square().mean())
    assert not torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize("name", REGRESSION)
def test_each_learns_with_the_trainer(name):
    # So few steps end where the Hessian is indefinite without a strong pull.
    algorithm = build(name, **({"strength": 20.0} if name == "imaml" else {}))
    before = {n: p.detach().clone() for n, p in algorithm.meta.named_parameters()}
    optimizer = torch.optim.Adam(algorithm.meta.parameters(), lr=0.01)
    trainer = mt.MetaTrainer(
        algorithm.problem,
        algorithm.inner,
        algorithm.estimator,
        meta_optimizer=optimizer,
        tasks=mt.TaskBatching("loop"),
    )
    parts = (algorithm.problem, algorithm.inner, algorithm.estimator, sinusoids(seed=5))
    first = float(mt.over_tasks(*parts).valid_loss)
    trainer.fit([sinusoids(seed=5)], steps=30, progress=False)
    assert float(mt.over_tasks(*parts).valid_loss) < first
    learned = algorithm.problem.meta_parameters()
    assert learned and all(not torch.equal(p, before[n]) for n, p in learned.items())
    # The shared parameters are the model's own, and the others are loaded into it.
    values = dict(algorithm.problem.model.named_parameters())
    assert torch.equal(values["2.weight"], _learned(algorithm, "2.weight"))


def _learned(algorithm, name):
    for part in ("initialization", "shared"):
        if part in algorithm.meta and name in dict(algorithm.meta[part].named_parameters()):
            return algorithm.meta[part].get_parameter(name)
    raise AssertionError(name)


@pytest.mark.parametrize("learn_strength", [False, True])
def test_imaml_in_closed_form(learn_strength):
    torch.manual_seed(0)
    model, strength = nn.Linear(2, 1, bias=False).double(), 0.7
    algorithm = mt.algorithms.build(
        *("imaml", model, squared_error, squared_error),
        lr=0.1,
        steps=500,
        strength=strength,
        learn_strength=learn_strength,
    )
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (
        torch.randn(3, 8, size, generator=generator, dtype=torch.float64) for size in (2, 1)
    )
    tasks = [((x[:5], y[:5]), (x[5:], y[5:])) for x, y in zip(inputs, targets, strict=True)]
    start, eye = model.weight.detach()[0], torch.eye(2, dtype=torch.float64)
    expected, expected_strength = [], []
    for (x, y), (query_x, query_y) in tasks:
        matrix = 2 * x.T @ x / 5 + strength * eye
        optimum = torch.linalg.solve(matrix, 2 * x.T @ y[:, 0] / 5 + strength * start)
        outer = 2 * query_x.T @ (query_x @ optimum - query_y[:, 0]) / 3
        solved = torch.linalg.solve(matrix, outer)
        expected.append(strength * solved)
        # The parameter is the logarithm of the strength.
        expected_strength.append(strength * solved @ (start - optimum))
    found = gradient_of(algorithm, batch=tasks)
    mean = torch.stack(expected).mean(0)
    torch.testing.assert_close(found["initialization.weight"][0], mean, rtol=1e-6, atol=1e-9)
    assert ("proximal.log_strength" in found) == learn_strength
    if learn_strength:
        mean = torch.stack(expected_strength).mean().to(torch.float32)
        torch.testing.assert_close(found["proximal.log_strength"], mean, rtol=1e-5, atol=1e-7)


def test_imaml_says_where_the_hessian_is_indefinite_and_takes_another_solver():
    with pytest.raises(UnsupportedError, match="curvature"):
        gradient_of(build("imaml"))
    found = gradient_of(build("imaml", solver={"name": "MINRES", "iterations": 30}))
    assert float(found["initialization.0.weight"].abs().max()) > 0


def test_weights_of_multi_step_losses_move_to_the_last_step():
    weights = mt.algorithms.multi_step_weights
    assert weights(4, 0.0) == [0.25] * 4
    assert weights(4, 0.5) == [0.125] * 3 + [0.625]
    assert weights(1, 1.0) == [1.0]
    assert weights(4, 1.0) == pytest.approx([0.0075] * 3 + [0.9775])
    for steps, progress in ((0, 0.0), (4, -0.1), (4, 1.1)):
        with pytest.raises(ConfigurationError, match="is needed"):
            weights(steps, progress)


def test_inner_steps_of_anil_take_no_gradient_in_the_body():
    def operations(name):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 1))
        algorithm, (task,) = build(name, model.double()), listed(sinusoids(1))
        return count_flops(lambda: gradient_of(algorithm, batch=[task]))

    assert operations("anil") < 0.6 * operations("maml")


@pytest.mark.parametrize("name", ["FirstOrder", "Reptile"])
def test_first_order_estimators_refuse_rates_which_act_within_the_steps(name):
    algorithm, estimator = build("meta_sgd"), mt.hypergradients.build(name, steps=2)
    with pytest.raises(UnsupportedError, match=r"rates\.0\.weight.*act where"):
        mt.over_tasks(algorithm.problem, algorithm.inner, estimator, sinusoids())


def test_the_head_may_be_named():
    algorithm = build("anil", head=["0.*"])
    assert algorithm.problem.parameter_names == ["0.weight", "0.bias"]
    assert build("boil").problem.parameter_names == ["0.weight", "0.bias"]
    assert build("anil").problem.parameter_names == ["2.weight", "2.bias"]


def test_arguments():
    with pytest.raises(UnknownNameError, match=r"algorithm 'malm'.*'maml'"):
        build("malm")
    with pytest.raises(UnknownNameError, match="option of algorithm 'maml': 'head'"):
        build("maml", head=["0.*"])
    with pytest.raises(ConfigurationError, match=r"head: '7\.\*' matches no parameter"):
        build("anil", head=["7.*"])
    with pytest.raises(ConfigurationError, match="4 are adapted and 0 shared"):
        build("anil", head=["*"])
    with pytest.raises(ConfigurationError, match="0 are adapted and 4 shared"):
        build("boil", head=["*"])
    with pytest.raises(ConfigurationError, match="at least 1 inner step"):
        mt.algorithms.build("maml", network(), squared_error, squared_error, lr=LR, steps=0)
    frozen = network().requires_grad_(False)
    with pytest.raises(ConfigurationError, match="model has no parameter that requires"):
        build("anil", frozen)
