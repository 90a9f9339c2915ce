"""EnsLoss: the derivatives it draws, and the stream that it draws them from."""

import copy

import pytest
import torch
from scipy.special import inv_boxcox

from steepest.core.objective import TaskInfo
from steepest.losses.classification.ensloss import EnsLoss, inverse_box_cox, sample_loss_derivatives

SCORES = torch.tensor([2.0, -0.5, 0.3, -1.0], dtype=torch.float64)
TARGET = torch.tensor([1, 1, 0, 0])
MARGINS = torch.tensor([2.0, -0.5, -0.3, 1.0], dtype=torch.float64)
Z = torch.tensor([0.5, -1.0, 0.0, -2.0], dtype=torch.float64)
LAMBDAS = (-1.0, -0.4, -1e-3, 0.0, 1e-3, 0.4, 1.0)


def draws(seed: int, rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, rows, generator=generator, dtype=torch.float64) * torch.tensor([[2.0], [1.0]]))


@pytest.mark.holds("ensloss", 1)
@pytest.mark.parametrize(
    ("lam", "wanted", "value"),
    [(0.0, [-0.06767, -1, -1, -0.36788], 0.0742), (-1.0, [-0.16667, -1, -1, -0.5], -0.0083)],
)
def test_by_hand(lam, wanted, value, monkeypatch):
    g = sample_loss_derivatives(MARGINS, Z, lam)
    torch.testing.assert_close(g, g.new_tensor(wanted), atol=1e-5, rtol=0)
    loss = EnsLoss(seed=0)
    loss.lam = lam
    monkeypatch.setattr(loss.stream, "normal", lambda *shape, dtype: Z.to(dtype))
    assert loss(SCORES, TARGET).item() == pytest.approx(value, abs=5e-5)


@pytest.mark.holds("ensloss", 1)
@pytest.mark.parametrize("lam", LAMBDAS)
def test_transform_agrees_with_scipy_and_ends_at_zero_or_infinity(lam):
    z = torch.linspace(-4, 4, 41, dtype=torch.float64)
    inside = 1 + lam * z > 1e-9
    found = inverse_box_cox(z, lam)
    wanted = torch.as_tensor(inv_boxcox(z[inside].numpy(), lam))
    torch.testing.assert_close(found[inside], wanted)
    assert not found.isnan().any()
    beyond = found[1 + lam * z <= 0]
    assert (beyond == (0.0 if lam > 0 else torch.inf)).all()


@pytest.mark.holds("ensloss", 2, 3)
@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("seed", range(3))
def test_derivatives_are_those_of_a_convex_calibrated_loss(lam, seed):
    s, z = draws(seed)
    g = sample_loss_derivatives(s, z, lam)
    assert (g <= -1e-6).all()
    assert (g >= -1 - 1e-6).all()
    order = s.argsort()
    low = order[s[order] <= 1]
    assert (g[low].diff() >= 0).all()
    assert g[s.argmin()] == g.min()


@pytest.mark.holds("ensloss", 3)
@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_the_only_coupling(seed):
    s, z = draws(seed)
    g = sample_loss_derivatives(s, z, 0.3)
    shuffled = torch.randperm(len(s), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(sample_loss_derivatives(s[shuffled], z, 0.3), g[shuffled])
    assert torch.equal(sample_loss_derivatives(s, z[shuffled], 0.3), g)
    # a change of margins below 1 that keeps their order moves nothing
    squeezed = torch.where(s < 1, 1 - (1 - s) ** 3, s)
    assert torch.equal(sample_loss_derivatives(squeezed, z, 0.3), g)


def test_ties_keep_their_order():
    s = torch.zeros(40, dtype=torch.float64)
    g = sample_loss_derivatives(s, draws(0)[1], 0.3)
    assert (g.diff() >= 0).all()


@pytest.mark.holds("ensloss", 4)
def test_same_stream_gives_the_same_bits_in_every_precision_and_on_every_device():
    a, b = EnsLoss(seed=5), EnsLoss(seed=99)
    a(SCORES, TARGET)
    b.load_state_dict(a.state_dict())
    twin = copy.deepcopy(a)
    assert a(SCORES, TARGET) == b(SCORES, TARGET) == twin(SCORES, TARGET)
    assert a(SCORES, TARGET) != EnsLoss(seed=5)(SCORES, TARGET)
    s, z = draws(1)
    on = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for device in on:
        g = sample_loss_derivatives(s.to(device), z.to(device), -0.7).cpu()
        torch.testing.assert_close(g, sample_loss_derivatives(s, z, -0.7), rtol=1e-12, atol=0)
    coarse = EnsLoss(seed=5)(SCORES.float(), TARGET)
    torch.testing.assert_close(coarse, EnsLoss(seed=5)(SCORES, TARGET).float())


@pytest.mark.holds("ensloss", 5)
@pytest.mark.parametrize("lam", [-0.8, 0.0, 0.8])
@pytest.mark.parametrize("target_type", [torch.long, torch.bool, torch.float64])
def test_backward_gives_exactly_g_y_over_b(lam, target_type):
    s, z = draws(2, 64)
    target = (torch.arange(64) % 2).to(target_type)
    y = torch.arange(64) % 2 * 2.0 - 1
    loss = EnsLoss(seed=7)
    loss.lam = lam
    z = loss.stream.__deepcopy__({}).normal(64, dtype=torch.float64)
    scores = s.clone().requires_grad_()
    loss(scores, target).backward()
    assert torch.equal(scores.grad, sample_loss_derivatives(y * s, z, lam) / 64 * y)


@pytest.mark.holds("ensloss", 6)
@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)),
        (torch.tensor([0.0, torch.nan]), torch.tensor([0, 1])),
        (torch.zeros(2), torch.tensor([-1, 1])),
        (torch.zeros(2), torch.tensor([0.5, 1.0])),
    ],
)
def test_refused(scores, target):
    with pytest.raises(ValueError, match=": expected "):
        EnsLoss(seed=0)(scores, target)


def test_nan_margins_are_refused():
    with pytest.raises(ValueError, match="margins: expected numbers"):
        sample_loss_derivatives(torch.tensor([torch.nan]), torch.zeros(1))


def test_lambda_starts_at_zero_and_is_redrawn_each_period():
    loss = EnsLoss.from_task(TaskInfo("binary", 10, 2, (5, 5), seed=3), period=3)
    seen = []
    for epoch in range(1, 10):
        loss.start_epoch(epoch, 9)
        seen.append(loss.lam)
    assert seen[:3] == [0.0] * 3
    assert seen[3] == seen[5]
    assert seen[6] == seen[8]
    assert len(set(seen)) == 3
    assert all(-1 <= lam <= 1 for lam in seen)


def test_eval_moves_neither_lambda_nor_the_stream():
    loss = EnsLoss(period=1, seed=3).eval()
    first = loss(SCORES, TARGET)
    loss.start_epoch(2, 3)
    assert loss.lam == 0.0
    assert loss(SCORES, TARGET) == first
