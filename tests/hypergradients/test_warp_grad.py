"""WarpGrad against equations 11 to 13 of the paper by torch.func; what it leaves to others."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.hypergradients import FirstOrder, Leap, OneStep, Unrolled, WarpGrad
from metatoolkit.metaparameters import Initialization, WarpLayer, insert_warp_layers
from metatoolkit.testing import bank
from tests.training.across_tasks import largest_difference, squared_error

F64, LR, STEPS, TASKS = torch.float64, 0.3, 4, 3
INNER = mt.inner.SGD(lr=LR)
STARTS = {
    "maml": lambda: Unrolled(STEPS),
    "fomaml": lambda: FirstOrder(STEPS),
    "leap": lambda: Leap(STEPS),
}


def warped():
    """A 4-6-2 tanh network with a warp that is no identity behind its first layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    return model, insert_warp_layers(model, identity=False)


def problem():
    return mt.BilevelProblem(*warped(), squared_error, squared_error)


def joint():
    """Warps and initial values are λ."""
    model, warp = warped()
    names = ["0.weight", "0.bias", "2.*"]
    parts = {"initialization": Initialization(model, names), "warp": warp}
    initial = lambda meta: meta["initialization"].values()  # noqa: E731
    meta = nn.ModuleDict(parts)
    return mt.BilevelProblem(model, meta, squared_error, squared_error, initial=initial)


def tasks(count=TASKS):
    """Support sets of one batch per step, and query sets."""
    torch.manual_seed(1)
    draw = lambda *shape: torch.randn(count, *shape, dtype=F64)  # noqa: E731
    supports = [(draw(8, 4), draw(8, 2)) for _ in range(STEPS)]
    return supports, (draw(9, 4), draw(9, 2))


def by_hand(given, first_order, places):
    """Equation 11, or 12, averaged over the iterates of all tasks."""
    model = given.model
    names = given.parameter_names
    warps = {n: f"0.warp_layer.{n.rpartition('.')[2]}" for n in given.meta_parameter_names}
    supports, query = tasks()

    def loss(own, meta, batch):
        values = own | {warps[name]: tensor for name, tensor in meta.items()}
        return (functional_call(model, values, (batch[0],)) - batch[1]).square().mean()

    def step(own, meta, batch):
        slopes = grad(loss)(own, meta, batch)
        return {name: own[name] - LR * slopes[name] for name in names}

    def objective(meta, own, batch, query):
        return loss(step(own, held if first_order else meta, batch), meta, query)

    held = {name: tensor.detach() for name, tensor in given.meta_parameters().items()}
    found = []
    for task in range(TASKS):
        own = {name: tensor.detach() for name, tensor in given.parameters().items()}
        for index, support in enumerate(supports):
            batch, outer = (tuple(part[task] for part in pair) for pair in (support, query))
            if index in places:
                found.append(grad(objective)(held, own, batch, outer))
            own = step(own, held, batch)
    return {name: torch.stack([one[name] for one in found]).mean(0) for name in held}


