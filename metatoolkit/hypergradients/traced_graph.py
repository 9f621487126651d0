"""A call of an estimator as one flat graph of operators, by a trace of the call itself.

Autograd runs while the call is traced, second derivatives included, so that what remains are the
operators of its passes. There is nothing that the graph could break at: what a trace cannot hold
is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from typing_extensions import override

from metatoolkit.errors import UnsupportedError
from metatoolkit.hypergradients.call_layout import Call
from metatoolkit.hypergradients.draws import Draws
from metatoolkit.hypergradients.fingerprints import Fingerprints
from metatoolkit.hypergradients.replay_check import unchecked
from metatoolkit.hypergradients.traced_draws import Drawing, Unread
from metatoolkit.hypergradients.traced_result import Outputs, TracedResult
from metatoolkit.randomness import fold_in
from metatoolkit.randomness.traced import Clock, Moment, StepNumber, TracedKey
from metatoolkit.state import InnerState
from metatoolkit.stateless.traced_flags import noting

if TYPE_CHECKING:
    from metatoolkit.hypergradients.base import Hypergradient

_COPIES = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
_GETS = "get_attr"
Source = Callable[[Call, Moment], Tensor]
"""Gives an input of a graph beside the tensors of a call."""


@dataclasses.dataclass(frozen=True)
class TracedCall:
    """A graph of operators, and how a call is made of it.

    Attributes:
        graph: Takes tensors, and returns a flag, whether the call must run without it, and then
            the tensors of the result.
        clock: What the graph counts on of the number of the first step.
        extra: What the graph takes beside the tensors of the call.
        result: The traced result, whose tensors are numbers of outputs.
        pins: What must live as long as the graph.
    """

    graph: fx.GraphModule
    clock: Clock
    extra: Sequence[Source]
    result: TracedResult
    pins: Sequence[Any]

    def inputs(self, call: Call, given: Sequence[Tensor], draw: int | None) -> list[Tensor]:
        """Return what the graph takes.

        Args:
            call: A call of the same kind.
            given: Its tensors.
            draw: Key that the estimator draws from, if it draws.
        """
        moment = moment_of(call, draw)
        return [*given, *(source(call, moment) for source in self.extra)]

    def finish(self, call: Call, outputs: Sequence[Tensor]) -> Hypergradient | None:
        """Return the result of a call, or ``None`` where it must run without the graph.

        Args:
            call: The call.
            outputs: What the graph returned.
        """
        if bool(outputs[0]):
            return None
        return self.result.filled(call, outputs)


def trace(call: Call, draw: int | None) -> TracedCall:
    """Trace a call; its problem, state and estimator stay as they are.

    Args:
        call: A call that was made before, so that what the first one checks is known.
        draw: Key that the estimator draws from, if it draws.

    Returns:
        The graph, for calls of the same layout.

    Raises:
        UnsupportedError: The call does what no graph holds; the message ends a sentence.
    """
    given, _, pins = call.given()
    clock, results = Clock(moment_of(call, draw)), list[TracedResult]()
    globally = call.problem._passes.draws_globally
    if globally:
        raise UnsupportedError(f"{min(globally)} draws from the generators of Python or NumPy")
    # Views, so that a tensor which code closes over is none of the inputs by accident.
    views = [tensor.detach() for tensor in given]

    def body(*tensors: Tensor) -> list[Tensor]:
        traced = _with_clock(call.exchanged(tensors), clock)
        with noting() as flags, unchecked(), Unread(), Drawing(clock), _drawn(call, clock):
            estimate = call.estimator.estimate
            found = estimate(
                traced.problem,
                traced.inner,
                traced.state,
                traced.train_batches,
                traced.valid_batch,
            )
            sums = [found.valid_loss, *(g.sum() for g in found.gradient.values())]
            finite = torch.stack([torch.isfinite(part) for part in sums]).all()
            flag = torch.stack([~finite.cpu(), *flags]).any()
            outputs = Outputs(flag)
            told = {n: getattr(call.problem, n) for n in getattr(call.problem, "told", ())}
            results.append(TracedResult(found, call.state.step, outputs, told))
        return outputs.tensors

    before = Fingerprints().of_estimator(call.estimator)
    # One mode for what the graph says of sizes and types, where a trace makes one for each tensor.
    sizes = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    try:
        with tracing(sizes):
            module = make_fx(body, tracing_mode="real")(*views)
    except Exception as error:
        raise UnsupportedError(_words(error)) from error
    if Fingerprints().of_estimator(call.estimator) != before:
        raise UnsupportedError("it changes attributes of its own in a call")
    _refuse_operators(module.graph)
    extra = _lift(module, call, clock)
    clock.forget()
    _tidy(module.graph)
    module.recompile()
    return TracedCall(module, clock, extra, results[0], pins)


def _words(error: Exception) -> str:
    text = str(error)
    if "value out of a tracing tensor" in text:
        return "a number is read from a tensor in the call, which a graph would keep for ever"
    first = text.strip().split("\n")[0]
    return f"the trace of a call failed ({type(error).__name__}: {first[:300]})"


def _with_clock(call: Call, clock: Clock) -> Call:
    """Return a call whose step and key are told as what they are in each call."""
    state = call.state
    if type(state.key) is not int:
        # Keys of tasks, all at the beginning of a trajectory.
        clock.ask(lambda step: step)
        return call
    step = cast(int, StepNumber(clock))
    key = TracedKey.begin(clock, "state", fold_in)
    return dataclasses.replace(call, state=state.replaced(step=step, key=key))


class _GivenDraw(Draws):
    """The draw of the traced call."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._key = TracedKey.begin(clock, "draw", fold_in)

    @override
    def advance(self, state: InnerState) -> int:
        return self._key

    @override
    def upcoming(self, state: InnerState) -> int:
        return self._key

    @override
    def current(self, state: InnerState) -> int:
        return self._key


