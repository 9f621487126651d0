"""A prefix whose features are not the same for all candidates is refused."""

import numpy as np
import pytest
import torch

from metatoolkit.errors import ConfigurationError
from metatoolkit.hypergradients import GuidedEvoGrad
from metatoolkit.hypergradients.prefix import _refuse_dependence
from tests.hypergradients.test_prefix import HEAD, Setup, encode

F64 = torch.float64


def with_meta(model, meta, batch):
    return {**batch, "hidden": meta(model.encoder(batch["inputs"]))}


def with_head(model, meta, batch):
    return {**batch, "hidden": model.encoder(batch["inputs"]), "logits": model.head[1].bias + 1}


def with_detached_head(model, meta, batch):
    return {**batch, "hidden": model.encoder(batch["inputs"]), "bias": model.head[1].bias.detach()}


def with_data(model, meta, batch):
    return {**batch, "hidden": model.encoder(batch["inputs"]), "bias": model.head[1].bias.data}


@torch.no_grad()
def without_graph(model, meta, batch):
    return {**batch, "hidden": meta(model.encoder(batch["inputs"]))}


def meta_itself(model, meta, batch):
    return {**batch, "hidden": model.encoder(batch["inputs"]), "meta": next(meta.parameters())}


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (with_meta, r"prefix depends on the meta-parameters networks\.0\.0\.weight"),
        (without_graph, r"the meta-parameters networks\.0\.0\.weight"),
        (meta_itself, r"the meta-parameters networks\.0\.0\.weight, so"),
        (with_head, r"inner parameters that are perturbed, head\.1\.bias, so.*name in perturb"),
        (with_detached_head, r"inner parameters that are perturbed, head\.1\.bias"),
        (with_data, r"inner parameters that are perturbed, head\.1\.bias"),
    ],
)
def test_features_that_differ_between_candidates_are_refused(prefix, message):
    setup = Setup()
    with pytest.raises(ConfigurationError, match=message):
        setup.evograd(**HEAD, prefix=prefix)
    with pytest.raises(ConfigurationError, match=message):
        setup.evograd(GuidedEvoGrad, **HEAD, prefix=prefix)
    assert torch.is_grad_enabled()


def test_a_prefix_below_all_that_is_perturbed_only():
    setup = Setup()
    with pytest.raises(ConfigurationError, match=r"perturbed, encoder\.0\.weight.*name in perturb"):
        setup.evograd(prefix=encode)


def test_a_prefix_may_compute_more_than_it_returns():
    def generous(model, meta, batch):
        features = encode(model, meta, batch)
        meta(model.head[1](features["hidden"].repeat(1, 2)[:, :8]).repeat(1, 3)[:, :8])
        with torch.no_grad():
            return features

    setup = Setup(dropout=0.0)
    plain, cached = setup.evograd(**HEAD), setup.evograd(**HEAD, prefix=generous)
    for name, gradient in plain.gradient.items():
        torch.testing.assert_close(cached.gradient[name], gradient, rtol=1e-10, atol=1e-16)


READINGS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(100 * x.sum()),
    "tolist": lambda x: sum(x.flatten().tolist()),
    "format": lambda x: float(f"{x.sum():.3f}"),
    "numpy": lambda x: float(x.detach().numpy().sum()),
    "asarray": lambda x: float(np.asarray(x.data).sum()),
    "detach_": lambda x: x.sum().mul(2).detach_(),
    "tensor": lambda x: torch.tensor(x.sum()),
    "new_tensor": lambda x: x.new_tensor(x.sum()),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS.keys())
def test_numbers_that_are_read_hide_no_dependence(read):
    def of_head(model, meta, batch):
        return {**batch, "hidden": model.encoder(batch["inputs"]) * read(model.head[1].bias)}

    def of_meta(model, meta, batch):
        with torch.no_grad():
            return {
                **batch,
                "hidden": model.encoder(batch["inputs"]) * read(next(meta.parameters())),
            }

    def of_neither(model, meta, batch):
        if "hidden" in batch:
            return batch
        hidden = model.encoder(batch["inputs"])
        return {**batch, "hidden": hidden * read(model.encoder[0].bias) * read(batch["inputs"])}

    with pytest.raises(ConfigurationError, match=r"perturbed, head\.1\.bias, so"):
        Setup().evograd(**HEAD, prefix=of_head)
    with pytest.raises(ConfigurationError, match=r"the meta-parameters networks\.0\.0\.weight, so"):
        Setup().evograd(**HEAD, prefix=of_meta)
    result = Setup().evograd(**HEAD, prefix=of_neither)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in result.gradient.values())


def test_features_of_inference_mode_are_refused():
    with pytest.raises(ConfigurationError, match=r"torch\.inference_mode.*torch\.no_grad"):
        Setup().evograd(**HEAD, prefix=torch.inference_mode()(encode))


def test_the_first_five_names_are_told():
    for count, end in ((5, "p4, so"), (6, r"p4, \.\.\., so")):
        meta = {f"p{i}": torch.ones((), requires_grad=True) for i in range(count)}
        unused = {"q": torch.ones((), requires_grad=True)}
        features = [{"a": sum(meta.values()), "b": 3}, torch.arange(3)]
        with pytest.raises(ConfigurationError, match=f"the meta-parameters p0, p1, p2, p3, {end}"):
            _refuse_dependence(features, unused | meta, {})
        with pytest.raises(ConfigurationError, match=f"perturbed, p0, p1, p2, p3, {end}"):
            _refuse_dependence(features, unused, meta)
    _refuse_dependence(features, unused, unused)
    _refuse_dependence([torch.ones(2), 3, None], meta, meta)