@pytest.mark.parametrize("way", ["loop", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("iterates", ["each", "last"])
def test_it_is_the_mean_over_iterates_by_torch_func(iterates, first_order, way):
    given = problem()
    before = {name: tensor.detach().clone() for name, tensor in given.meta_parameters().items()}
    estimator = WarpGrad(STEPS, iterates, first_order)
    result = mt.over_tasks(given, INNER, estimator, tasks(), way)
    places = range(STEPS) if iterates == "each" else [STEPS - 1]
    assert largest_difference(result.gradient, by_hand(given, first_order, places)) < 1e-10
    count = len(places)
    cost = result.cost
    assert cost.forward == cost.backward == TASKS * (STEPS + count)
    assert cost.hvp == (0 if first_order else TASKS * count)
    assert all(torch.equal(p, before[n]) for n, p in given.meta_parameters().items())


def test_the_first_order_gradient_is_another_one():
    given = problem()
    exact, first = (by_hand(given, order, range(STEPS)) for order in (False, True))
    norm = sum(part.square().sum() for part in exact.values()).sqrt()
    off = sum((first[name] - part).square().sum() for name, part in exact.items()).sqrt()
    assert off > 0.01 * norm


def test_one_iterate_is_one_step():
    case = bank.small_net()
    expected = case.call(OneStep()).gradient
    assert largest_difference(case.call(WarpGrad()).gradient, expected) < 1e-15
    last = case.call(WarpGrad(4, iterates="last")).gradient
    assert largest_difference(last, case.call(Unrolled(4, truncation=1)).gradient) < 1e-15


@pytest.mark.parametrize("start", STARTS)
def test_the_initial_state_is_learned_at_the_same_time(start):
    given, (supports, query) = joint(), tasks(1)
    batches = [tuple(part[0] for part in support) for support in supports]
    query = tuple(part[0] for part in query)
    estimator = WarpGrad(STEPS, start=start, weight=0.7)
    arguments = (batches, query, INNER.init(given))
    check = mt.check_hypergradient(given, INNER, estimator, *arguments, coordinates=4)
    assert check.verdict == "agrees"
    found = estimator(given, INNER, arguments[2], *arguments[:2]).gradient
    # Both are what each is when the other is held.
    alone = WarpGrad(STEPS)(problem(), INNER, INNER.init(problem()), *arguments[:2]).gradient
    assert largest_difference({n: found[f"warp.{n}"] for n in alone}, alone) < 1e-14
    given.meta["warp"].requires_grad_(False)
    meta = given.meta["initialization"]
    held = mt.BilevelProblem(given.model, meta, squared_error, squared_error, initial=values)
    expected = STARTS[start]()(held, INNER, INNER.init(held), *arguments[:2]).gradient
    named = {n: found[f"initialization.{n}"] / 0.7 for n in expected}
    assert largest_difference(named, expected) < 1e-14


def values(meta):
    return meta.values()


def test_tasks_run_side_by_side_but_for_leap():
    for start in ("maml", "fomaml"):
        results = [
            mt.over_tasks(joint(), INNER, WarpGrad(STEPS, start=start), tasks(), way)
            for way in ("loop", "vmap")
        ]
        assert largest_difference(*(result.gradient for result in results)) < 1e-12
        losses = [result.details["task_losses"] for result in results]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    with pytest.raises(UnsupportedError, match="WarpGrad does not say"):
        mt.over_tasks(joint(), INNER, WarpGrad(STEPS, start="leap"), tasks(), "vmap")


class Point(nn.Module):
    """A point behind a warp."""

    def __init__(self, size):
        super().__init__()
        self.point = nn.Parameter(torch.zeros(size, dtype=F64))
        self.warp_layer = WarpLayer(size, bias=False).double()

    def forward(self):
        return self.warp_layer(self.point)


@pytest.mark.parametrize("draw", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_learned_warp_beats_the_best_learning_rate_on_ill_conditioned_quadratics(draw):
    size = 10
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=_seeded(100 * draw), dtype=F64))

    def family(count, seed):
        generator = _seeded(100 * draw + seed)
        spread = 0.5 + torch.rand(count, size, generator=generator, dtype=F64)
        curvature = torch.logspace(0, -2, size, dtype=F64) * spread
        matrices = torch.einsum("ij,nj,kj->nik", basis, curvature, basis)
        centers = torch.randn(count, size, generator=generator, dtype=F64)
        return (matrices, centers), (matrices, centers)

    def loss(model, meta, batch):
        matrix, center = batch
        error = model() - center
        return error @ matrix @ error / 2

    def after_adaptation(model, lr):
        given = mt.BilevelProblem(model, model.warp_layer, loss, loss)
        inner, estimator = mt.inner.SGD(lr=lr), WarpGrad(20, "last", first_order=True)
        return float(mt.over_tasks(given, inner, estimator, family(200, 1), "vmap").valid_loss)

    # 2 over the largest curvature is 1.33.
    best = min(after_adaptation(Point(size), lr) for lr in (0.01, 0.03, 0.1, 0.3, 1.0, 1.3))
    model = Point(size)
    given = mt.BilevelProblem(model, model.warp_layer, loss, loss)
    optimizer = torch.optim.Adam(model.warp_layer.parameters(), lr=0.02)
    options = {"meta_optimizer": optimizer, "tasks": mt.TaskBatching("vmap")}
    trainer = mt.MetaTrainer(given, mt.inner.SGD(lr=1.0), WarpGrad(10), **options)
    trainer.fit([family(8, seed) for seed in range(10, 70)], steps=60, progress=False)
    assert after_adaptation(model, 1.0) < 0.9 * best


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_what_is_refused():
    case = bank.initialized()
    with pytest.raises(UnsupportedError, match=r"holds the states.*give start='leap'"):
        case.call(WarpGrad(2))
    with pytest.raises(UnsupportedError, match=r"WarpGrad\(start='maml'\) moves an initial state"):
        bank.small_net().call(WarpGrad(2, start="maml"))
    state = INNER.step(case.problem, case.state, case.problem.meta_parameters(), case.batches(1)[0])
    with pytest.raises(UnsupportedError, match="is at step 1"):
        case.call(WarpGrad(2, start="fomaml"), state[0])
    # λ that sets the initial state and pulls to it within the steps.
    with pytest.raises(UnsupportedError, match=r"start\..*act where WarpGrad"):
        bank.adapted().call(WarpGrad(2, start="fomaml"))
    given = joint()
    given.valid_loss = lambda model, meta, batch: (
        squared_error(model, meta, batch) + meta["initialization"].values()["0.bias"].sum()
    )
    batches = [tuple(part[0] for part in support) for support in tasks(1)[0]]
    with pytest.raises(UnsupportedError, match=r"\(initialization\.0\.bias\) set the initial"):
        WarpGrad(STEPS, start="fomaml")(given, INNER, INNER.init(given), batches, batches[0])
    # Weights in the training loss have no direct derivative.
    with pytest.raises(UnsupportedError, match="act where WarpGrad does not differentiate"):
        bank.ridge().call(WarpGrad(2, first_order=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1 inner step"),
        ({"iterates": "all"}, "iterates is 'all'"),
        ({"start": "reptile"}, "start is 'reptile'; accepted: None, 'maml', 'fomaml', 'leap'"),
        ({"weight": 0.0}, "weight is 0.0"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ConfigurationError, match=message):
        WarpGrad(**options)
