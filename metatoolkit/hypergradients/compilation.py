"""Estimators whose whole call is compiled: what is compiled, when, and what is checked of it."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _len_torch_dispatch_stack

from metatoolkit.errors import (
    CompilationWarning,
    ConfigurationError,
    ReplayError,
    UnsupportedError,
    brief,
)
from metatoolkit.hypergradients.call_layout import Call, Key
from metatoolkit.hypergradients.generated_code import Run, generate
from metatoolkit.hypergradients.replay_check import unchecked
from metatoolkit.hypergradients.traced_graph import TracedCall, trace
from metatoolkit.hypergradients.traced_result import agree

if TYPE_CHECKING:
    from metatoolkit.hypergradients.base import Estimator, Hypergradient

Compile = bool | Literal["graph", "cuda_graphs"]
"""Whether calls are compiled: by Inductor, or to a graph whose operators are PyTorch's kernels."""

MOST_PROGRAMS = 8
"""Programs that an estimator compiles, after which calls of a new kind run without one."""

MOST_KINDS = 64
"""Kinds of calls that are kept in mind until a second one of them comes."""

_AS_GRAPH = "Its calls run as a graph of PyTorch's own kernels"


_off: ContextVar[bool] = ContextVar("off", default=False)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Let no call in the body be compiled: those that are made once, to compare or to measure.

    Yields:
        Nothing.
    """
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


@dataclasses.dataclass
class Program:
    """A compiled call.

    Attributes:
        traced: The graph, and how calls are made of it.
        run: Computes what the graph does.
        calls: Number of calls so far.
    """

    traced: TracedCall
    run: Run
    calls: int = 1


class Compiler:
    """The programs of one estimator, by what its calls are made of.

    A call of a new kind runs without a program, with all that a first call checks. The next one of
    that kind is traced, and what comes of it must agree with the call without a program, to 1e-5
    in float32 and 1e-10 in float64, of the norm. The 2nd, 4th, 8th ... call of a program runs
    without it, too: where its graph does not agree any more, something that it cannot see has
    changed, which is an error.
    """

    def __init__(self) -> None:
        self.programs: dict[Any, list[Program]] = {}
        self._seen: dict[Any, Sequence[Any]] = {}
        self._refused: set[Any] = set()
        self._warned: set[str] = set()
        self._compiled: Key = {}
        self._noted: Key = {}

    def __deepcopy__(self, memo: Any) -> Compiler:
        return Compiler()

    def __reduce__(self) -> tuple[Callable[[], Compiler], tuple[()]]:
        return Compiler, ()

    def call(self, call: Call, eager: Callable[[], Hypergradient]) -> Hypergradient:
        """Return the result of a call, compiled where that is possible.

        Args:
            call: The call.
            eager: Makes it without a program.

        Raises:
            ReplayError: A program gives another result than the call without it does by now.
        """
        estimator = call.estimator
        _check(estimator.compile)
        if (why := _carried(call)) is not None:
            self._warn(call, why)
            return eager()
        if _off.get() or _is_watched(call):
            return eager()
        given, key, pins = call.given()
        if (why := _strange(given, key["objects in the batches"])) is not None:
            self._warn(call, why)
            return eager()
        named = (*key.values(), estimator.compile)
        programs = self.programs.get(named, [])
        program = next((p for p in programs if p.traced.clock.agrees(call.state.step)), None)
        if program is not None:
            return self._run(program, call, given, eager)
        if named in self._refused:
            return eager()
        if named not in self._seen:
            self._note(call, named, key, pins)
            return eager()
        if sum(map(len, self.programs.values())) >= MOST_PROGRAMS:
            self._refused.add(named)
            self._warn(call, self._changing(key, bool(programs)))
            return eager()
        self._compiled = key
        return self._compile(named, call, given, eager)

    def _run(
        self, program: Program, call: Call, given: Sequence[Tensor], eager: Callable[[], Any]
    ) -> Hypergradient:
        program.calls += 1
        draws, state = call.estimator._draws, call.state
        if program.calls & (program.calls - 1) == 0:
            expected = eager()
            draw = None if draws is None else draws.current(state)
            inputs = program.traced.inputs(call, given, draw)
            graph = _result(program.traced, program.traced.graph, inputs, call)
            if graph is not None and not agree(expected, graph):
                raise ReplayError(
                    f"{_name(call)} was compiled, and its program gives another result than the "
                    "losses do by now: these, or the inner learner, read something beside their "
                    "arguments that has changed, where it cannot be seen (a number in another "
                    f"module, a file, an object's part). Results of the last {program.calls // 2} "
                    "calls may be wrong. Keep what changes in a buffer or in the batch, or set "
                    "compile=False."
                )
            return expected
        draw = None if draws is None else draws.upcoming(state)
        inputs = program.traced.inputs(call, given, draw)
        try:
            result = _result(program.traced, program.run, inputs, call)
        except (RuntimeError, IndexError) as error:
            # An error that is the call's own is raised here.
            found = eager()
            self._warn(call, f"a program failed ({brief(error)})")
            return found
        if result is None:
            return eager()
        if draws is not None:
            draws.advance(state)
        return result

    def _compile(
        self, named: Any, call: Call, given: Sequence[Tensor], eager: Callable[[], Any]
    ) -> Hypergradient:
        expected: Hypergradient = eager()
        draws = call.estimator._draws
        draw = None if draws is None else draws.current(call.state)
        try:
            traced = trace(call, draw)
        except UnsupportedError as error:
            self._refused.add(named)
            self._warn(call, str(error))
            return expected
        inputs = traced.inputs(call, given, draw)
        found = _result(traced, traced.graph, inputs, call)
        if found is None or not agree(expected, found):
            self._refused.add(named)
            self._warn(call, "the graph of a call gives other numbers than the call")
            return expected
        run: Run = traced.graph
        if call.estimator.compile != "graph" and not call.estimator.amplifies_rounding:
            generated = generate(traced.graph, inputs, call.estimator.compile == "cuda_graphs")
            if isinstance(generated, str):
                self._warn(call, generated, _AS_GRAPH)
            else:
                found = _result(traced, generated, inputs, call)
                if found is None or not agree(expected, found):
                    why = "code that is generated rounds otherwise, by more than 1e-5 of the result"
                    self._warn(call, why, _AS_GRAPH)
                else:
                    run = generated
        self.programs.setdefault(named, []).append(Program(traced, run))
        return expected

    def _note(self, call: Call, named: Any, key: Key, pins: Sequence[Any]) -> None:
        """Keep a kind of calls in mind, with what its identities belong to."""
        self._seen[named] = pins
        if len(self._seen) > MOST_KINDS:
            del self._seen[next(iter(self._seen))]
            if not self.programs:
                what = _gap(self._noted, key)
                self._warn(call, f"no two of {MOST_KINDS} calls are alike ({what} change)")
        self._noted = key

    def _changing(self, key: Key, same: bool) -> str:
        """Return that too much changes from call to call, as a clause."""
        if same:
            what = "the number of the step, which the losses or the inner learner read"
        else:
            what = _gap(self._compiled, key)
        return f"{MOST_PROGRAMS} programs were compiled, and yet another is needed ({what} change)"

    def _warn(self, call: Call, why: str, runs: str = "") -> None:
        if why in self._warned:
            return
        self._warned.add(why)
        runs = runs or "Such calls run without a program: the results are the same"
        warnings.warn(
            f"{_name(call)} with compile={call.estimator.compile!r}: {why}. {runs}.",
            CompilationWarning,
            stacklevel=5,
        )


def begin(estimator: Estimator | None, compile: Compile) -> None:
    """Let an estimator begin anew in a training, compiled or as it was made.

    Args:
        estimator: The estimator, or ``None``.
        compile: What its attribute is set to, unless ``False``.

    Raises:
        ConfigurationError: There is nothing to compile, or the value is unknown.
    """
    if compile is not False:
        _check(compile)
        if estimator is None:
            raise ConfigurationError(
                f"compile is {compile!r} without an estimator; inner steps alone are not compiled."
            )
        estimator.compile = compile
    if estimator is not None:
        estimator.restart()


def _gap(before: Key, key: Key) -> str:
    return ", ".join(name for name, part in key.items() if before.get(name) != part)


def _name(call: Call) -> str:
    return type(call.estimator).__name__


def _check(compile: Any) -> None:
    if compile is not True and compile not in ("graph", "cuda_graphs"):
        raise ConfigurationError(
            f"compile is {compile!r}; accepted: False, True, 'graph', 'cuda_graphs'."
        )


def _carried(call: Call) -> str | None:
    """Return why no call of an estimator can be compiled, as a clause."""
    if call.estimator.windows or call.estimator.carries:
        return "its calls go on from what a former one left, which a program does not"
    return None


def _is_watched(call: Call) -> bool:
    """Return whether something looks on that a program would hide from."""
    problem = vars(call.problem)
    return (
        not all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())
        or _len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or call.problem.watch is not None
        or "evaluate_train" in problem
        or "evaluate_valid" in problem
    )


def _strange(given: Sequence[Tensor], other: str) -> str | None:
    """Return what is given that a program cannot take, as a clause."""
    if other:
        return f"the batches hold a {other}, whose content a program does not see; give tensors"
    plain = (Tensor, torch.nn.Parameter)
    if all(type(t) in plain and t.layout is torch.strided for t in given):
        return None
    return "the state or the batches hold a tensor that is no plain dense one"


def _result(
    traced: TracedCall, run: Run, inputs: Sequence[Tensor], call: Call
) -> Hypergradient | None:
    with torch.no_grad(), unchecked():
        return traced.finish(call, run(*inputs))
