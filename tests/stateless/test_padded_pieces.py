"""Padded tasks in pieces: the numbers of the tasks as they are, taken one by one."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import metatoolkit as mt
from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients import FirstOrder, ForwardMode, OneStep, Reptile, Unrolled
from metatoolkit.losses import masked_cross_entropy
from metatoolkit.stateless.exchange import is_recorded, record
from metatoolkit.stateless.micro_batched import times
from metatoolkit.stateless.piece_weights import Weighing
from metatoolkit.tasks import pad_tasks
from tests.stateless.test_micro_batched import EXAMPLES, SGD, batch, problem

RATE, STEPS, WAYS = 0.3, 2, 3
LEARNER = mt.inner.SGD(lr=RATE)
CHUNK = mt.TaskBatching("vmap", chunk=2)


def part(size, generator):
    inputs = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(WAYS, (size,), generator=generator)


def tasks(sizes=((2, 5), (6, 3), (4, 1), (6, 5))):
    generator = torch.Generator().manual_seed(1)
    return [(part(shots, generator), part(queries, generator)) for shots, queries in sizes]


def few_shot(micro_batch, loss=masked_cross_entropy, zeros=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, WAYS)).double()
    if zeros:
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
    meta = mt.metaparameters.Initialization(model)
    return mt.BilevelProblem(
        model, meta, loss, loss, initial=type(meta).values, micro_batch=micro_batch
    )


def reference(given, unpadded):
    """MAML's gradients and losses of tasks as they are, by torch.func alone."""
    start = {name: tensor.detach() for name, tensor in given.model.named_parameters()}

    def entropy(parameters, inputs, labels):
        logits = functional_call(given.model, parameters, (inputs,))
        return nn.functional.cross_entropy(logits, labels)

    def adapted_loss(parameters, support, query):
        for _ in range(STEPS):
            slope = grad(entropy)(parameters, *support)
            parameters = {n: p - RATE * slope[n] for n, p in parameters.items()}
        return entropy(parameters, *query)

    pairs = [(grad(adapted_loss)(start, *task), adapted_loss(start, *task)) for task in unpadded]
    gradients, losses = zip(*pairs, strict=True)
    return {n: torch.stack([g[n] for g in gradients]).mean(0) for n in start}, torch.stack(losses)


def assert_right(found, expected):
    gradient, losses = expected
    for name, tensor in gradient.items():
        torch.testing.assert_close(found.gradient[name], tensor, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.details["task_losses"], losses, rtol=0, atol=1e-10)


ESTIMATORS = {
    "graphs kept": lambda: Unrolled(STEPS),
    "steps repeated": lambda: Unrolled(STEPS, keep_graphs=1),
    "mixed mode": lambda: Unrolled(STEPS, product="forward_over_reverse"),
}


