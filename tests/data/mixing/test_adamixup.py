"""AdaMixUp: intervals, losses against float64 loops, where gradients reach."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

from steepest.core.objective import Batch
from steepest.data.mixing import AdaMixUp, IntrusionDiscriminator, PolicyRegionGenerator
from steepest.data.mixing.adamixup import coefficients, region
from steepest.losses import CompSumLoss, CrossEntropyLoss
from steepest.losses.classification.orthogonal_projection import CrossEntropyWithOPL
from steepest.nn.networks import Network, mlp


def setting(rows: int = 12, classes: int = 3, **options):
    torch.manual_seed(0)
    model = Network(mlp(4, width=8, depth=1), nn.Linear(8, classes)).double()
    method = AdaMixUp(mlp(4, width=8, depth=1), 8, classes, **({"seed": 0} | options)).double()
    # last layers of ordinary size, so that intervals differ from 1/3
    for layer in [*method.region.layers, *method.discriminator.layers]:
        nn.init.normal_(layer.weight, std=0.5)
    return model, method, torch.randn(rows, 4, dtype=torch.float64), torch.arange(rows) % classes


def policy_size(method: AdaMixUp, loss: torch.Tensor) -> float:
    found = torch.autograd.grad(loss, list(method.region.parameters()), retain_graph=True, allow_unused=True)
    return sum(0.0 if g is None else g.abs().sum().item() for g in found)


@pytest.mark.holds("adamixup", 1)
def test_interval_of_the_card():
    generator = PolicyRegionGenerator(mlp(4, width=8), 8)
    last = generator.layers[1]
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([1.0, 0.0, 0.0])
    abc = generator(torch.randn(5, 4), torch.randn(5, 4))
    assert abc[:, 0].tolist() == pytest.approx([math.e / (math.e + 2)] * 5, abs=2e-6)
    assert abc[0].tolist() == pytest.approx([0.5761, 0.2119, 0.2119], abs=5e-5)
    lam = coefficients(abc[:, :2], torch.full((5,), 0.5))
    assert lam.tolist() == pytest.approx([0.6821] * 5, abs=1e-4)


@pytest.mark.holds("adamixup", 1)
def test_zero_logits_give_the_middle_third():
    model, method, x, y = setting(rows=600)
    for layer in method.region.layers:
        nn.init.zeros_(layer.weight)
    out = method(model, x, y)
    assert (out.interval - 1 / 3).abs().max() < 1e-12
    lam = out.lam.detach().numpy()
    assert stats.kstest(lam, stats.uniform(1 / 3, 1 / 3).cdf).pvalue > 1e-3
    assert lam.min() >= 1 / 3 - 1e-12
    assert lam.max() <= 2 / 3 + 1e-12


@pytest.mark.holds("adamixup", 2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_intervals_and_coefficients_stay_inside(dtype, size):
    logits = (size * torch.randn(500, 3, generator=torch.Generator().manual_seed(1))).to(dtype)
    interval = region(logits)[:, :2]
    for u in (0.0, 0.5, 1 - 2**-24):
        lam = coefficients(interval, torch.full((500,), u, dtype=interval.dtype))
        a, b = interval.unbind(-1)
        assert ((a > 0) & (a <= lam) & (lam <= a + b) & (a + b < 1)).all()


@pytest.mark.holds("adamixup", 2)
def test_mixed_labels_sum_to_one_and_follow_the_coefficients():
    model, method, x, y = setting(rows=40)
    out = method(model, x, y)
    assert out.mixed_target.sum(-1).sub(1).abs().max() < 1e-12
    a, b = out.interval.unbind(-1)
    assert ((a < out.lam) & (out.lam < a + b)).all()
    assert out.interval.std(0).min() > 1e-3
    # each mixture is a pair of the first half: the partner is the row that explains it
    for i in range(20):
        lam = out.lam[i]
        second = (out.mixed[i] - lam * x[i]) / (1 - lam)
        j = (x[:20] - second).norm(dim=1).argmin()
        assert (x[j] - second).norm() < 1e-9
        label = torch.zeros(3, dtype=torch.float64)
        label[y[i]] += lam.item()
        label[y[j]] += 1 - lam.item()
        torch.testing.assert_close(out.mixed_target[i], label)


@pytest.mark.holds("adamixup", 3)
def test_both_losses_reach_the_policy():
    model, method, x, y = setting()
    out = method(model, x, y)
    assert policy_size(method, out.cls) > 1e-6
    assert policy_size(method, out.intrusion) > 1e-6
    total = torch.autograd.grad(out.loss, list(method.region.parameters()), retain_graph=True)
    parts = zip(*(torch.autograd.grad(o, list(method.region.parameters()), retain_graph=True) for o in out[1:3]))
    for whole, (one, two) in zip(total, parts):  # no sign is flipped
        torch.testing.assert_close(whole, one + two)


@pytest.mark.holds("adamixup", 3)
def test_without_discriminator_the_policy_learns_through_inputs_and_labels():
    model, method, x, y = setting(intrusion_weight=0.0)
    out = method(model, x, y)
    assert torch.equal(out.loss, out.cls)
    assert all(g is None for g in torch.autograd.grad(out.loss, list(method.discriminator.parameters()),
                                                      retain_graph=True, allow_unused=True))  # fmt: skip
    p = model(out.mixed)
    through_labels = nn.functional.cross_entropy(p.detach(), out.mixed_target)
    through_inputs = nn.functional.cross_entropy(p, out.mixed_target.detach())
    assert policy_size(method, through_labels) > 1e-6
    assert policy_size(method, through_inputs) > 1e-6
    # the gradient of the step is that of cross-entropy with mixed labels on mixed inputs
    clean = nn.functional.cross_entropy(model(x[:6]), y[:6])
    wanted = torch.autograd.grad((nn.functional.cross_entropy(p, out.mixed_target) + clean) / 2,
                                 list(method.region.parameters()), retain_graph=True)  # fmt: skip
    for a, b in zip(torch.autograd.grad(out.cls, list(method.region.parameters())), wanted):
        torch.testing.assert_close(a, b)


@pytest.mark.holds("adamixup", 4)
def test_a_fixed_unit_interval_is_mixup_beside_clean_samples():
    model, method, x, y = setting(rows=2000, interval=(0.0, 1.0))
    out = method(model, x, y)
    assert stats.kstest(out.lam.numpy(), "uniform").pvalue > 1e-3
    assert policy_size(method, out.loss) == 0
    log_p = model(out.mixed).log_softmax(-1)
    mixtures = -(out.mixed_target * log_p).sum(-1)
    clean = -model(x[:1000]).log_softmax(-1)[torch.arange(1000), y[:1000]]
    assert out.cls.item() == pytest.approx(torch.cat([mixtures, clean]).mean().item(), rel=1e-12)


@pytest.mark.holds("adamixup", 5)
def test_pairs_of_one_class_keep_a_one_hot_label():
    model, method, x, _ = setting()
    out = method(model, x, torch.full((12,), 2))
    eye = torch.eye(3, dtype=torch.float64)[2].expand(6, 3)
    torch.testing.assert_close(out.mixed_target, eye, rtol=0, atol=1e-15)
    assert out.lam.std() > 0.01


@pytest.mark.holds("adamixup", 6)
def test_batches_and_targets():
    model, method, x, y = setting()
    for rows in (2, 3, 5, 11):
        with pytest.raises(ValueError, match="even number of rows"):
            method(model, x[:rows], y[:rows])
    method.eval()  # the stream stays
    one_hot = torch.eye(3, dtype=torch.float64)[y]
    for found, wanted in zip(method(model, x, one_hot), method(model, x, y)):
        assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match="one-hot"):
        method(model, x, 0.5 * one_hot)
    with pytest.raises(ValueError, match="target"):
        method(model, x, y + 1)
    with pytest.raises(ValueError, match="backbone"):
        method(nn.Linear(4, 3), x, y)
    with pytest.raises(ValueError, match="loss of samples"):
        method.loss(model, Batch(x, y), CrossEntropyWithOPL())
    with pytest.raises(ValueError, match="interval"):
        setting(interval=(0.5, 0.6))


def test_losses_are_the_naive_loops():
    model, method, x, y = setting()
    out = method(model, x, y)
    rows = []
    for i in range(6):
        for value, label in ((out.mixed[i], out.mixed_target[i]), (x[i], torch.eye(3, dtype=torch.float64)[y[i]])):
            z = model(value).tolist()
            log_norm = math.log(sum(math.exp(v) for v in z))
            rows.append(sum(t * (log_norm - v) for t, v in zip(label.tolist(), z)))
    assert out.cls.item() == pytest.approx(sum(rows) / 12, rel=1e-12)
    binary = []
    for value, real in [*((v, 1) for v in x), *((v, 0) for v in out.mixed)]:
        z = method.discriminator(model.backbone(value)).tolist()
        binary.append(math.log(sum(math.exp(v) for v in z)) - z[real])
    assert len(binary) == 18
    assert out.intrusion.item() == pytest.approx(sum(binary) / 18, rel=1e-12)
    assert out.loss.item() == pytest.approx(sum(rows) / 12 + sum(binary) / 18, rel=1e-12)


def test_the_unseen_half_reaches_the_discriminator_only():
    model, method, x, y = setting()
    method.eval()
    moved, other = x.clone(), y.clone()
    moved[6:] += 1.0
    other[6:] = 0
    a, b = method(model, x, y), method(model, moved, other)
    assert torch.equal(a.cls, b.cls)
    assert a.intrusion != b.intrusion


def test_start_is_the_middle_third_and_the_policy_has_weights_of_its_own():
    torch.manual_seed(0)
    method = AdaMixUp(mlp(4, width=8), 8, 3, seed=0)
    a, b = method.policy(torch.randn(50, 4), torch.randn(50, 4))
    assert max((a - 1 / 3).abs().max(), (b - 1 / 3).abs().max()) < 1e-3
    names = {name.partition(".")[0] for name, _ in method.named_parameters()}
    assert names == {"region", "discriminator"}


def test_the_noise_is_normal_cut_at_two():
    kept = []

    class Seen(nn.Module):
        def forward(self, g):
            kept.append(g)
            return torch.zeros(len(g), 2)

    PolicyRegionGenerator(Seen(), 2)(torch.ones(3000, 1), torch.zeros(3000, 1), torch.Generator().manual_seed(0))
    noise = 2 * kept[0][:, 0]
    assert stats.kstest(noise.numpy(), stats.truncnorm(-2, 2).cdf).pvalue > 1e-3


def test_objectives_and_weights():
    model, method, x, y = setting()
    method.eval()
    plain = method.loss(model, Batch(x, y), CrossEntropyLoss())
    assert plain.item() == pytest.approx(method(model, x, y).loss.item(), rel=1e-12)
    assert method.loss(model, Batch(x, y), CompSumLoss(1.5)) != plain
    assert torch.allclose(method.loss(model, Batch(x, y, weight=torch.full((12,), 3.0)), CrossEntropyLoss()), plain)
    weight = torch.ones(12)
    weight[0] = 0.0
    out = method(model, x, y, weight=weight)
    moved = y.clone()
    moved[0] = (y[0] + 1) % 3
    assert torch.equal(method(model, x, moved, weight=weight).cls, out.cls)


def test_discriminator_labels_real_rows_one():
    discriminator = IntrusionDiscriminator(3, 4)
    discriminator.layers[1].bias.data = torch.tensor([-20.0, 20.0])  # says "real"
    real, mixed = torch.zeros(4, 3), torch.zeros(2, 3)
    assert discriminator.loss(real, mixed).item() == pytest.approx(40 * 2 / 6, rel=1e-3)
