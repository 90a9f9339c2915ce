"""Hessians and Gauss-Newton matrices against closed forms and dense ones, and what operators must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from steepest.core.curvature import GaussNewton, Hessian, Jacobian, Preconditioned, adam_diagonal, hessian_product


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False).double()
    layer.weight.data = draw(outputs, inputs)
    return layer


def mlp(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def dense(loss, params):
    """The Hessian by a loop over its rows."""
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, create_graph=True)])
    rows = [torch.autograd.grad(s, params, retain_graph=True, materialize_grads=True) for s in slope]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def least_squares():
    x, y = draw(16, 5, seed=1), draw(16, 1, seed=2)
    return linear(5, 1), nn.MSELoss(), x, y, 2 / 16 * x.T @ x


def logistic():
    x, y = draw(16, 5, seed=3), (draw(16, 1, seed=4) > 0).double()
    model = linear(5, 1)
    p = model(x).detach().sigmoid().flatten()
    return model, nn.BCEWithLogitsLoss(), x, y, (x.T * (p * (1 - p))) @ x / 16


def softmax(**options):
    model, x, y = linear(4, 3), draw(12, 4, seed=5), torch.arange(12) % 3
    loss = nn.CrossEntropyLoss(**options)
    p = model(x).detach().softmax(1)
    weight = torch.ones(12).double() if loss.weight is None else loss.weight[y]
    smooth = 0.0 if loss.weight is None else float(loss.weight.mean())
    rows = (1 - loss.label_smoothing) * weight + loss.label_smoothing * (smooth or 1.0)
    rows, weight = rows * (y != loss.ignore_index), weight * (y != loss.ignore_index)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    whole = sum(r * torch.kron(b, torch.outer(v, v)) for r, b, v in zip(rows, blocks, x))
    return model, loss, x, y, whole / (weight.sum() if loss.reduction == "mean" else 1.0)


CLOSED_FORMS = {
    "squares": least_squares,
    "logistic": logistic,
    "softmax": softmax,
    "softmax, a class ignored, the others weighted": lambda: softmax(
        ignore_index=0, weight=torch.tensor([1.0, 2.0, 5.0]).double()
    ),
    "softmax, smooth labels, a sum": lambda: softmax(label_smoothing=0.2, reduction="sum"),
    "softmax, smooth labels, weighted": lambda: softmax(
        label_smoothing=0.2, weight=torch.tensor([1.0, 2.0, 5.0]).double()
    ),
}


@pytest.mark.parametrize("case", CLOSED_FORMS)
@pytest.mark.parametrize("batches", [1, 3])
def test_convex_losses_of_linear_models_have_their_closed_form(case, batches):
    """The Gauss-Newton matrix is the Hessian there; batches of unequal size join to the same mean."""
    model, loss, x, y, expected = CLOSED_FORMS[case]()
    cuts = [len(x)] if batches == 1 else [3, 2, len(x) - 5]
    pairs = list(zip(x.split(cuts), y.split(cuts)))
    for operator in (
        Hessian.of_model(model, loss, pairs),
        GaussNewton(model, loss, pairs),
    ):
        torch.testing.assert_close(operator.matrix(), expected, rtol=1e-8, atol=1e-10)
    by_differences = Hessian.of_model(model, loss, pairs, method="differences").matrix()
    torch.testing.assert_close(by_differences, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_a_mean_over_two_outputs_divides_by_samples_times_outputs(loss):
    """One sample of input 1: 2 / (N C) x^2 I, and p (1 - p) / (N C); not half of either."""
    layer = nn.Linear(1, 2, bias=False).double()
    layer.weight.data.zero_()
    batch = (torch.ones(1, 1).double(), torch.zeros(1, 2).double())
    size = 1.0 if isinstance(loss, nn.MSELoss) else 0.25 / 2
    for operator in (Hessian.of_model(layer, loss, batch), GaussNewton(layer, loss, batch)):
        assert operator.matrix().tolist() == [[size, 0.0], [0.0, size]]


def test_a_network_against_its_dense_hessian_in_every_form_of_vector():
    model, x, y = mlp(), draw(8, 3), draw(8, 2, seed=1)
    params = list(model.parameters())
    expected = dense(F.mse_loss(model(x), y), params)
    hessian = Hessian.of_model(model, F.mse_loss, (x, y))
    vectors = draw(hessian.size, 7, seed=2)
    torch.testing.assert_close(hessian @ vectors[:, 0], expected @ vectors[:, 0], rtol=1e-10, atol=1e-12)
    for chunk in (1, 3, 16, None):
        operator = Hessian.of_model(model, F.mse_loss, (x, y), chunk=chunk)
        torch.testing.assert_close(operator @ vectors, expected @ vectors, rtol=1e-10, atol=1e-12)
    pieces = [v.view_as(p) for v, p in zip(vectors[:, 0].split(hessian.sizes), params)]
    flat = torch.cat([v.flatten() for v in hessian @ pieces])
    torch.testing.assert_close(flat, expected @ vectors[:, 0], rtol=1e-10, atol=1e-12)
    stacks = [v.T.reshape(-1, *p.shape) for v, p in zip(vectors.split(hessian.sizes), params)]
    rows = torch.cat([v.flatten(1) for v in hessian @ stacks], 1)
    torch.testing.assert_close(rows.T, expected @ vectors, rtol=1e-10, atol=1e-12)
    scipy = hessian.to_scipy()
    np.testing.assert_allclose(scipy @ vectors.numpy(), (expected @ vectors).numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        scipy @ vectors[:, 0].numpy(), (expected @ vectors)[:, 0].numpy(), rtol=1e-10, atol=1e-12
    )
    for wrong in (vectors[1:], pieces[1:], [v[..., :1] for v in pieces]):
        with pytest.raises(ValueError, match="vector: expected"):
            hessian @ wrong


def test_products_of_gauss_newton_against_a_dense_jacobian_for_any_loss_and_any_batch_size():
    model, x, y = mlp(), draw(9, 3), draw(9, 2, seed=1)
    params = list(model.parameters())

    def loss(outputs, target):
        return ((outputs - target) ** 4).mean()

    cuts = [4, 5]
    outputs = model(x)
    rows = [torch.autograd.grad(o, params, retain_graph=True) for o in outputs.flatten()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    inner = (12 * (outputs - y) ** 2 / y.numel()).detach().flatten()
    expected = jacobian.T @ (inner[:, None] * jacobian)
    operator = GaussNewton(model, loss, list(zip(x.split(cuts), y.split(cuts))))
    vectors = draw(operator.size, 3, seed=2)
    torch.testing.assert_close(operator @ vectors, expected @ vectors, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator @ vectors[:, 1], expected @ vectors[:, 1], rtol=1e-10, atol=1e-12)
    # what has no forward mode goes backward twice
    operator = Jacobian(model, x)
    vector = [v.view_as(p) for v, p in zip(vectors[:, 0].split([p.numel() for p in params]), params)]
    forward = operator.jvp(vector)
    operator._backward_twice = True
    torch.testing.assert_close(operator.jvp(vector), forward, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(forward.flatten(), jacobian @ vectors[:, 0], rtol=1e-10, atol=1e-12)


class NoSecondDerivative(torch.autograd.Function):
    """The square, whose backward can't be derived."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return 2 * ctx.saved_tensors[0] * upstream


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-9), (torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_differences_take_over_where_there_is_no_second_derivative(dtype, allowed):
    w = torch.nn.Parameter(draw(6, seed=1).to(dtype))
    before = w.detach().clone()
    a = draw(6, 6)
    a = a @ a.T

    def loss():
        return 0.5 * (a.to(dtype) @ w * w).sum() + NoSecondDerivative.apply(w).sum()

    silent = torch.autograd.grad(NoSecondDerivative.apply(w).sum(), w, create_graph=True)[0]
    assert not silent.requires_grad  # torch takes it for a constant

    exact = Hessian(loss, [w], method="exact")
    with pytest.raises(RuntimeError, match="once_differentiable"):
        exact @ torch.ones(6).to(torch.promote_types(dtype, torch.float32))
    hessian = Hessian(loss, [w])
    expected = a + 2 * torch.eye(6)
    vector = draw(6, seed=2)
    image = (hessian @ vector.to(hessian.dtype)).double()
    assert hessian.method == "differences"
    assert (image - expected @ vector).norm() <= allowed * (expected @ vector).norm()
    # the step follows the vector's length, and there is none without a length
    tiny = (hessian @ (1e-30 * vector).to(hessian.dtype)).double() * 1e30
    assert (tiny - expected @ vector).norm() <= allowed * (expected @ vector).norm()
    assert not (hessian @ torch.zeros(6, dtype=hessian.dtype)).any()
    assert torch.equal(w, before)


def test_differences_put_weights_back_also_after_an_exception():
    w = torch.nn.Parameter(torch.tensor([0.1, 0.7]))
    before = w.detach().clone()

    def loss():
        if not torch.equal(w, before):
            raise OverflowError("simulated")
        return (w**3).sum()

    hessian = Hessian(loss, [w], method="differences")
    with pytest.raises(OverflowError, match="simulated"):
        hessian @ torch.ones(2)
    assert torch.equal(w, before)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_differences_of_small_and_large_losses(scale):
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    hessian = Hessian(lambda: scale * (w**2).sum(), [w], method="differences")
    torch.testing.assert_close(hessian @ torch.tensor([1.0, 1.0]), torch.tensor([2 * scale] * 2), rtol=1e-3, atol=0.0)


def attention(x, weight, *, fused):
    q, k, v = (x @ weight).chunk(3, -1)
    if fused:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.weight = nn.Parameter(draw(4, 12, dtype=torch.float32))
        self.fused = fused

    def forward(self, x):
        return attention(x, self.weight, fused=self.fused)


def test_fused_attention_is_plain_inside_alone():
    """Fused attention has no second derivative and no forward mode; without the plain form the product raises."""
    x, y = draw(2, 1, 6, 4, dtype=torch.float32), torch.zeros(2, 1, 6, 4)
    fused, plain = Attention(True), Attention(False)
    slope = torch.autograd.grad(F.mse_loss(fused(x), y), fused.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(slope, fused.weight, torch.ones_like(slope))
    vectors = draw(48, 3, seed=1, dtype=torch.float32)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for build in (Hessian.of_model, GaussNewton):
            own, expected = (build(model, F.mse_loss, (x, y)) @ vectors for model in (fused, plain))
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert not torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    pair = (draw(2, 3, 8, dtype=torch.float32), torch.zeros(2, 3, 8))
    for build in (Hessian.of_model, GaussNewton):
        operator = build(layer, F.mse_loss, pair, params=["linear2.weight"])
        assert (operator @ torch.ones(operator.size)).isfinite().all()
    assert torch.backends.mha.get_fastpath_enabled()


def test_batch_norm_and_dropout_in_training_mode_are_refused_or_frozen():
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    dropout = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    pair = (draw(8, 3), draw(8, 2, seed=1))
    for model, kind in ((norm, "BatchNorm1d"), (dropout, "Dropout")):
        for build in (Hessian.of_model, GaussNewton):
            with pytest.raises(ValueError, match=f"train_mode.*{kind} in training mode"):
                build(model, F.mse_loss, pair).matrix()
    # frozen: statistics are those of the batch, and no trace is left in them
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    hessian = Hessian.of_model(norm, F.mse_loss, pair, train_mode="freeze")
    own, again = hessian.matrix(), hessian.matrix()
    gauss_newton = GaussNewton(norm, F.mse_loss, pair, train_mode="freeze").matrix()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert all(module.training for module in norm.modules())
    assert norm[1].track_running_stats
    assert torch.equal(own, again)
    expected = dense(F.mse_loss(norm(pair[0]), pair[1]), list(norm.parameters()))
    torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-10)
    assert torch.linalg.eigvalsh(gauss_newton)[0] > -1e-10
    # one mask for all products of an operator, whatever is drawn outside, and nothing is drawn from outside
    state = torch.get_rng_state()
    hessian = Hessian.of_model(dropout, F.mse_loss, pair, train_mode="freeze", keep=False)
    first = hessian.matrix()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(hessian.matrix(), first)
    by_differences = Hessian.of_model(dropout, F.mse_loss, pair, train_mode="freeze", method="differences")
    with pytest.raises(AssertionError):  # another mask
        torch.testing.assert_close(by_differences.matrix(), first, rtol=1e-6, atol=1e-6)
    torch.set_rng_state(state)
    by_differences = Hessian.of_model(dropout, F.mse_loss, pair, train_mode="freeze", method="differences")
    torch.testing.assert_close(by_differences.matrix(), first, rtol=1e-6, atol=1e-6)


def test_training_mode_is_left_for_the_pass_alone_with_evaluate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    model[1].running_mean.normal_()
    pair = (draw(8, 3), draw(8, 2, seed=1))
    model.eval()
    expected = [build(model, F.mse_loss, pair).matrix() for build in (Hessian.of_model, GaussNewton)]
    model.train()
    model[2].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for build, matrix in zip((Hessian.of_model, GaussNewton), expected):
        operator = build(model, F.mse_loss, pair, train_mode="evaluate")
        torch.testing.assert_close(operator.matrix(), matrix, rtol=1e-12, atol=1e-14)
        assert [module.training for module in model.modules()] == modes
    by_differences = Hessian.of_model(model, F.mse_loss, pair, train_mode="evaluate", method="differences").matrix()
    torch.testing.assert_close(by_differences, expected[0], rtol=1e-6, atol=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="modules: expected"):
        Hessian(lambda: model(pair[0]).sum(), list(model.parameters()), train_mode="evaluate")


def test_a_loss_that_draws_another_batch_at_each_call_is_refused():
    x, model = draw(64, 3), mlp()

    def loss():
        rows = torch.randint(64, (8,))
        return (model(x[rows]) ** 2).mean()

    with pytest.raises(ValueError, match="the same value at each call"):
        Hessian(loss, list(model.parameters())) @ torch.ones(32).double()
    counter = iter(range(100))
    with pytest.raises(ValueError, match="with the same random numbers"):
        Hessian(lambda: (model(x[next(counter) :]) ** 2).mean(), list(model.parameters()), train_mode="freeze").matrix()


def test_a_loader_is_read_once_and_the_same_seed_gives_the_same_bits():
    model = mlp()
    data = torch.utils.data.TensorDataset(draw(16, 3), draw(16, 2, seed=1))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    state = torch.get_rng_state()
    hessian = Hessian.of_model(model, F.mse_loss, loader)
    assert torch.equal(torch.get_rng_state(), state)
    own = hessian.matrix()
    assert torch.equal(own, hessian.matrix())
    expected = Hessian.of_model(model, F.mse_loss, data.tensors).matrix()
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)


