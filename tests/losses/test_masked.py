"""Losses over what a mask keeps are those of the kept examples by themselves."""

import pytest
import torch
from torch import nn

import metatoolkit as mt
from metatoolkit.errors import DataError, ShapeError, UnsupportedError
from metatoolkit.losses import masked_squared_error, squared_error

INNER = mt.inner.SGD(lr=0.05)
NO_META = nn.Identity()


def batch(shape=(6, 2)):
    torch.manual_seed(0)
    mask = torch.tensor([True, False, True, True, False, True])
    return torch.randn(6, 3).double(), torch.randn(shape).double(), mask


@pytest.mark.parametrize("outputs", [(2,), ()], ids=["two outputs", "one number"])
def test_it_is_the_squared_error_of_the_kept_examples(outputs):
    inputs, targets, mask = batch((6, *outputs))
    linear = nn.Linear(3, 2 if outputs else 1).double()
    model = nn.Sequential(linear, *([] if outputs else [nn.Flatten(0)]))
    found = masked_squared_error(model, NO_META, (inputs, targets, mask))
    expected = squared_error(model, NO_META, (inputs[mask], targets[mask]))
    torch.testing.assert_close(found, expected)
    slopes = (torch.autograd.grad(loss, [*model.parameters()]) for loss in (found, expected))
    torch.testing.assert_close(*slopes)


def test_it_runs_side_by_side():
    inputs, targets, mask = batch()
    model = nn.Linear(3, 2).double()
    given = [torch.stack([t, t.flip(0)]) for t in (inputs, targets, mask)]
    given[2][1, 0] = False
    found = torch.vmap(lambda *b: masked_squared_error(model, NO_META, b))(*given)
    alone = [masked_squared_error(model, NO_META, b) for b in zip(*given, strict=True)]
    torch.testing.assert_close(found, torch.stack(alone))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y, m: (x, y), DataError, "tuple of 2; inputs, targets and a mask"),
        (lambda x, y, m: (x, y[:, :1], m), ShapeError, r"\(6, 2\) for targets of shape \(6, 1\)"),
        (lambda x, y, m: (x, y[:1], m), ShapeError, r"\(6, 2\) for targets of shape \(1, 2\)"),
        (lambda x, y, m: (x, y, m.double()), ShapeError, "of torch.float64; a boolean one"),
        (lambda x, y, m: (x, y, m[:, None]), ShapeError, r"\(6, 1\).*shape \(6,\)"),
        (lambda x, y, m: (x[:0], y[:0], m[:0]), DataError, "at least one example"),
    ],
    ids=["pair", "width", "examples", "numbers", "column", "empty"],
)
def test_what_would_broadcast_or_is_no_mask_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        masked_squared_error(nn.Linear(3, 2).double(), NO_META, change(*batch()))


def test_statistics_of_padding_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    with pytest.raises(UnsupportedError, match="0 is a BatchNorm1d"):
        masked_squared_error(model, NO_META, batch())


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_sources_of_other_sizes_together(batching, micro_batch):
    few = mt.tasks.FunctionTasks(shots=3, queries=4, tasks=1)
    many = mt.tasks.FunctionTasks(shots=8, queries=10, tasks=1)
    padded = next(mt.tasks.MixedTasks([few, many], tasks=4, seed=1, padded=True))
    padded = tuple((inputs.double(), targets.double(), mask) for inputs, targets, mask in padded)
    sizes = padded[0][2].sum(1)
    assert set(sizes.tolist()) == {3, 8}
    unpadded = [
        tuple((part[0][n, : part[2][n].sum()], part[1][n, : part[2][n].sum()]) for part in padded)
        for n in range(4)
    ]

    def gradient(loss, tasks, way, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        meta = mt.metaparameters.Initialization(model)
        given = mt.BilevelProblem(model, meta, loss, loss, initial=type(meta).values, **options)
        return mt.over_tasks(given, INNER, mt.hypergradients.Unrolled(2), tasks, way).gradient

    found = gradient(masked_squared_error, padded, batching, micro_batch=micro_batch)
    for name, tensor in gradient(squared_error, unpadded, "loop").items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-10)
