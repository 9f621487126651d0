import torch

from baselines import frozen_weights, plain, uniform_weights
from metatoolkit.metaparameters import WeightNet


def test_constant_weights_make_the_plain_loss():
    torch.manual_seed(0)
    model, meta = torch.nn.Linear(3, 4), WeightNet()
    batch = torch.randn(7, 3), torch.randint(4, (7,))
    expected = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    assert torch.equal(plain(model, meta, batch), expected)
    assert torch.equal(uniform_weights(model, meta, batch), expected)
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.zero_()
    torch.testing.assert_close(frozen_weights(model, meta, batch), expected)
