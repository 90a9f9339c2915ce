"""Second derivatives along directions by a forward sweep, against products with the Hessian, operation by operation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steepest.core import hessian as hessian_module
from steepest.core.curvature import Hessian, trace
from steepest.core.second_order import NoRule, SecondOrder


def double_backward(run, params, direction):
    """v'Hv by deriving twice."""
    with torch.enable_grad():
        slopes = torch.autograd.grad(run(), params, create_graph=True, allow_unused=True)
        pairs = [(slope, v) for slope, v in zip(slopes, direction) if slope is not None and slope.requires_grad]
        if not pairs:
            return torch.zeros(()).double()
        images = torch.autograd.grad([s for s, _ in pairs], params, [v for _, v in pairs], allow_unused=True)
    return sum((image * v).sum() for image, v in zip(images, direction) if image is not None)


def agree(run, params, rtol=1e-10):
    form = SecondOrder(run, params)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        direction = [torch.randn(p.shape, generator=generator).to(p) for p in params]
        expected = double_backward(run, params, direction)
        torch.testing.assert_close(form(direction), expected.double(), rtol=rtol, atol=1e-12)


A, B, POSITIVE, W = "a", "b", "positive", "w"


def leaves():
    generator = torch.Generator().manual_seed(0)
    a, b, w = (torch.randn(shape, generator=generator).double() for shape in ((4, 6), (4, 6), (6, 3)))
    return [t.requires_grad_() for t in (a, b, w, b.detach().abs() + 0.5)]


OPERATIONS = {
    "product of entries": lambda a, b, w, p: a * b,
    "square": lambda a, b, w, p: a * a,
    "product across": lambda a, b, w, p: a[:1] * b + a * b[:, :1],
    "sum across": lambda a, b, w, p: (a[:1] + b) * (b - a[:, :1]),
    "sum with a factor": lambda a, b, w, p: torch.add(a, b, alpha=2.0) * torch.sub(a, b, alpha=3.0),
    "quotient": lambda a, b, w, p: a / p + b[:1] / p[:, :1] + b.detach() / p,
    "quotient by what rests": lambda a, b, w, p: (a / p.detach()) ** 2 + (a[:1] / p.detach()) ** 2,
    "joined": lambda a, b, w, p: torch.cat([a, b.detach(), b], 1) ** 2 * torch.stack([a, a, b], 2).reshape(4, 18),
    "the last of several": lambda a, b, w, p: a.split(2, 1)[2] * b.split(2, 1)[1],
    "numbers": lambda a, b, w, p: (2 * a / 3 + 1) * (1 - b),
    "matrices": lambda a, b, w, p: (a @ w) * (b @ w),
    "a matrix with itself": lambda a, b, w, p: a @ a.T,
    "stacks of matrices": lambda a, b, w, p: torch.bmm(a.view(2, 2, 6), b.view(2, 6, 2)),
    "layer": lambda a, b, w, p: F.linear(a, w.T, b[0, :3]).tanh(),
    "layer at rest": lambda a, b, w, p: F.linear(a.detach(), w.T, b[0, :3]).tanh(),
    "layer with a bias alone": lambda a, b, w, p: F.linear(a.detach(), w.T.detach(), b[0, :3]).tanh(),
    "shapes": lambda a, b, w, p: a.t().reshape(3, 8)[1:].expand(2, -1, -1).flip(1) * p.view(2, 3, 4)[:, :2, :1],
    "split": lambda a, b, w, p: a.split(2, 1)[0] * b.chunk(3, 1)[0] * a.unbind(1)[1].sum(),
    "means": lambda a, b, w, p: a.mean(1) * b.sum(1) * a.mean(),
    "softmax": lambda a, b, w, p: a.softmax(1) * b.softmax(0),
    "log-softmax": lambda a, b, w, p: a.log_softmax(-1) * b,
    "cross-entropy": lambda a, b, w, p: F.cross_entropy(a, torch.tensor([0, 5, -100, 2]), reduction="none"),
    "cross-entropy, weighted": lambda a, b, w, p: F.cross_entropy(a, torch.tensor([0, 5, 1, 2]), p[0].detach()),
    "squared error": lambda a, b, w, p: F.mse_loss(a, p.detach()) + F.mse_loss(a, b.detach(), reduction="sum"),
    "squared errors": lambda a, b, w, p: F.mse_loss(a.tanh(), b.detach(), reduction="none"),
    "layer norm": lambda a, b, w, p: F.layer_norm(a, (6,), b[0], b[1]).tanh(),
    "layer norm over two axes": lambda a, b, w, p: F.layer_norm(a, (4, 6), b).tanh(),
    "layer norm, plain": lambda a, b, w, p: F.layer_norm(a, (6,)).tanh(),
    "convolution": lambda a, b, w, p: F.conv2d(a[None, None], w[:4, :2].reshape(2, 1, 2, 2), b[0, :2]).tanh(),
    "convolution at rest": lambda a, b, w, p: F.conv1d(a.detach().view(2, 2, 6), b.view(4, 2, 3), stride=2).tanh(),
    "max-pooling": lambda a, b, w, p: F.max_pool2d((a * b).view(1, 1, 4, 6), 2) ** 2,
    "average": lambda a, b, w, p: F.avg_pool2d((a * b).view(1, 1, 4, 6), 2) ** 2,
    "rows of a table": lambda a, b, w, p: F.embedding(torch.tensor([1, 1, 3]), a).tanh(),
    "rows": lambda a, b, w, p: a.gather(1, torch.ones(4, 1).long()) * b.index_select(0, torch.ones(4).long()),
    "masks": lambda a, b, w, p: a.masked_fill(b > 0, 3.0).tanh() * F.pad(a, (0, 1), value=2.0)[:, 1:],
    "types": lambda a, b, w, p: (a.float().double() * b).tanh(),
    "attention": lambda a, b, w, p: F.scaled_dot_product_attention(
        a.view(1, 1, 4, 6), b.view(1, 1, 4, 6), (a * b).view(1, 1, 4, 6), is_causal=True),
    "logarithm": lambda a, b, w, p: p.log() * p.sqrt() + p.reciprocal() + p.rsqrt() + p.log1p(),
    "powers": lambda a, b, w, p: p**2.5 + a**3,
    "waves": lambda a, b, w, p: a.sin() * b.cos() + a.erf() + a.expm1() + a.exp(),
    "clamped": lambda a, b, w, p: (a * b).clamp(-0.5, 0.5) * a.clamp_min(0.1) * a.abs(),
    "constant": lambda a, b, w, p: a.detach() * 2,
    "a line": lambda a, b, w, p: a + b,
}  # fmt: skip
RECTIFIERS = ["relu", "elu", "gelu", "silu", "mish", "softplus", "leaky_relu", "hardtanh", "sigmoid", "tanh"]
for rectifier in RECTIFIERS:
    OPERATIONS[rectifier] = lambda a, b, w, p, kind=rectifier: getattr(F, kind)(a * b) * a


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_has_the_form_of_double_backward(name):
    params = leaves()
    weights = torch.linspace(0.5, 2, 100).double()

    def run():
        value = OPERATIONS[name](*params)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            value = OPERATIONS[name](*params)
        value = value + 0 * params[0].sum()
        return (value.reshape(-1) * weights[: value.numel()]).sum()

    agree(run, params, rtol=1e-6 if name == "types" else 1e-10)


