"""Two heads on one backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.nn.dual_head import DualHead

FEATURES = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("aux", ["linear", "mlp"])
def test_both_heads_in_training_and_one_afterwards(aux):
    torch.manual_seed(1)
    head = DualHead(5, 3, aux)
    z, u = head(FEATURES)
    assert z.shape == u.shape == (6, 3)
    assert not torch.equal(z, u)
    head.auxiliary.register_forward_hook(lambda *_: pytest.fail("the auxiliary head ran"))
    assert torch.equal(head.eval()(FEATURES), z)


def test_the_auxiliary_network():
    layers = DualHead(5, 3, "mlp").auxiliary
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Dropout, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert (layers[0].out_features, layers[1].p, layers[4].out_features) == (200, 0.1, 3)
    assert isinstance(DualHead(5, 3).auxiliary, nn.Linear)


def test_refusals():
    for options in ({"in_features": 0}, {"num_classes": 0}, {"aux": "conv"}):
        with pytest.raises(ValueError, match=next(iter(options)) + ": expected"):
            DualHead(**{"in_features": 5, "num_classes": 3, **options})
    with pytest.raises(ValueError, match=r"features: expected shape \(\*, 5\)"):
        DualHead(5, 3)(torch.zeros(2, 4))
