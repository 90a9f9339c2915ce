"""The Gramian of samples' gradients is that of a loop over the samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.gradients import SampleGramian, UPGrad, iwrm


class Tied(nn.Module):
    """One layer twice, and its weight once more elsewhere."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3, bias=False)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(self.first(self.first(x).tanh()).tanh()))


def frozen_weight():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "frozen": (frozen_weight, (6,)),
    "norm": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3, bias=False)), (6,)),
    "rows of features": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Flatten(), nn.Linear(8, 3)), (2, 6)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2), nn.GroupNorm(3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
        ),
        (2, 6, 6),
    ),
    "evaluated batch norm": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval(), (6,)),
    "tied": (Tied, (6,)),
}


def setting(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    return make().double(), torch.randn(5, *shape, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])


def jacobian_of(model, x, y):
    rows = []
    for one, label in zip(x, y):
        loss = nn.functional.cross_entropy(model(one.unsqueeze(0)), label.unsqueeze(0))
        own = [p for p in model.parameters() if p.requires_grad]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, own)]))
    return torch.stack(rows)


@pytest.mark.holds("sample-gramian")
@pytest.mark.parametrize("name", MODELS)
def test_as_a_loop_over_samples(name):
    model, x, y = setting(name)
    jacobian = jacobian_of(model, x, y)
    with SampleGramian(model) as gramian:
        losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    torch.testing.assert_close(gramian(losses), jacobian @ jacobian.T)
    assert not any(module._forward_hooks for module in model.modules())
    (UPGrad().weights(gramian(losses)) @ losses).backward()
    own = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(own, UPGrad()(jacobian))


def test_the_same_step_as_with_the_jacobian():
    model, x, y = setting("linear")
    iwrm(nn.functional.cross_entropy(model(x), y, reduction="none"))
    torch.testing.assert_close(
        torch.cat([p.grad.flatten() for p in model.parameters()]), UPGrad(reg_eps=1e-4)(jacobian_of(model, x, y))
    )


def test_what_it_refuses():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    with (
        pytest.raises(ValueError, match="model: expected no layer that joins samples, as '1' does"),
        SampleGramian(model),
    ):
        model(torch.zeros(3, 6))
    assert not any(module._forward_hooks for module in model.modules()), "hooks left behind"
    with SampleGramian(model[0]) as gramian:
        losses = model[0](torch.zeros(3, 6))[:, 0]
    with pytest.raises(ValueError, match="losses: expected one loss for each sample"):
        gramian(losses[:2])
    with pytest.raises(ValueError, match="losses: expected losses of a forward pass within"):
        SampleGramian(model)(losses)
    with pytest.raises(TypeError, match="model: expected a module"):
        SampleGramian(model.parameters())
    lstm = nn.LSTM(3, 4)
    with pytest.raises(ValueError, match="layers that take and give tensors of samples"), SampleGramian(lstm):
        lstm(torch.zeros(2, 1, 3))
