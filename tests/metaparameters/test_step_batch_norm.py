"""BatchNorm per inner step against a network that is written out, and how its statistics move."""

import copy

import pytest
import torch
from torch import nn
from torch.func import grad

import metatoolkit as mt
from metatoolkit.errors import ConfigurationError, UnsupportedError
from metatoolkit.metaparameters import insert_step_batch_norms
from metatoolkit.training import TaskScores
from tests.training.across_tasks import largest_difference, listed, sinusoids, squared_error

LR, STEPS, SIZE = 0.05, 3, 6
LINEAR = ("0.weight", "0.bias", "3.weight", "3.bias")
WAYS = [
    pytest.param("loop", id="loop"),
    pytest.param("vmap", id="vmap"),
    pytest.param(mt.TaskBatching("vmap", chunk=3), id="chunks"),
]


def network(*more):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(SIZE, momentum=0.2)
    return nn.Sequential(nn.Linear(1, SIZE), norm, nn.Tanh(), nn.Linear(SIZE, 1), *more).double()


def build(model=None, **options):
    model = network() if model is None else model
    options = {"batch_norm": "per_step", **options}
    algorithm = mt.algorithms.build(
        "maml++", model, squared_error, squared_error, lr=LR, steps=STEPS, **options
    )
    # No two steps alike, so that one in the place of another shows.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, part in algorithm.meta.named_parameters():
            if part.requires_grad and "initialization" not in name:
                part += 0.2 * torch.rand(part.shape, generator=generator, dtype=part.dtype) * LR
                part += ("layers" in name) * torch.randn(
                    part.shape, generator=generator, dtype=part.dtype
                )
    return algorithm


def parts(algorithm):
    return algorithm.problem, algorithm.inner, algorithm.estimator


def written_out(algorithm, batch, first_order=False):
    """Mean gradient in λ by torch.func, and the statistics that each step of each task met."""
    meta = {n: p.detach().clone() for n, p in algorithm.meta.named_parameters()}
    weights, met = algorithm.estimator.step_weights, []

    def outputs(own, meta, step, inputs, statistics):
        hidden = inputs @ own["0.weight"].T + own["0.bias"]
        mean = hidden.sum(0) / len(hidden)
        spread = ((hidden - mean) ** 2).sum(0)
        statistics.append((mean, spread / (len(hidden) - 1)))
        hidden = (hidden - mean) / (spread / len(hidden) + 1e-5).sqrt()
        scale, shift = (meta[f"batch_norms.layers.1.{kind}"][step] for kind in ("weight", "bias"))
        return (hidden * scale + shift).tanh() @ own["3.weight"].T + own["3.bias"]

    def loss(own, meta, step, data, statistics):
        found = outputs(own, meta, step, data[0], statistics)
        return ((found - data[1]) ** 2).mean()

    def outer(meta, support, query):
        own, total = {n: meta[f"initialization.{n}"] for n in LINEAR}, 0.0
        for step in range(STEPS):
            slopes = grad(loss)(own, meta, step, support, [])
            if first_order:
                slopes = {n: slope.detach() for n, slope in slopes.items()}
            rate = {n: meta[f"rates.{n.split('.')[0]}.rate"][step] for n in LINEAR}
            own = {n: p - rate[n] * slopes[n] for n, p in own.items()}
            total = total + weights[step] * loss(own, meta, step, query, [])
        return total

    def statistics(support):
        own, found = {n: meta[f"initialization.{n}"] for n in LINEAR}, []
        for step in range(STEPS):
            loss(own, meta, step, support, found)
            slopes = grad(loss)(own, meta, step, support, [])
            own = {
                n: p - meta[f"rates.{n.split('.')[0]}.rate"][step] * slopes[n]
                for n, p in own.items()
            }
        return [torch.stack(part) for part in zip(*found, strict=True)]

    learned = {n for n, p in algorithm.meta.named_parameters() if p.requires_grad}
    each = [grad(outer)(meta, support, query) for support, query in listed(batch)]
    met = [statistics(support) for support, _ in listed(batch)]
    gradient = {n: torch.stack([one[n] for one in each]).mean(0) for n in learned}
    return gradient, [torch.stack(part).mean(0) for part in zip(*met, strict=True)]


