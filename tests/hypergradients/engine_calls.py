"""Backward passes that a call takes, by whichever function of torch or of this toolkit."""

import torch

from metatoolkit.stateless import backward


def watch(monkeypatch, see):
    """Call ``see(inputs, create_graph)`` at each backward pass.

    Args:
        monkeypatch: The fixture.
        see: Called with the tensors that are differentiated in, and whether a graph is built.
    """
    real = torch.autograd.graph._engine_run_backward

    def seen(outputs, cotangents, retain_graph, create_graph, inputs, **rest):
        see(inputs, create_graph)
        return real(outputs, cotangents, retain_graph, create_graph, inputs, **rest)

    for module in (torch.autograd, backward):
        assert module._engine_run_backward is real
        monkeypatch.setattr(module, "_engine_run_backward", seen)