def classifier(seed=0, layers=None):
    torch.manual_seed(seed)
    model = layers or nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    return model.double().eval(), torch.randn(9, 5).double(), torch.arange(9) % 3


@pytest.fixture
def forms(monkeypatch):
    """How many forms came from a sweep, which is for layers of any size."""
    monkeypatch.setattr(hessian_module, "TINY_WORK", 0)
    calls = []
    whole = SecondOrder.__call__

    def counted(self, direction):
        calls.append(1)
        return whole(self, direction)

    monkeypatch.setattr(SecondOrder, "__call__", counted)
    return calls


def products(hessian, vectors):
    return torch.stack([v @ (hessian @ v) for v in vectors]).double()


def test_forms_of_a_network_are_those_of_its_products(forms):
    model, x, y = classifier()
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y), weights=[3.0])
    vectors = torch.randn(8, hessian.size, dtype=torch.float64)
    torch.testing.assert_close(hessian.quadratics(vectors), products(hessian, vectors), rtol=1e-10, atol=1e-12)
    assert len(forms) == 9  # and one that was compared
    samples = trace(hessian, 20).samples
    assert len(forms) == 29
    assert torch.equal(samples, trace(hessian, 20).samples)
    torch.testing.assert_close(samples.mean(), hessian.matrix().trace(), rtol=0.5, atol=0.0)
    one = Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y), weights=[3.0], chunk=1)
    torch.testing.assert_close(trace(one, 20).samples, samples, rtol=0, atol=0)


def test_tiny_layers_go_through_products_of_many_vectors(forms, monkeypatch):
    monkeypatch.undo()
    model, x, y = classifier()
    trace(Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y)), 16)
    assert hessian_module.TINY_WORK > 0
    assert forms == []


def test_few_forms_are_taken_from_products(forms):
    model, x, y = classifier()
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y))
    trace(hessian, 7)
    assert forms == []
    assert hessian.quadratics(torch.ones(1, hessian.size).double(), 8).shape == (1,)
    assert len(forms) == 2


class Straight(torch.autograd.Function):
    """The sign, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, slope):
        return slope


class Doubled(torch.autograd.Function):
    """An even function whose gradient is said to be twice what it is."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * 1.0

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0] * 4


