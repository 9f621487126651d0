"""What cannot be compiled runs as it does without, after one warning that says why."""

import random

import pytest
import torch
import torch.nn.functional as F

import metatoolkit as mt
from metatoolkit.diagnostics.measure import count_flops
from metatoolkit.hypergradients import (
    EvoGrad,
    Implicit,
    Neumann,
    OneStep,
    PersistentES,
    Unrolled,
    generated_code,
)
from tests.hypergradients.compiled_calls import (
    Calls,
    assert_same,
    runs_uncompiled,
    train_loss,
    valid_loss,
)


def reading(model, meta, batch):
    loss = train_loss(model, meta, batch)
    return loss / loss.item()


def branching(model, meta, batch):
    loss = train_loss(model, meta, batch)
    return loss if loss > 0 else -loss


def masking(model, meta, batch):
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    kept = meta.logits[batch[2]].exp() * losses
    return kept[losses > losses.mean()].mean()


def listing(model, meta, batch):
    return train_loss(model, meta, batch) * (1 + sum(batch[2].tolist()))


def arrays(model, meta, batch):
    return train_loss(model, meta, batch) * float(batch[0].numpy().std())


def drawing_python(model, meta, batch):
    return train_loss(model, meta, batch) * (1 + random.random())


def drawing_by_values(model, meta, batch):
    kept = torch.bernoulli(model(batch[0]).softmax(1).detach())
    return train_loss(model, meta, batch) + (kept * model(batch[0])).mean()


WORDS = {
    reading: "a number is read from a tensor",
    branching: "a number is read from a tensor",
    masking: "sizes of the result of aten.index.Tensor depend on values",
    listing: "a number is read from a tensor in the call (tolist)",
    arrays: "a number is read from a tensor in the call (numpy)",
    drawing_python: "train_loss draws from the generators of Python or NumPy",
    drawing_by_values: "the random numbers of aten.bernoulli.default depend on values",
}


@pytest.mark.parametrize("loss", WORDS, ids=lambda loss: loss.__name__)
def test_a_loss_that_no_graph_holds(loss):
    calls = Calls(OneStep(lookahead=False), losses=(loss, valid_loss))
    with runs_uncompiled(WORDS[loss]):
        calls.check(4)
    assert not calls.programs


def test_sizes_that_are_read_inside():
    def packing(model, meta, batch):
        parts = torch.tensor_split(model(batch[0]), batch[2][:1] % 3 + 1)
        return train_loss(model, meta, batch) + parts[0].square().mean()

    calls = Calls(OneStep(), losses=(packing, valid_loss))
    with runs_uncompiled("a number is read from a tensor in the call (tensor_split)"):
        calls.check(4)


def test_a_batch_of_arrays():
    def of_arrays(model, meta, batch):
        return train_loss(model, meta, [torch.tensor(part) for part in batch])

    calls = Calls(OneStep(), losses=(of_arrays, of_arrays))
    given = calls.batch
    calls.batch = lambda size: [part.numpy() for part in given(size)]
    with runs_uncompiled("the batches hold a ndarray, whose content a program does not see"):
        calls.check(3)


def test_what_a_loss_writes_into_a_tensor_outside():
    cache = torch.zeros((), dtype=torch.float64)

    def keeping(model, meta, batch):
        loss = train_loss(model, meta, batch)
        cache.copy_(loss.detach())
        return loss

    calls = Calls(OneStep(), losses=(keeping, valid_loss))
    with runs_uncompiled("writes into a tensor that the call is given"):
        calls.check(3)


def test_an_estimator_that_reads_numbers():
    calls = Calls(Implicit(Neumann(3, 0.1)), mt.inner.SGD(lr=0.1))
    with runs_uncompiled("a number is read from a tensor"):
        calls.call(), calls.call(), calls.call()


def test_an_estimator_that_goes_on_from_call_to_call():
    calls = Calls(PersistentES(1, pairs=1, sigma=0.1))
    with runs_uncompiled("its calls go on from what a former one left"):
        calls.call(), calls.call()


def test_a_noise_that_draws_by_itself():
    generator = torch.Generator()

    def noise(candidate, name, parameter):
        seeded = generator.manual_seed(100 * candidate + len(name))
        return torch.randn(parameter.shape, generator=seeded, dtype=parameter.dtype)

    calls = Calls(EvoGrad(sigma=0.1, noise=noise))
    with runs_uncompiled("from a generator that a program cannot rewind"):
        calls.check(3)


def test_without_a_compiler_it_is_a_graph(monkeypatch):
    monkeypatch.setattr(generated_code, "_missing_compiler", lambda inputs: "there is no compiler")
    calls = Calls(OneStep(), compile=True)
    with runs_uncompiled("there is no compiler. Its calls run as a graph of PyTorch's own kernels"):
        calls.check(3)
    (program,) = calls.programs
    assert program.run is program.traced.graph


def test_code_that_rounds_otherwise_is_not_taken(monkeypatch):
    def generate(graph, inputs, cuda_graphs):
        return lambda *given: [
            t * (1 + 1e-9) if t.dtype.is_floating_point else t for t in graph(*given)
        ]

    monkeypatch.setattr("metatoolkit.hypergradients.compilation.generate", generate)
    calls = Calls(OneStep(), compile=True)
    with runs_uncompiled("rounds otherwise"):
        calls.check(3)
    (program,) = calls.programs
    assert program.run is program.traced.graph


def test_errors_are_those_of_a_call_without_a_program():
    calls = Calls(OneStep())
    calls.check(3)
    inputs, targets, places = calls.batch()
    arguments = (calls.problem, calls.inner, calls.state)
    with pytest.raises(IndexError, match=r"Target \d is out of bounds"):
        calls.estimator(*arguments, [(inputs, targets + 7, places)], calls.batch())


def test_who_looks_on_sees_all_operators():
    calls = Calls(Unrolled(2))
    calls.check(3)
    arguments = (calls.problem, calls.inner, calls.state)
    train, valid = [calls.batch(), calls.batch()], calls.batch()
    flops = [
        count_flops(lambda e=e: e(*arguments, train, valid)) for e in (calls.estimator, calls.plain)
    ]
    assert flops[0] == flops[1] > 0
    (program,) = calls.programs
    assert program.calls == 2
    found, expected = (
        calls.estimator(*arguments, train, valid),
        calls.plain(*arguments, train, valid),
    )
    assert_same(found, expected)
    assert program.calls == 3


def test_a_loss_that_takes_gradients_inside_itself_is_compiled():
    def penalized(model, meta, batch):
        inputs = batch[0].clone().requires_grad_()
        loss = train_loss(model, meta, (inputs, *batch[1:]))
        (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
        return loss + slope.square().sum()

    calls = Calls(OneStep(), losses=(penalized, valid_loss))
    calls.check()
    assert len(calls.programs) == 1


def test_errors_name_the_remedy():
    with pytest.raises(mt.errors.ConfigurationError, match="without an estimator"):
        calls = Calls(OneStep())
        mt.MetaTrainer(calls.problem, calls.inner, compile=True)