@pytest.mark.parametrize("batching", ["loop", "vmap", CHUNK, "auto"], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_maml_has_the_gradients_of_the_tasks_as_they_are(size, batching):
    """With supports of 2 in pieces of 2, beside one of 6, two pieces have nothing but padding."""
    given = few_shot(size)
    found = mt.over_tasks(given, LEARNER, Unrolled(STEPS), pad_tasks(tasks()), batching)
    assert_right(found, reference(given, tasks()))
    assert given.micro_batched.weighings


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_whichever_way_steps_are_differentiated(name, batching):
    given = few_shot(2)
    found = mt.over_tasks(given, LEARNER, ESTIMATORS[name](), pad_tasks(tasks()), batching)
    assert_right(found, reference(given, tasks()))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("estimator", [FirstOrder(2), Reptile(2), ForwardMode(1)])
def test_other_estimators_have_the_numbers_without_pieces(estimator, batching):
    found, expected = (
        mt.over_tasks(few_shot(size), LEARNER, estimator, pad_tasks(tasks()), batching)
        for size in (2, None)
    )
    assert_right(found, (expected.gradient, expected.details["task_losses"]))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_padding_may_come_first(batching):
    padded = tuple(tuple(tensor.flip(1) for tensor in tensors) for tensors in pad_tasks(tasks()))
    assert not padded[0][2][0, :4].any()
    found = mt.over_tasks(few_shot(2), LEARNER, Unrolled(STEPS), padded, batching)
    assert_right(found, reference(few_shot(None), tasks()))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_a_last_layer_of_zeros_hides_nothing(batching):
    """All examples have the same loss then, so that any weights of pieces would pass for right."""
    given = few_shot(2, zeros=True)
    found = mt.over_tasks(given, LEARNER, Unrolled(STEPS), pad_tasks(tasks()), batching)
    assert_right(found, reference(given, tasks()))


@pytest.mark.parametrize("batching", ["vmap", "auto"])
def test_whole_batches_that_padded_ones_follow(batching):
    given = few_shot(2)
    for sizes in (((4, 5),) * 3, ((4, 5), (2, 5), (3, 1)), ((4, 5), (4, 2), (4, 5))):
        found = mt.over_tasks(given, LEARNER, Unrolled(STEPS), pad_tasks(tasks(sizes)), batching)
        assert_right(found, reference(given, tasks(sizes)))


def masked(model, meta, batch):
    losses = (model(batch["inputs"] * meta.scale) - batch["targets"]).square().mean(-1)
    return torch.where(batch["mask"], losses, 0.0).sum() / batch["mask"].sum()


PART = batch() | {"mask": torch.arange(EXAMPLES) < 3}


def test_a_single_problem_and_finite_differences():
    given = problem({"train_loss": 2}, train=masked)
    check = mt.check_hypergradient(given, SGD, Unrolled(2), [PART, PART], batch())
    assert check.relative_error < 1e-6
    whole = problem(None, train=masked)
    found, expected = (
        Unrolled(2)(p, SGD, SGD.init(p), [PART, PART], batch()) for p in (given, whole)
    )
    for name, tensor in expected.gradient.items():
        torch.testing.assert_close(found.gradient[name], tensor, rtol=0, atol=1e-12)


def test_a_weighted_loss_is_differentiated_as_the_loss_is():
    loss, weight = torch.tensor(3.0), torch.tensor(0.5, dtype=torch.float64)
    assert times(loss) is loss and not is_recorded(times(loss, weight))
    record(loss, object())
    weighted = times(loss, weight)
    assert is_recorded(weighted) and weighted.dtype == torch.float32 and weighted == 1.5


def test_a_compiled_call_sees_that_some_are_left_out():
    given, estimator = problem({"train_loss": 2}, train=masked), OneStep()
    estimator.compile = "graph"
    whole = batch() | {"mask": torch.ones(EXAMPLES, dtype=torch.bool)}
    for train in (whole, whole, PART, PART, whole, PART):
        found = estimator(given, SGD, SGD.init(given), [train], batch())
        plain = problem(None, train=masked)
        expected = OneStep()(plain, SGD, SGD.init(plain), [train], batch())
        for name, tensor in expected.gradient.items():
            torch.testing.assert_close(found.gradient[name], tensor, rtol=0, atol=1e-12)
    # The second was made when the weights of pieces were known to be those of the mask.
    assert len(estimator._compiler.programs) == 2


def by_the_root(model, meta, batch):
    return masked(model, meta, batch) * batch["mask"].sum().sqrt()


def by_the_square(model, meta, batch):
    losses = (model(batch["inputs"] * meta.scale) - batch["targets"]).square().mean(-1)
    return torch.where(batch["mask"], losses, 0.0).square().sum().sqrt()


@pytest.mark.parametrize("loss", [by_the_root, by_the_square])
@pytest.mark.parametrize("size", [2, 3])
def test_what_is_no_mean_over_a_mask_is_refused(loss, size):
    given = problem({"train_loss": size}, train=loss)
    with pytest.raises(UnsupportedError, match=r"no mean over the examples of a batch.*\d or "):
        Unrolled(1)(given, SGD, SGD.init(given), [PART], batch())


def test_a_mask_that_keeps_one_example_tells_nothing_of_others():
    given = problem({"train_loss": 2}, train=by_the_root)
    single = batch() | {"mask": torch.arange(EXAMPLES) == 4}
    for _ in range(2):
        state, loss = SGD.step(given, SGD.init(given), given.meta_parameters(), single)
        plain = problem(None, train=by_the_root)
        expected = SGD.step(plain, SGD.init(plain), plain.meta_parameters(), single)[1]
        torch.testing.assert_close(loss, expected)
    with pytest.raises(UnsupportedError, match="no mean over the examples"):
        SGD.step(given, state, given.meta_parameters(), PART)


def test_masks_of_tokens_are_weighed_by_what_they_keep():
    def of_tokens(model, meta, batch):
        errors = (model(batch["inputs"]) - batch["targets"]).square()
        return torch.where(batch["mask"], errors * meta.scale, 0.0).sum() / batch["mask"].sum()

    tokens = torch.tensor([3, 0, 1, 2, 0, 0, 1])[:EXAMPLES, None] > torch.arange(3)
    given = batch() | {"mask": tokens}
    found, expected = (
        Unrolled(1)(p, SGD, SGD.init(p), [given], batch())
        for p in (problem({"train_loss": 2}, train=of_tokens), problem(None, train=of_tokens))
    )
    for name, tensor in expected.gradient.items():
        torch.testing.assert_close(found.gradient[name], tensor, rtol=0, atol=1e-12)


def test_weights_of_all_pieces_add_up_and_none_is_empty():
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    pieces = [Weighing(0).piece((mask,), 1, slice(n, n + 2)) for n in (0, 2)]
    weights = torch.stack([weight for _, weight in pieces])
    thirds = torch.tensor([[3, 2], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(weights, thirds / 3)
    assert pieces[0][0][0].tolist() == [[True, False], [True, True]]
    assert pieces[1][0][0].tolist() == [[True, True], [True, False]]
    assert Weighing().piece((mask,), 1, slice(0, 1))[1] == 0.25
