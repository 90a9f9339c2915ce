"""One-versus-rest hinge losses, the head that carries its penalty, and the published net."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.svm import LinearSVC
from torch import nn

from steepest.core.objective import TaskInfo
from steepest.losses.classification.cnn_svm import CNNSVM, OneVsRestHingeLoss, SVMHead, squared_hinge_loss

Z = torch.tensor([[2.0, -0.5, 0.3], [-0.2, 0.1, 0.4]], dtype=torch.float64)
Y = torch.tensor([0, 1])
LOGITS = 1.5 * torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = torch.arange(9) % 4


def naive(logits, target, p):
    rows = []
    for row, y in zip(logits.tolist(), target.tolist()):
        rows.append([max(0.0, 1 - (z if k == y else -z)) ** p for k, z in enumerate(row)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.holds("cnn-svm", 1)
def test_values_by_hand():
    assert squared_hinge_loss(Z, Y).item() == pytest.approx(0.891667, abs=5e-7)
    assert squared_hinge_loss(Z, Y, reduction="sum").item() == pytest.approx(5.35)
    assert squared_hinge_loss(Z, Y, p=1).item() == pytest.approx(0.816667, abs=5e-7)


@pytest.mark.holds("cnn-svm", 1)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("C", [0.3, 1.0])
def test_equals_a_loop(p, C):
    cells = C * naive(LOGITS, TARGET, p)
    torch.testing.assert_close(squared_hinge_loss(LOGITS, TARGET, p=p, C=C, reduction="none"), cells)
    torch.testing.assert_close(squared_hinge_loss(LOGITS, TARGET, p=p, C=C), cells.mean())
    torch.testing.assert_close(OneVsRestHingeLoss(p, C, reduction="none")(LOGITS, TARGET), cells.mean(-1))
    weight = torch.arange(9.0, dtype=torch.float64)
    wanted = (weight[:, None] * cells).sum() / 4 / weight.sum()
    torch.testing.assert_close(squared_hinge_loss(LOGITS, TARGET, p=p, C=C, weight=weight), wanted)
    torch.testing.assert_close(OneVsRestHingeLoss(p, C)(LOGITS, TARGET, weight=weight), wanted)


def head_of(weight, C=1.0, p=2, reduction="mean"):
    head = SVMHead(weight.shape[1], weight.shape[0], C, p, reduction).to(weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.zero_()
    return head


@pytest.mark.holds("cnn-svm", 2)
def test_head_adds_half_the_squared_norm_of_its_weight():
    weight = torch.tensor([[1.0, 2.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    head = head_of(weight)
    assert head.loss(Z, Y).item() == pytest.approx(4.391667, abs=5e-7)
    assert head_of(weight, p=1).loss(Z, Y).item() == pytest.approx(0.816667 + 3.5, abs=5e-7)
    assert head_of(weight, C=2.0, reduction="sum").loss(Z, Y).item() == pytest.approx(10.7 + 3.5)
    with torch.no_grad():
        head.bias.fill_(9.0)
    assert head.penalty().item() == pytest.approx(3.5)


@pytest.mark.holds("cnn-svm", 3)
def test_gradient():
    z = Z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(squared_hinge_loss(z, Y), z)
    wanted = slope.new_tensor([[0.0, 0.1667, 0.4333], [0.2667, -0.3, 0.4667]])
    torch.testing.assert_close(slope, wanted, atol=5e-5, rtol=0)
    signs = slope.new_tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])
    torch.testing.assert_close(slope, -2 * signs * naive(Z, Y, 1) / 6)


@pytest.mark.holds("cnn-svm", 4)
@pytest.mark.parametrize("p", [1, 2])
def test_zero_exactly_beyond_the_margin(p):
    beyond = torch.tensor([[1.0, -1.0, -7.0], [-1.5, 3.0, -1.0]], dtype=torch.float64)
    assert squared_hinge_loss(beyond, Y, p=p).item() == 0.0
    for i in range(2):
        for k in range(3):
            inside = beyond.clone()
            inside[i, k] = (0.99 if k == Y[i] else -0.99) * 1.0
            assert squared_hinge_loss(inside, Y, p=p).item() > 0
    z = LOGITS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(squared_hinge_loss(z, TARGET, p=p), z)
    free = naive(LOGITS, TARGET, 1) == 0
    assert free.any()
    assert not free.all()
    assert torch.equal(slope == 0, free)


def fitted(features, target, classes, C, reduction="mean"):
    """The head's minimum without a bias, by L-BFGS."""
    head = head_of(torch.zeros(classes, features.shape[1], dtype=torch.float64), C, reduction=reduction)
    optimizer = torch.optim.LBFGS(
        [head.weight], max_iter=300, tolerance_grad=1e-11, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = head.loss(head(features), target)
        value.backward()
        return value

    optimizer.step(closure)
    return head.weight.detach()


@pytest.mark.holds("cnn-svm", 5)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_agrees_with_linear_svc(classes, reduction):
    """The mean over N K cells makes C here N K times that of scikit-learn, whose hinge is summed."""
    generator = torch.Generator().manual_seed(3)
    target = torch.arange(30) % classes
    centres = torch.randn(classes, 3, generator=generator, dtype=torch.float64)
    features = centres[target] + torch.randn(30, 3, generator=generator, dtype=torch.float64)
    peer = LinearSVC(C=0.2, loss="squared_hinge", fit_intercept=False, tol=1e-10, max_iter=100_000, random_state=0)
    peer.fit(features.numpy(), target.numpy())
    found = fitted(features, target, classes, 0.2 * 30 * classes if reduction == "mean" else 0.2, reduction)
    coefficients = torch.from_numpy(peer.coef_)
    if classes == 2:  # one machine there; here a second one with the opposite weights
        coefficients = torch.cat([-coefficients, coefficients])
    torch.testing.assert_close(found, coefficients, atol=1e-6, rtol=0)


@pytest.mark.holds("cnn-svm", 5)
@pytest.mark.parametrize("p", [1, 2])
def test_opposite_logits_are_one_machine(p):
    scores, target = LOGITS[:, 0], TARGET % 2
    pairs = torch.stack([-scores, scores], -1)
    for reduction in ("none", "mean"):
        one = OneVsRestHingeLoss(p, reduction=reduction)(scores, target)
        torch.testing.assert_close(OneVsRestHingeLoss(p, reduction=reduction)(pairs, target), one)
    assert OneVsRestHingeLoss(p).predict(scores).tolist() == OneVsRestHingeLoss(p).predict(pairs).tolist()


@pytest.mark.holds("cnn-svm", 6)
def test_small_factor_shrinks_the_weight_to_zero():
    generator = torch.Generator().manual_seed(4)
    features, target = torch.randn(20, 3, generator=generator, dtype=torch.float64), torch.arange(20) % 3
    sizes = [float(fitted(features, target, 3, C).norm()) for C in (10.0, 1.0, 0.1, 1e-2, 1e-4, 0.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0.1
    assert sizes[-2] < 1e-4
    assert sizes[-1] == 0.0


@pytest.mark.holds("cnn-svm", 6)
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match="target: expected"):
        squared_hinge_loss(Z, torch.tensor([0, label]))
    with pytest.raises(ValueError, match="target: expected"):
        squared_hinge_loss(Z[:, 0], torch.tensor([0, label]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: squared_hinge_loss(Z, Y, p=3),
        lambda: squared_hinge_loss(Z, Y, C=-1.0),
        lambda: squared_hinge_loss(Z, Y, reduction="median"),
        lambda: squared_hinge_loss(Z[:, :1], torch.zeros(2, dtype=torch.long)),
        lambda: squared_hinge_loss(Z, Y[:1]),
        lambda: OneVsRestHingeLoss(p=0),
        lambda: SVMHead(3, 1),
        lambda: SVMHead(3, 2, C=-1.0),
        lambda: SVMHead(3, 2, reduction="none"),
        lambda: CNNSVM(image_size=3),
        lambda: CNNSVM(num_classes=1),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError, match=": expected "):
        call()


def test_one_machine_for_two_classes():
    info = TaskInfo("binary", 9, 2, (5, 4), feature_dim=6)
    loss = OneVsRestHingeLoss.from_task(info, p=1)
    assert loss.head(6, info)(torch.zeros(4, 6)).shape == (4,)
    assert loss.probabilities(LOGITS) is None


def test_published_net():
    net = CNNSVM()
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert shapes == [(32, 1, 5, 5), (64, 32, 5, 5), (1024, 3136), (10, 1024)]
    x = torch.rand(3, 1, 28, 28)
    assert net(x).shape == (3, 10)
    assert net.backbone(x).shape == (3, 1024)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_net_trains_and_its_penalty_is_of_the_last_layer_only():
    torch.manual_seed(0)
    net = CNNSVM(3, channels=2, image_size=8, C=5.0, p=1)
    x, y = torch.rand(6, 2, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    logits = net(x)
    weight = torch.tensor([1.0, 0.0, 1.0, 2.0, 1.0, 1.0])
    hinge = squared_hinge_loss(logits, y, p=1, C=5.0, weight=weight)
    torch.testing.assert_close(net.loss(logits, y, weight=weight), hinge + 0.5 * net.head.weight.square().sum())
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = net.loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert isinstance(net.head, nn.Linear)