def test_gradients_flags_and_modes_stay_and_other_parameters_are_left_out():
    model, pair = mlp(), (draw(8, 3), draw(8, 2, seed=1))
    model[2].bias.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    whole = dense(F.mse_loss(model(pair[0]), pair[1]), [p for p in model.parameters() if p.requires_grad])
    for build in (Hessian.of_model, GaussNewton):
        assert build(model, F.mse_loss, pair).size == 30
    torch.testing.assert_close(Hessian.of_model(model, F.mse_loss, pair).matrix(), whole, rtol=1e-10, atol=1e-12)
    block = Hessian.of_model(model, F.mse_loss, pair, params=lambda name, p: name.startswith("0."))
    torch.testing.assert_close(block.matrix(), whole[:20, :20], rtol=1e-10, atol=1e-12)
    assert all((p.grad == 3.0).all() for p in model.parameters())
    assert not model[2].bias.requires_grad
    with pytest.raises(ValueError, match="params: expected parameters that need gradients"):
        Hessian.of_model(model, F.mse_loss, pair, params=["2.bias"])
    with pytest.raises(ValueError, match="params: expected names"):
        Hessian.of_model(model, F.mse_loss, pair, params=["2.wieght"])


def test_compiled_models_are_looked_into():
    model, pair = mlp(), (draw(8, 3), draw(8, 2, seed=1))
    expected = Hessian.of_model(model, F.mse_loss, pair).matrix()
    wrapped = torch.compile(model, backend="eager")
    for build in (Hessian.of_model, GaussNewton):
        assert build(wrapped, F.mse_loss, pair, params=["0.bias"]).size == 5
    assert torch.equal(Hessian.of_model(wrapped, F.mse_loss, pair).matrix(), expected)