class Own(nn.Module):
    """A layer and a function with its own backward, or one that writes."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(5, 3), function

    def forward(self, x):
        return self.function(self.layer(x)) + self.layer(x) ** 2


def log_determinant(z):
    return torch.logdet(z.T @ z + torch.eye(3).double())


@pytest.mark.parametrize(
    "function", [Straight.apply, Doubled.apply, lambda x: x.tanh_(), lambda x: x.cummax(1)[0], log_determinant]
)
def test_what_has_no_rule_is_left_to_products(forms, function):
    model, x, y = classifier(layers=Own(function))
    with pytest.raises(NoRule):
        SecondOrder(lambda: F.cross_entropy(model(x), y), list(model.parameters()))
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y))
    vectors = torch.randn(8, hessian.size, dtype=torch.float64)
    torch.testing.assert_close(hessian.quadratics(vectors), products(hessian, vectors), rtol=1e-10, atol=1e-12)
    assert forms == []


def test_a_form_that_is_not_that_of_the_product_is_left(forms, monkeypatch):
    model, x, y = classifier()
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y))
    monkeypatch.setattr(SecondOrder, "__call__", lambda self, direction: torch.ones(()).double())
    vectors = torch.randn(8, hessian.size, dtype=torch.float64)
    torch.testing.assert_close(hessian.quadratics(vectors), products(hessian, vectors), rtol=1e-10, atol=1e-12)


def test_what_rests_and_what_is_random(forms):
    """Detached values and passes without gradients rest; dropout in training mode has one mask."""
    model, x, y = classifier(layers=nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))

    def loss():
        outputs = model(x)
        with torch.no_grad():
            still = model(x).softmax(1)
        return F.cross_entropy(outputs * outputs.detach(), y) + (still * outputs**2).mean()

    params = list(model.parameters())
    agree(loss, params)
    assert len(forms) == 2
    model.train()
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y), train_mode="freeze")
    vectors = torch.randn(8, hessian.size, dtype=torch.float64)
    torch.testing.assert_close(hessian.quadratics(vectors), products(hessian, vectors), rtol=1e-10, atol=1e-12)


def test_some_parameters_constant_losses_and_half_types(forms):
    model, x, y = classifier()
    agree(lambda: F.cross_entropy(model(x), y), list(model.parameters())[2:4])
    assert SecondOrder(lambda: model(x).detach().sum(), list(model.parameters()))(list(model.parameters())) == 0
    with pytest.raises(NoRule, match="twice"):
        SecondOrder(lambda: model(x).sum(), [model[0].weight, model[0].weight])
    forms.clear()
    half = model.to(torch.bfloat16)
    hessian = Hessian.of_model(half, nn.CrossEntropyLoss(), (x.to(torch.bfloat16), y))
    assert hessian.quadratics(torch.ones(8, hessian.size)).shape == (8,)
    with pytest.raises(NoRule, match="bfloat16"):
        SecondOrder(lambda: F.cross_entropy(half(x.to(torch.bfloat16)), y), list(half.parameters()))
    assert forms == []


def test_many_batches_and_moved_weights_are_left_to_products(forms):
    model, x, y = classifier()
    several = Hessian.of_model(model, nn.CrossEntropyLoss(), [(x[:4], y[:4]), (x[4:], y[4:])])
    vectors = torch.randn(8, several.size, dtype=torch.float64)
    torch.testing.assert_close(several.quadratics(vectors), products(several, vectors), rtol=1e-10, atol=1e-12)
    assert forms == []
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y))
    hessian.quadratics(vectors)
    forms.clear()
    with torch.no_grad():
        model[3].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hessian.quadratics(vectors)
    assert forms == []


def test_wide_values_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(9, 5), torch.arange(9) % 3
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), (x, y))
    vectors = torch.randn(8, hessian.size)
    torch.testing.assert_close(hessian.quadratics(vectors), products(hessian, vectors), rtol=1e-4, atol=1e-5)


def test_parameters_without_dimensions_and_without_entries():
    w = torch.tensor(2.0, requires_grad=True)
    cubic = Hessian(lambda: w**3, [w])
    assert (cubic @ torch.ones(1)).item() == 12
    assert cubic.quadratics(torch.ones(9, 1)).tolist() == [12] * 9
    empty, v = torch.zeros(0, 3, requires_grad=True), torch.ones(2, requires_grad=True)
    hessian = Hessian(lambda: (v**3).sum() + empty.sum(), [empty, v])
    torch.testing.assert_close(hessian.matrix(), 6 * torch.eye(2), check_dtype=False)


def test_vectors_of_another_type_and_none_after_a_form():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 3)
    hessian = Hessian(lambda: model(x).square().mean(), list(model.parameters()))
    vectors = torch.randn(9, sum(p.numel() for p in model.parameters()))
    forms = hessian.quadratics(vectors)
    torch.testing.assert_close(hessian.quadratics(vectors.double()).double(), forms.double(), rtol=1e-4, atol=1e-5)
    assert hessian.quadratics(vectors[:0], 9).shape == (0,)


def test_a_gradient_that_is_not_the_function_s_own():
    """A padding row gets no gradient; a form that bends it is found by random signs, whatever comes first."""
    torch.manual_seed(0)
    table = nn.Embedding(4, 3, padding_idx=0)
    nn.init.normal_(table.weight)
    tokens = torch.tensor([[0, 1, 2], [3, 0, 1]])
    hessian = Hessian(lambda: table(tokens).pow(4).sum(), [table.weight])
    vectors = torch.zeros(9, 12)
    vectors[0, 11], vectors[1, 0] = 1.0, 1.0
    assert hessian.quadratics(vectors)[1] == 0