def test_what_is_learned_and_what_is_adapted():
    algorithm = build()
    assert algorithm.problem.parameter_names == list(LINEAR)
    learned = {n: tuple(p.shape) for n, p in algorithm.problem.meta_parameters().items()}
    assert learned == {
        "rates.0.rate": (STEPS,),
        "rates.3.rate": (STEPS,),
        "batch_norms.layers.1.weight": (STEPS, SIZE),
        "batch_norms.layers.1.bias": (STEPS, SIZE),
        **{
            f"initialization.{n}": tuple(p.shape)
            for n, p in network().named_parameters()
            if n in LINEAR
        },
    }


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_gradient_and_statistics_are_those_of_a_network_that_is_written_out(way, first_order):
    algorithm, batch = build(), sinusoids()
    mt.algorithms.anneal(algorithm, 0.4, first_order=float(first_order))
    expected, (mean, variance) = written_out(algorithm, batch, first_order)
    # A shift before BatchNorm has no effect; all else has.
    acting = [part for name, part in expected.items() if name != "initialization.0.bias"]
    assert min(float(part.abs().max()) for part in acting) > 1e-7
    found = mt.over_tasks(*parts(algorithm), batch, way)
    assert largest_difference(found.gradient, expected) < 1e-11
    observed = {
        n: t / len(listed(batch)) for n, t in found.details["observed"]["batch_norms"].items()
    }
    assert torch.equal(observed["seen.1"], torch.ones(STEPS).double())
    torch.testing.assert_close(observed["seen_mean.1"], mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(observed["seen_var.1"], variance, rtol=1e-11, atol=1e-12)
    # A call moves nothing.
    assert torch.equal(
        algorithm.meta["batch_norms"].layers.get_parameter("1.running_mean"),
        torch.zeros(STEPS, SIZE).double(),
    )


@pytest.mark.parametrize("way", WAYS)
def test_running_statistics_move_to_the_mean_over_tasks_and_other_buffers_stay(way):
    algorithm = build(network(nn.BatchNorm1d(1), Counting()))
    model, norms = algorithm.problem.model, algorithm.meta["batch_norms"]
    optimizer = torch.optim.SGD([p for p in algorithm.meta.parameters() if p.requires_grad], lr=0.1)
    trainer = mt.MetaTrainer(*parts(algorithm), meta_optimizer=optimizer, tasks=way)
    expected = {name: p.detach().clone() for name, p in norms.named_parameters()}
    for steps, seed in ((1, 5), (2, 6)):
        batch = sinusoids(seed=seed)
        observed = mt.over_tasks(*parts(algorithm), batch, "loop").details["observed"]
        for layer in ("1", "4"):
            for kind in ("mean", "var"):
                total = observed["batch_norms"][f"seen_{kind}.{layer}"] / len(listed(batch))
                rate = 0.2 if layer == "1" else 0.1
                running = expected[f"layers.{layer}.running_{kind}"]
                running += rate * (total - running)
        trainer.fit([batch], steps=steps, progress=False)
    for name, value in norms.named_parameters():
        if not value.requires_grad:
            torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-13)
    assert not torch.equal(norms.layers.get_parameter("1.weight"), expected["layers.1.weight"])
    buffers = dict(model.named_buffers())
    assert buffers and all(float(b.abs().max()) == 0 for b in buffers.values())


