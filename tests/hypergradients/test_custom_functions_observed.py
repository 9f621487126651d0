"""Who observes custom functions, and what is told of them."""

import threading

import torch

from metatoolkit.hypergradients.custom_functions import (
    is_observed,
    is_own,
    name_of,
    observable,
    observed,
    points_of,
)
from tests.hypergradients.custom import NumpySine, Product, Rounded


def test_the_innermost_observer_is_asked_and_classes_are_put_back():
    seen = []

    def observer(name):
        def observe(cls, args, call):
            seen.append((name, cls, len(args)))
            return call()

        return observe

    forward = vars(Product)["forward"]
    x = torch.ones(2)
    with observed(observer("outer")):
        Product.apply(x, x, 2.0)
        with observed(observer("inner")):
            assert is_observed(Product) and not is_observed(torch.nn.Linear)
            assert Product.apply(x, x, 2.0).tolist() == [2.0, 2.0]
            NumpySine.apply(x)
        Product.apply(x, x, 2.0)
    assert seen == [
        ("outer", Product, 3),
        ("inner", Product, 3),
        ("inner", NumpySine, 1),
        ("outer", Product, 3),
    ]
    assert vars(Product)["forward"] is forward and not is_observed(Product)
    Product.apply(x, x, 2.0)
    assert len(seen) == 4


def test_new_classes_are_looked_for_unless_all_are_known():
    seen = []

    def observe(cls, args, call):
        seen.append(cls)
        return call()

    x = torch.ones(2)
    with observable():

        class Later(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

        with observed(observe, known=True):
            NumpySine.apply(x)
            Later.apply(x)
        assert seen == [NumpySine] and not is_observed(Later)
        with observed(observe):
            Later.apply(x)
        with observed(observe, known=True):
            Later.apply(x)
        assert seen == [NumpySine, Later, Later]
    # Nothing is known any more.
    with observed(observe, known=True):
        NumpySine.apply(x)
    assert seen == [NumpySine, Later, Later, NumpySine]
    assert not is_observed(Later) and not is_observed(NumpySine)


def test_observers_are_those_of_their_thread():
    seen = []

    def observe(cls, args, call):
        seen.append(cls)
        return call()

    with observed(observe):
        thread = threading.Thread(target=lambda: NumpySine.apply(torch.ones(1)))
        thread.start()
        thread.join()
    assert seen == []


def test_a_class_that_inherits_its_forward_pass_is_told_apart():
    class Child(NumpySine):
        pass

    seen = []
    with observed(lambda cls, args, call: seen.append(cls) or call()):
        Child.apply(torch.ones(1))
    assert seen == [Child]


def test_names():
    assert name_of(Rounded) == "tests.hypergradients.custom.Rounded"
    assert name_of(torch.ops.metatoolkit_tests.sine) == "metatoolkit_tests.sine"
    assert is_own(torch.nn.functional.__class__) is False
    assert is_own(type("Own", (), {"__module__": "torch.autograd"})) and not is_own(Rounded)
    assert is_own(type("Own", (), {"__module__": "metatoolkit.losses"}))
    assert not is_own(type("Other", (), {"__module__": "torchvision.ops"}))


def test_points_are_floating_point_tensors():
    one, other = torch.ones(1), torch.ones(2, dtype=torch.float16)
    found = points_of((one, 3.0, torch.ones(3, dtype=torch.int64), None, other, "text"))
    assert [len(point) for point in found] == [1, 2]


def test_a_class_keeps_its_wrapper_until_its_function_changes():
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    calls = []

    def count(cls, args, call):
        calls.append(cls)
        return call()

    def value():
        with observed(count):
            return float(Scaled.apply(torch.ones(()))), Scaled.forward

    plain = Scaled.forward
    (first, wrapper), (second, again) = value(), value()
    assert first == second == 2.0 and wrapper is again and Scaled.forward is plain
    Scaled.forward = staticmethod(lambda ctx, x: 3 * x)
    third, other = value()
    assert third == 3.0 and other is not wrapper
    assert calls == [Scaled] * 3
