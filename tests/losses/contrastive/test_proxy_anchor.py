"""The proxy anchor loss against loops in float64 and against another library, through the head."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss as PeerLoss

from steepest.core.heads import NormedLinear
from steepest.core.objective import TaskInfo
from steepest.losses.contrastive import ProxyAnchorLoss, proxy_anchor_loss

pytestmark = pytest.mark.holds("proxy-anchor")
TARGET = torch.tensor([1, 0, 1, 3, 1, 0])


def drawn(classes=5, width=4):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(TARGET), width, generator=generator, dtype=torch.float64)
    head = NormedLinear(width, classes).double()
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, width, generator=generator, dtype=torch.float64))
    return features, head


def by_definition(cosines, target, margin, alpha):
    classes, near, far = cosines.shape[1], [], []
    for c in range(classes):
        own = [float(s) for s, y in zip(cosines[:, c], target) if y == c]
        other = [float(s) for s, y in zip(cosines[:, c], target) if y != c]
        near += [math.log(1 + sum(math.exp(-alpha * (s - margin)) for s in own))] if own else []
        far.append(math.log(1 + sum(math.exp(alpha * (s + margin)) for s in other)))
    return sum(near) / len(near) + sum(far) / classes


@pytest.mark.parametrize(("margin", "alpha"), [(0.1, 32.0), (0.4, 8.0)])
def test_it_is_its_definition(margin, alpha):
    features, head = drawn()
    cosines = head(features).detach()
    wanted = by_definition(cosines, TARGET, margin, alpha)
    assert proxy_anchor_loss(cosines, TARGET, margin=margin, alpha=alpha).item() == pytest.approx(wanted, rel=1e-10)


def test_values_and_gradients_are_those_of_the_peer():
    features, head = drawn()
    peer = PeerLoss(5, 4, margin=0.1, alpha=32).double()
    with torch.no_grad():
        peer.proxies.copy_(head.weight)
    features.requires_grad_()
    one, two = ProxyAnchorLoss()(head(features), TARGET), peer(features, TARGET)
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(
        torch.autograd.grad(one, (features, head.weight)), torch.autograd.grad(two, (features, peer.proxies))
    )


def test_proxies_are_the_head_and_no_rows_give_0():
    loss = ProxyAnchorLoss()
    head = loss.head(4, TaskInfo("multiclass", 20, 5, (4, 4, 4, 4, 4), feature_dim=4))
    assert isinstance(head, NormedLinear)
    assert not list(loss.parameters())
    cosines = torch.zeros(0, 5, requires_grad=True)
    value = loss(cosines, torch.zeros(0, dtype=torch.long))
    assert value == 0
    assert value.requires_grad


def test_half_features_and_zero_rows_are_finite():
    head = NormedLinear(4, 3)
    features = torch.zeros(2, 4, dtype=torch.float16, requires_grad=True)
    value = ProxyAnchorLoss()(head(features), torch.tensor([0, 1]))
    assert value.dtype == torch.float32
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(value, (features, head.weight)))


def test_numbers_out_of_range_are_refused():
    for options in ({"margin": -0.1}, {"alpha": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            ProxyAnchorLoss(**options)