class Counting(nn.Module):
    """A layer with a buffer of its own that each pass moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, features):
        self.passes = self.passes + 1
        return features


def test_two_batches_of_a_move_count_as_one():
    def moved(accumulate, batches):
        algorithm = build()
        optimizer = torch.optim.SGD(algorithm.meta.parameters(), lr=0.0)
        options = {"meta_optimizer": optimizer, "tasks": "loop", "accumulate": accumulate}
        mt.MetaTrainer(*parts(algorithm), **options).fit(batches, steps=1, progress=False)
        return dict(algorithm.meta["batch_norms"].state_dict())

    whole = listed(sinusoids())
    halves = moved(2, [whole[: len(whole) // 2], whole[len(whole) // 2 :]])
    assert largest_difference(halves, moved(1, [whole])) < 1e-12


def test_eval_mode_has_the_running_statistics_of_the_step():
    model = network()
    norms = insert_step_batch_norms(model, STEPS)
    layer = model[1].eval()
    with torch.no_grad():
        for row in range(STEPS):
            for name, first in (("weight", 2.0), ("bias", 0.5), ("running_mean", 1.0)):
                layer.get_parameter(name)[row] = first + row
            layer.running_var[row] = 4.0 + row
    features = torch.randn(4, SIZE).double()
    for begun in range(STEPS + 2):
        row = min(max(begun - 1, 0), STEPS - 1)
        expected = (features - 1.0 - row) / (4.0 + row + 1e-5) ** 0.5 * (2.0 + row) + 0.5 + row
        torch.testing.assert_close(layer(features), expected, rtol=1e-12, atol=1e-12)
        norms.begin_step()
    assert not layer.seen.any()


def test_a_task_begins_at_the_first_step_after_another_was_loaded():
    algorithm, (support, query) = build(), listed(sinusoids())[0]
    problem, inner = algorithm.problem, algorithm.inner

    def adapted():
        state = inner.init(problem)
        for _ in range(STEPS):
            state, _ = inner.step(problem, state, problem.meta_parameters(), support)
        return state

    first = adapted()
    scores = TaskScores(problem, inner, STEPS, batching="loop")
    before = scores([(support, query)])
    problem.load(first)
    assert int(problem.model[1].counter.steps) == STEPS
    assert torch.equal(scores([(support, query)]), before)
    for name, value in adapted().parameters.items():
        assert torch.equal(value, first.parameters[name])
    # The model is the adapted one, and in its last step.
    with torch.no_grad():
        assert torch.equal(squared_error(problem.model, None, query), before[0])


def test_a_resumed_training_is_the_whole_one(tmp_path):
    def trained(name, *stops):
        for stop in stops:
            algorithm = build()
            optimizer = torch.optim.Adam(algorithm.meta.parameters(), lr=0.01)
            trainer = mt.MetaTrainer(*parts(algorithm), meta_optimizer=optimizer, tasks="vmap")
            batches = [sinusoids(seed=1), sinusoids(seed=2)]
            path = tmp_path / name
            trainer.fit(batches, steps=stop, checkpoint=path, resume=True, progress=False)
        return algorithm.problem.model.state_dict()

    whole, resumed = trained("whole", 3), trained("parted", 1, 3)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())


def test_a_training_loss_that_begins_no_step_or_two_is_refused():
    for times in (0, 2):
        model = network()
        norms = insert_step_batch_norms(model, STEPS)

        def train_loss(model, meta, batch, times=times):
            for _ in range(times):
                meta.begin_step()
            return squared_error(model, meta, batch)

        problem = mt.BilevelProblem(model, norms, train_loss, squared_error)
        estimator = mt.hypergradients.Unrolled(STEPS)
        with pytest.raises(
            UnsupportedError, match=f"{times * STEPS} steps of BatchNorm were begun"
        ):
            mt.over_tasks(problem, mt.inner.SGD(lr=LR), estimator, sinusoids(), "loop")
    whole = mt.BilevelProblem(nn.ModuleDict({"part": model}), norms, part_loss, part_loss)
    with pytest.raises(UnsupportedError, match="into the model of the problem itself"):
        mt.over_tasks(whole, mt.inner.SGD(lr=LR), estimator, sinusoids(), "loop")
    with pytest.raises(ConfigurationError, match="move by what tasks come to"):
        mt.MetaTrainer(
            *(problem, mt.inner.SGD(lr=LR), estimator, torch.optim.SGD(norms.parameters(), lr=0.1))
        )


def part_loss(model, meta, batch):
    return squared_error(model["part"], meta, batch)


def test_layers_that_are_shared_frozen_or_without_affine_parameters():
    norm = nn.BatchNorm1d(SIZE, affine=False)
    frozen = nn.BatchNorm1d(SIZE).requires_grad_(False)
    model = nn.Sequential(nn.Linear(1, SIZE), norm, norm, frozen)
    norms = insert_step_batch_norms(model, 2)
    assert model[1] is model[2] and not isinstance(model[1], nn.BatchNorm1d)
    assert model[1].weight is None and tuple(model[3].weight.shape) == (2, SIZE)
    assert not [n for n, p in norms.named_parameters() if p.requires_grad]
    assert copy.deepcopy(model)[1].counter is not model[1].counter
    assert model[1].counter is model[3].counter
    assert "steps=2" in repr(model[1])
    assert not any("seen" in name or "counter" in name for name in model.state_dict())


def test_what_cannot_be_replaced():
    with pytest.raises(ConfigurationError, match="steps is 0"):
        insert_step_batch_norms(network(), 0)
    with pytest.raises(ConfigurationError, match="no BatchNorm layer"):
        insert_step_batch_norms(nn.Sequential(nn.Linear(1, 1)), 2)
    hooked = network()
    mt.metaparameters.insert_warp_layers(hooked, ["1"])
    for model, name in (
        (nn.BatchNorm1d(2), "model"),
        (nn.Sequential(nn.SyncBatchNorm(2)), "0"),
        (nn.Sequential(nn.LazyBatchNorm1d()), "0"),
        (hooked, "1"),
    ):
        with pytest.raises(ConfigurationError, match=rf"^{name} \(.*cannot be replaced"):
            insert_step_batch_norms(model, 2)
    for options in ({"momentum": None}, {"track_running_stats": False}):
        with pytest.raises(ConfigurationError, match="track_running_stats=True"):
            insert_step_batch_norms(nn.Sequential(nn.BatchNorm1d(2, **options)), 2)
    with pytest.raises(ConfigurationError, match=r"batch_norm .*'step'.*Accepted: batch, per_step"):
        build(batch_norm="step")