def test_weights_of_losses_and_parameters_that_none_depends_on():
    a, b = (torch.tensor([x], requires_grad=True) for x in (1.0, 2.0))
    hessian = Hessian([lambda: a.sum() ** 3, lambda: 5 * a.sum() ** 2], [a, b], weights=[2.0, 0.5])
    assert hessian.matrix().tolist() == [[2 * 6 + 0.5 * 10, 0.0], [0.0, 0.0]]
    assert [g.item() for g in hessian.gradient()] == [2 * 3 + 0.5 * 10, 0.0]
    assert hessian.loss().item() == 2 * 1 + 0.5 * 5
    assert Hessian([lambda: a.sum() ** 3, lambda: a.sum() ** 2], [a]).matrix().item() == 4.0


def test_adam_divides_by_its_diagonal():
    model, pair = mlp(), (draw(8, 3), draw(8, 2, seed=1))
    params = list(model.parameters())
    optimizer = torch.optim.Adam(params, betas=(0.8, 0.9), eps=1e-3)
    hessian = Hessian.of_model(model, F.mse_loss, pair)
    with pytest.raises(ValueError, match="optimizer: expected second moments"):
        adam_diagonal(optimizer, params)
    squares = [torch.zeros_like(p) for p in params]
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(model(pair[0]), pair[1]).backward()
        squares = [0.9 * s + 0.1 * p.grad**2 for s, p in zip(squares, params)]
        optimizer.step()
    diagonal = torch.cat([(s / (1 - 0.9**3)).sqrt().flatten() + 1e-3 for s in squares])
    torch.testing.assert_close(torch.cat([d.flatten() for d in adam_diagonal(optimizer, params)]), diagonal)
    hessian = Hessian.of_model(model, F.mse_loss, pair)
    expected = hessian.matrix() / (diagonal[:, None] * diagonal).sqrt()
    for given in (diagonal, adam_diagonal(optimizer, params)):
        torch.testing.assert_close(Preconditioned(hessian, given).matrix(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(Preconditioned(hessian, 4.0).matrix(), hessian.matrix() / 4, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="entries > 0"):
        Preconditioned(hessian, 0 * diagonal)


def test_the_product_of_one_loss_calls_it_once():
    calls = []
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    product = hessian_product(lambda: (calls.append(1), w[0] ** 2 * w[1])[1], [w])
    assert len(calls) == 1
    assert [product(v).tolist() for v in torch.eye(2)] == [[4.0, 2.0], [2.0, 0.0]]
    assert len(calls) == 1


class Counting(nn.Module):
    """Divides by a mean that it follows in training."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3).double())
        self.register_buffer("mean", torch.ones(()).double())

    def forward(self, x):
        x = x * self.weight**2
        self.mean.mul_(0.9).add_(0.1 * x.detach().square().mean())
        return x / self.mean


def test_buffers_that_a_pass_writes_and_its_graph_needs():
    model, pair = Counting(), (draw(4, 3), draw(4, 3, seed=1))
    buffer = model.mean
    hessian, second = (Hessian.of_model(model, F.mse_loss, pair, train_mode="freeze") for _ in range(2))
    first = hessian.matrix()
    assert torch.equal(second.matrix(), first)
    assert torch.equal(hessian.matrix(), first)  # another look has not ended its graph
    assert model.mean is buffer
    assert buffer.item() == 1.0
    mean = 0.9 + 0.1 * pair[0].square().mean()
    expected = dense(F.mse_loss(pair[0] * model.weight**2 / mean, pair[1]), [model.weight])
    torch.testing.assert_close(first, expected, rtol=1e-10, atol=1e-12)


def test_a_transformer_layer_in_float64():
    """Forward mode of a gradient has missed terms of layer norm; neither operator goes that way."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation=F.gelu).eval().double()
    pair = (draw(2, 3, 4), draw(2, 3, 4, seed=1))
    params = list(layer.parameters())
    hessian = Hessian.of_model(layer, F.mse_loss, pair)
    vector = draw(hessian.size, seed=2)
    with sdpa_kernel(SDPBackend.MATH):
        outputs = layer(pair[0])
        expected = dense(F.mse_loss(outputs, pair[1]), params) @ vector
        rows = [torch.autograd.grad(o, params, retain_graph=True) for o in outputs.flatten()]
    torch.testing.assert_close(hessian @ vector, expected, rtol=1e-10, atol=1e-12)
    by_differences = Hessian.of_model(layer, F.mse_loss, pair, method="differences") @ vector
    torch.testing.assert_close(by_differences, expected, rtol=1e-6, atol=1e-8)
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    operator = GaussNewton(layer, F.mse_loss, pair)
    torch.testing.assert_close(operator @ vector, jacobian.T @ (jacobian @ vector) / 12, rtol=1e-10, atol=1e-12)


def test_quadratic_forms_and_rows_of_each_operator():
    model, x, y = mlp(), draw(9, 3), torch.arange(9) % 2
    pairs = list(zip(x.split([4, 5]), y.split([4, 5])))
    vectors = draw(5, 32, seed=2)
    for chunk in (1, 2, None):
        for build in (Hessian.of_model, GaussNewton):
            operator = build(model, nn.CrossEntropyLoss(), pairs, chunk=chunk)
            matrix = operator.matrix()
            torch.testing.assert_close(operator.rows(vectors), vectors @ matrix, rtol=1e-10, atol=1e-12)
            expected = ((vectors @ matrix) * vectors).sum(1)
            torch.testing.assert_close(operator.quadratics(vectors), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_products_of_a_vector_are_those_of_its_pieces(weight):
    """The first is computed from a list of tensors, later ones from one gradient of all parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    pair = torch.randn(5, 3).double(), torch.arange(5) % 2
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), pair, weights=[weight])
    matrix = hessian.matrix()
    for _ in range(3):
        vector = torch.randn(hessian.size).double()
        pieces = [v.view(s) for v, s in zip(vector.split(hessian.sizes), hessian.shapes)]
        expected = torch.cat([image.flatten() for image in hessian @ pieces])
        torch.testing.assert_close(hessian @ vector, expected, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(hessian @ vector, matrix @ vector, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close((hessian @ vector.float()).double(), matrix @ vector, rtol=1e-4, atol=1e-5)
    assert hessian._slope is not None


def test_products_of_a_vector_where_some_parameters_do_not_bend():
    a, b, c = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(3))
    hessian = Hessian(lambda: (a**2 * b).sum() + 3 * c.sum(), [a, b, c])
    for _ in range(2):
        assert (hessian @ torch.arange(6.0)).tolist() == [4.0, 16.0, 0.0, 4.0, 0.0, 0.0]
    hessian = Hessian(lambda: (a**2 * b).sum() + (c**2).sum() / 2, [a, b, c])
    for _ in range(2):
        assert (hessian @ torch.arange(6.0)).tolist() == [4.0, 16.0, 0.0, 4.0, 4.0, 5.0]
