"""Hyper-parameters at a step, with and without their graphs."""

import torch

from metatoolkit.inner.evaluated import Evaluated, leaves_of


def test_values_are_exchanged_one_for_one():
    rate, decay = torch.tensor(0.1, requires_grad=True), torch.tensor(0.2)
    common = {"lr": rate, "momentum": 0.5, "weight_decay": {"a": decay, "b": 0.0}, "nesterov": True}
    special = [(["b*"], common | {"lr": decay})]
    values = Evaluated(common, special)
    assert [id(t) for t in values.tensors()] == [id(rate), id(decay), id(decay), id(decay)]
    doubled = values.map(lambda tensor: 2 * tensor.detach())
    own, other = doubled("a"), doubled("b")
    assert float(own["lr"]) == float(torch.tensor(0.2)) and not own["lr"].requires_grad
    assert own["momentum"] == 0.5 and own["nesterov"] is True
    # One tensor stays one.
    assert other["lr"] is own["weight_decay"] and other["weight_decay"] == 0.0
    assert values("a")["lr"] is rate


def test_those_that_have_the_same_values_have_one_object():
    values = Evaluated({"lr": 0.1}, [(["b"], {"lr": 0.2})])
    assert values("a") is values("c") and values("b")["lr"] == 0.2


def test_leaves_are_followed_up_to_what_is_given():
    one, other = (torch.tensor(v, requires_grad=True) for v in (1.0, 2.0))
    view = one.view_as(one)
    assert leaves_of(one, {}) == {id(one)}
    assert leaves_of(view * other, {}) == {id(one), id(other)}
    assert leaves_of(view * other, {"one": view}) == {id(other)}