@contextlib.contextmanager
def _drawn(call: Call, clock: Clock) -> Iterator[None]:
    estimator = call.estimator
    before = estimator._draws
    if before is not None:
        estimator._draws = _GivenDraw(clock)
    try:
        yield
    finally:
        estimator._draws = before


def _refuse_operators(graph: fx.Graph) -> None:
    """Raise where an operator has results of unknown sizes, or writes into an input."""
    for node in graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            continue
        if torch.Tag.dynamic_output_shape in target.tags and _is_dynamic(node):
            raise UnsupportedError(f"the sizes of the result of {target} depend on values")
        if target._schema.is_mutable:
            for argument, value in zip(target._schema.arguments, node.args, strict=False):
                written = argument.alias_info is not None and argument.alias_info.is_write
                values = value if isinstance(value, list | tuple) else [value]
                if written and any(_is_input(v) for v in values):
                    raise UnsupportedError(f"{target} writes into a tensor that the call is given")


def _is_dynamic(node: fx.Node) -> bool:
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    masks = (torch.bool, torch.uint8)
    indices = [part for part in cast(Any, node.args[1]) if isinstance(part, fx.Node)]
    return any(part.meta["val"].dtype in masks if "val" in part.meta else True for part in indices)


def _is_input(value: Any) -> bool:
    """Return whether a value is a tensor from outside, or a view of one."""
    while isinstance(value, fx.Node):
        if value.op in ("placeholder", _GETS):
            return True
        target = value.target
        if not isinstance(target, torch._ops.OpOverload):
            value = value.args[0] if value.args else None
            continue
        if not any(argument.alias_info for argument in target._schema.arguments):
            return False
        value = value.args[0]
    return False


def _lift(module: fx.GraphModule, call: Call, clock: Clock) -> list[Source]:
    """Turn the tensors that a graph holds into inputs, and return what gives them."""
    made = {id(tensor): function for tensor, function in clock.inputs}
    live = {id(call.problem._passes.live(name)): name for name in call.problem._passes.places.sites}
    found: dict[int, tuple[fx.Node, Source]] = {}
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    for node in list(module.graph.nodes):
        if node.op != _GETS:
            continue
        tensor = getattr(module, cast(str, node.target))
        if id(tensor) not in found:
            with module.graph.inserting_after(last):
                last = module.graph.placeholder(f"held_{len(found)}")
            source = _source(tensor, made.get(id(tensor)), live.get(id(tensor)))
            found[id(tensor)] = (last, source)
        node.replace_all_uses_with(found[id(tensor)][0])
        module.graph.erase_node(node)
    return [source for _, source in found.values()]


def _source(tensor: Tensor, make: Callable[[Moment], Tensor] | None, name: str | None) -> Source:
    if make is not None:
        return lambda call, moment: make(moment)
    if name is not None:
        return lambda call, moment: call.problem._passes.live(name)
    return lambda call, moment: tensor


def _tidy(graph: fx.Graph) -> None:
    """Take out copies that share memory, and transpositions of transpositions."""
    transposed = torch.ops.aten.t.default
    for node in list(graph.nodes):
        if node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is transposed and getattr(node.args[0], "target", None) is transposed:
            node.replace_all_uses_with(node.args[0].args[0])
    graph.eliminate_dead_code()


def moment_of(call: Call, draw: int | None) -> Moment:
    """Return what differs between a call and others of its kind.

    Args:
        call: The call.
        draw: Key that the estimator draws from, if it draws.
    """
    keys = {"state": call.state.key} | ({} if draw is None else {"draw": draw})
    return Moment(call.state.step, keys)
