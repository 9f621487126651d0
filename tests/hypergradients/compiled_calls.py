"""Small problems whose hypergradients are compiled, and the comparison with those that are not."""

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import nn

import metatoolkit as mt


class Weights(nn.Module):
    """λ: a weight for each example, and a penalty."""

    def __init__(self, examples=12):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, examples))
        self.decay = nn.Parameter(torch.tensor(-2.0))
        self.unused = nn.Parameter(torch.ones(2))


def train_loss(model, meta, batch):
    inputs, targets, places = batch
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    penalty = sum(p.square().sum() for p in model.parameters())
    return (meta.logits[places].sigmoid() * losses).mean() + meta.decay.exp() * penalty


def valid_loss(model, meta, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def perceptron():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    )


def dropping():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


MODELS = {"perceptron": perceptron, "convolutional": convolutional, "dropping": dropping}


class Calls:
    """A problem, and calls of an estimator along a trajectory, compiled and not.

    Args:
        estimator: Compiled; a copy of it is not.
        inner: Inner learner.
        model: Name of the model.
        dtype: Type of everything.
        compile: What the estimator's attribute is set to.
        losses: Training loss and outer loss.
    """

    def __init__(
        self,
        estimator,
        inner=None,
        model="perceptron",
        dtype=torch.float64,
        compile="graph",
        losses=(train_loss, valid_loss),
    ):
        torch.manual_seed(0)
        self.model, self.meta = MODELS[model]().to(dtype), Weights().to(dtype)
        self.problem = mt.BilevelProblem(self.model, self.meta, *losses)
        self.inner = inner or mt.inner.SGD(lr=0.3, momentum=0.9)
        self.plain, self.estimator = copy.deepcopy(estimator), estimator
        estimator.compile = compile
        self.state = self.inner.init(self.problem)
        self.shape = (1, 5, 5) if model == "convolutional" else (5,)
        self.dtype, self.count = dtype, 0

    def batch(self, size=6):
        self.count += 1
        inputs = torch.randn(size, *self.shape, dtype=self.dtype)
        return inputs, torch.randint(3, (size,)), (torch.arange(size) + self.count) % 12

    def call(self, size=6):
        """Return the results of both at the present state and new batches, and take a step."""
        train = [self.batch(size) for _ in range(self.estimator.horizon)]
        valid = self.batch(size)
        arguments = (self.problem, self.inner, self.state, train, valid)
        found, expected = self.estimator(*arguments), self.plain(*arguments)
        meta = self.problem.meta_parameters()
        self.state, _ = self.inner.step(self.problem, self.state, meta, train[0])
        with torch.no_grad():
            self.meta.logits.add_(0.1 * torch.randn_like(self.meta.logits))
        return found, expected

    def check(self, calls=3, size=6):
        """Raise unless compiled calls give what others do."""
        for _ in range(calls):
            assert_same(*self.call(size))

    @property
    def programs(self):
        """Programs that were compiled."""
        compiler = self.estimator._compiler
        return [p for found in compiler.programs.values() for p in found] if compiler else []


def assert_same(found, expected):
    """Raise unless two results are the same to 1e-5 in float32, 1e-10 in float64."""
    sizes = {"rtol": 1e-10, "atol": 1e-12}
    if expected.valid_loss.dtype == torch.float32:
        sizes = {"rtol": 1e-5, "atol": 1e-7}
    assert list(found.gradient) == list(expected.gradient)
    assert found.cost == expected.cost
    assert found.state.step == expected.state.step
    assert found.state.key == expected.state.key
    assert found.state.missed == expected.state.missed
    for name, tensor in expected.gradient.items():
        torch.testing.assert_close(found.gradient[name], tensor, **sizes)
    torch.testing.assert_close(found.valid_loss, expected.valid_loss, **sizes)
    assert not found.valid_loss.requires_grad
    for field in ("parameters", "buffers", "optimizer"):
        one, other = getattr(found.state, field), getattr(expected.state, field)
        torch.testing.assert_close(one, other, **sizes)
    assert found.details.keys() == expected.details.keys()
    for name, detail in expected.details.items():
        if isinstance(detail, torch.Tensor):
            loose = {"rtol": 1e-3, "atol": 1e-6} if "error" in name else sizes
            torch.testing.assert_close(found.details[name], detail, **loose)
        else:
            assert found.details[name] == detail


def runs_uncompiled(words):
    """Return a context in which one warning says why calls are not compiled."""
    return _Warned(words)


class _Warned(warnings.catch_warnings):
    def __init__(self, words):
        super().__init__(record=True)
        self.words = words

    def __enter__(self):
        self.seen = super().__enter__()
        warnings.simplefilter("always")
        return self.seen

    def __exit__(self, kind, *rest):
        super().__exit__(kind, *rest)
        if kind is None:
            assert len(self.seen) == 1, [str(w.message) for w in self.seen]
            assert self.seen[0].category is mt.errors.CompilationWarning
            assert self.words in str(self.seen[0].message), self.seen[0].message
