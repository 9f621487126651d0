"""How calls of the functions of torch are looked at."""

import torch
import torch.nn.functional as F

from metatoolkit.hypergradients.torch_calls import (
    NoHandle,
    as_tuple,
    body_of,
    has_derivatives,
    is_custom,
    other_calls,
    random_states,
    set_random_states,
    tensors_in,
)


@torch.library.custom_op("metatoolkit_tests::twice", mutates_args=())
def twice(inputs: torch.Tensor) -> torch.Tensor:
    return 2 * inputs


def test_operators_of_torch_are_not_custom():
    operators = (torch.ops.aten.add, torch.ops.prims.sin, torch.ops.prim.device)
    for operator in operators:
        assert not is_custom(operator)
    assert not is_custom(torch.ops.aten.add.Tensor) and not is_custom(torch.ops.prims.sin.default)
    assert is_custom(torch.ops.metatoolkit_tests.twice)
    assert is_custom(torch.ops.metatoolkit_tests.twice.default)
    assert not is_custom(torch.add) and not is_custom(twice)


def test_random_states_are_put_back():
    states = random_states([torch.ones(2)])
    first = torch.rand(3)
    set_random_states(states)
    assert torch.equal(torch.rand(3), first) and len(states) == 1


def test_tensors_in_lists_of_lists():
    one, other, third = (torch.ones(n) for n in (1, 2, 3))
    found = tensors_in([one, 3, [other, "text", (third,)], None])
    assert [len(tensor) for tensor in found] == [1, 2, 3]


def test_small_things():
    assert as_tuple((1, 2)) == (1, 2) and as_tuple([1]) == ([1],)
    types = (torch.float16, torch.complex64, torch.int64, torch.bool)
    assert [has_derivatives(torch.ones(1, dtype=t)) for t in types] == [True, True, False, False]
    assert NoHandle().remove() is None
    assert "(a is called): it depends" in str(other_calls("a is called"))


def test_bodies_are_those_of_functions_in_python():
    body = body_of(F.gumbel_softmax)
    assert body.__defaults__ == F.gumbel_softmax.__defaults__ and body is not F.gumbel_softmax
    assert body_of(F.gumbel_softmax) is body
    assert body_of(torch.Tensor.norm).__kwdefaults__ == torch.Tensor.norm.__kwdefaults__
    # In C, without the dispatch that would hide what it calls, and from elsewhere.
    assert body_of(torch.add) is None and body_of(F.relu6.__class__) is None
    assert body_of(test_small_things) is None


def test_a_body_calls_on_without_dispatch():
    calls = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x = torch.linspace(-1, 1, 6).view(2, 3)
    expected = F.layer_norm(x, (3,), eps=0.1)
    with Mode():
        result = body_of(F.layer_norm)(x, (3,), eps=0.1)
    assert torch.equal(result, expected) and calls == ["layer_norm"]
