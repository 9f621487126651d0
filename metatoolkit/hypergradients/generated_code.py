"""Code that Inductor generates for a flat graph of operators."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from metatoolkit.errors import brief

Run = Callable[..., Sequence[Tensor]]


def generate(
    graph: fx.GraphModule, inputs: Sequence[Tensor], cuda_graphs: bool = False
) -> Run | str:
    """Return a function that computes what a graph does, or why there is none, as a clause.

    Args:
        graph: Graph of operators without gradients; left as it is.
        inputs: Tensors of the layouts that the function shall take.
        cuda_graphs: Whether kernels on a GPU are recorded once and launched together.
    """
    from torch._inductor.compile_fx import compile_fx

    if (missing := _missing_compiler(inputs)) is not None:
        return missing
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = compile_fx(
                copy.deepcopy(graph),
                [tensor.detach() for tensor in inputs],
                config_patches={"triton.cudagraphs": True} if cuda_graphs else None,
            )
    except Exception as error:
        return f"Inductor failed ({brief(error)})"
    code: Run = run  # type: ignore[assignment]
    return _launched(code) if cuda_graphs else code


def _launched(run: Run) -> Run:
    """Return a function whose results outlive the next launch, which writes where they were."""

    def launch(*inputs: Tensor) -> Sequence[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        return [tensor.clone() for tensor in run(*inputs)]

    return launch


def _missing_compiler(inputs: Sequence[Tensor]) -> str | None:
    """Return which compiler is missing, as a clause."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    if any(tensor.is_cuda for tensor in inputs):
        return None if has_triton() else "Triton is not installed"
    try:
        get_cpp_compiler()
    except RuntimeError:
        return "there is no C++ compiler; install one, such as g++, or name it in CXX"
    return None
