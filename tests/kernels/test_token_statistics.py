"""Statistics of rows of logits against the plain form in float64, from logits and from a head, in many chunks."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from steepest.core.allocations import peak_bytes
from steepest.kernels import linear_cross_entropy, token_statistics
from steepest.kernels.token_statistics import WANTED

pytestmark = pytest.mark.holds("token-statistics")
IGNORED = -100


def drawn(dtype=torch.float64, rows=(3, 5), width=4, classes=7, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden, head, bias = (
        (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
        for shape in ((*rows, width), (classes, width), (classes,))
    )
    labels = torch.randint(classes, rows, generator=generator)
    labels[0, 1] = labels[-1, -1] = IGNORED
    which = torch.randint(2, rows, generator=generator)
    costs = torch.rand(2, classes, generator=generator, dtype=torch.float64)
    return hidden, head, bias, labels, (costs, which)


def by_definition(z, labels, columns, costs):
    """A row after the other, as it is written."""
    found = {name: torch.zeros(labels.shape, dtype=z.dtype) for name in (*WANTED, "cost")}
    found["columns"] = torch.zeros(*labels.shape, len(columns), dtype=z.dtype)
    for place in torch.ones_like(labels).nonzero().tolist():
        at, y = tuple(place), int(labels[tuple(place)])
        if y == IGNORED:
            continue
        row = z[at]
        p = [torch.exp(v - row.max()) for v in row]
        total = sum(p)
        p = [v / total for v in p]
        found["label"] = found["label"].index_put(tuple(map(torch.tensor, at)), row[y])
        log_z = row.max() + torch.log(total)
        for name, value in {
            "log_z": log_z,
            "log_p": row[y] - log_z,
            "entropy": -sum(v * torch.log(v) for v in p),
            "largest": max(row.detach()),
            "mean": sum(row.detach()) / len(row),
            "cost": sum(v * c for v, c in zip(p, costs[0][int(costs[1][at])])),
        }.items():
            found[name] = found[name].index_put(tuple(map(torch.tensor, at)), value)
        for k, column in enumerate(columns.tolist()):
            where = tuple(map(torch.tensor, (*at, k)))
            found["columns"] = found["columns"].index_put(where, row[column])
    return found


def weighted(found, upstream):
    """One number of all of them."""
    return sum((own.double() * upstream[name]).sum() for name, own in found.items() if name in upstream)


COLUMNS = torch.tensor([5, 0, 5])


def upstreams(labels):
    generator = torch.Generator().manual_seed(1)
    shapes = dict.fromkeys((*WANTED, "cost"), labels.shape) | {"columns": (*labels.shape, len(COLUMNS))}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("memory", ["auto", 200])
@pytest.mark.parametrize(("softcap", "temperature"), [(None, 1.0), (2.0, 0.7), (None, 3.0)])
def test_from_a_head(memory, softcap, temperature):
    hidden, head, bias, labels, costs = drawn()
    leaves = [t.clone().requires_grad_() for t in (hidden, head, bias)]
    z = leaves[0] @ leaves[1].T + leaves[2]
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    upstream = upstreams(labels)
    wanted = by_definition(z, labels, COLUMNS, costs)
    weighted(wanted, upstream).backward()
    own = [t.clone().requires_grad_() for t in (hidden, head, bias)]
    options = {"softcap": softcap, "temperature": temperature, "memory": memory}
    found = token_statistics(own[0], labels, own[1], bias=own[2], want=WANTED, columns=COLUMNS, costs=costs, **options)
    assert torch.equal(found.valid, labels != IGNORED)
    for name, value in wanted.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-12, atol=1e-12)
    weighted(found._asdict(), upstream).backward()
    for a, b in zip(own, leaves):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("want", [WANTED, ("label",), ("log_p",), ("entropy", "log_z"), ()])
def test_from_logits(temperature, want):
    hidden, head, _, labels, costs = drawn()
    logits = (hidden @ head.T).requires_grad_()
    upstream = {name: own for name, own in upstreams(labels).items() if name in (*want, "columns")}
    wanted = by_definition(logits / temperature, labels, COLUMNS, costs)
    (expected,) = torch.autograd.grad(weighted(wanted, upstream), logits)
    found = token_statistics(logits, labels, temperature=temperature, want=want, columns=COLUMNS)
    assert [name for name in (*WANTED, "cost") if getattr(found, name) is not None] == [w for w in WANTED if w in want]
    for name in (*want, "columns"):
        torch.testing.assert_close(getattr(found, name), wanted[name], rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(weighted(found._asdict(), upstream), logits)
    torch.testing.assert_close(slope, expected, rtol=1e-11, atol=1e-12)


def test_pieces_change_rounding_alone(monkeypatch):
    module = importlib.import_module("steepest.kernels.token_statistics")
    hidden, head, _, labels, costs = drawn(torch.float32)
    logits = (hidden @ head.T).requires_grad_()
    values = []
    for block in (module.BLOCK, 56):
        monkeypatch.setattr(module, "BLOCK", block)
        found = token_statistics(logits, labels, want=WANTED, costs=costs)
        (slope,) = torch.autograd.grad(found.entropy.sum() + found.cost.sum() - found.log_p.sum(), logits)
        values.append([found.log_p, found.entropy, found.cost, slope])
    for a, b in zip(*values):  # torch's softmax of few columns and many rows rounds otherwise
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by_head", [True, False])
def test_what_is_ignored_does_no_harm(by_head):
    hidden, head, _, labels, _ = drawn(torch.float32)
    source = hidden if by_head else hidden @ head.T
    clean, spoiled = source.clone().requires_grad_(), source.clone()
    spoiled[labels == IGNORED] = math.nan
    spoiled[0, 1, 0] = math.inf
    spoiled.requires_grad_()
    results = []
    for own in (clean, spoiled):
        found = token_statistics(own, labels, head if by_head else None, want=WANTED)
        total = found.label.sum() + found.log_z.square().sum() + found.log_p.exp().sum() + found.entropy.sum()
        total.backward()
        results.append((total.detach(), own.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("by_head", [True, False])
def test_what_is_ignored_does_no_harm_under_a_transform(by_head):
    hidden, head, _, labels, _ = drawn(torch.float64)
    source = hidden if by_head else hidden @ head.T

    def total(own):
        of_tokens = token_statistics(own, labels, head if by_head else None, want=WANTED)
        return of_tokens.log_z.square().sum() + of_tokens.log_p.sum() + of_tokens.entropy.sum()

    spoiled = source.clone()
    spoiled[labels == IGNORED] = math.nan
    assert torch.equal(torch.func.grad(total)(spoiled), torch.func.grad(total)(source))


@pytest.mark.parametrize("by_head", [True, False])
def test_nothing_valid_is_zero_with_a_graph(by_head):
    hidden, head, _, labels, _ = drawn(torch.float32)
    source = (hidden if by_head else hidden @ head.T).requires_grad_()
    found = token_statistics(source, torch.full_like(labels, IGNORED), head if by_head else None)
    assert found.log_z.requires_grad
    assert torch.equal(found.log_z, torch.zeros(labels.shape))
    assert not found.valid.any()
    (found.log_z.sum() + found.label.sum()).backward()
    assert torch.equal(source.grad, torch.zeros_like(source))


def test_large_logits_keep_the_digits_of_a_confident_label():
    gap = torch.tensor([[16.0, 0.0]]) + 1e4
    for dtype in (torch.float32, torch.float64):
        found = token_statistics(gap.to(dtype), torch.tensor([0]), want=("log_p", "entropy"))
        assert found.log_p.item() == pytest.approx(-math.log1p(math.exp(-16.0)), rel=1e-6)
        assert found.entropy.item() == pytest.approx(17 * math.exp(-16.0), rel=1e-5)


def test_classes_that_are_masked_out():
    z = torch.tensor([[1.0, -math.inf, 0.0]], requires_grad=True)
    found = token_statistics(z, torch.tensor([0]), want=WANTED)
    two = torch.tensor([[1.0, 0.0]], requires_grad=True)
    wanted = token_statistics(two, torch.tensor([0]), want=WANTED)
    torch.testing.assert_close(found.entropy, wanted.entropy)
    for name in ("entropy", "log_p", "log_z"):
        (slope,) = torch.autograd.grad(getattr(found, name).sum(), z, retain_graph=True)
        (expected,) = torch.autograd.grad(getattr(wanted, name).sum(), two, retain_graph=True)
        torch.testing.assert_close(slope[:, [0, 2]], expected)
        assert float(slope[0, 1]) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_head", [True, False])
def test_half_logits_are_worked_on_in_float32(dtype, by_head):
    hidden, head, _, labels, _ = drawn(dtype)
    source = (hidden if by_head else hidden @ head.T).requires_grad_()
    found = token_statistics(source, labels, head if by_head else None, want=WANTED)
    z = (hidden @ head.T).double()
    wanted = by_definition(z, labels, COLUMNS, drawn()[4])
    assert found.log_z.dtype == torch.float32
    tolerance = 1e-5 if not by_head else 8 * torch.finfo(dtype).eps
    for name in WANTED:
        torch.testing.assert_close(getattr(found, name).double(), wanted[name], rtol=tolerance, atol=4 * tolerance)
    found.log_z.sum().backward()
    assert source.grad.dtype == dtype


def test_transforms_and_second_derivatives_of_logits():
    hidden, head, _, labels, costs = drawn()
    logits = hidden @ head.T

    def total(z):
        found = token_statistics(z, labels, want=WANTED, costs=costs, columns=COLUMNS)
        return found.log_p.square().sum() + found.entropy.sum() + found.cost.sum() + found.columns.square().sum()

    slope = torch.func.grad(total)(logits)
    leaf = logits.clone().requires_grad_()
    (own,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
    torch.testing.assert_close(own.detach(), slope, rtol=1e-11, atol=1e-12)
    way = torch.ones_like(leaf)
    (second,) = torch.autograd.grad((own * way).sum(), leaf)
    step = 1e-6
    numeric = (torch.func.grad(total)(logits + step * way) - torch.func.grad(total)(logits - step * way)) / (2 * step)
    torch.testing.assert_close(second, numeric, rtol=1e-5, atol=1e-7)
    many = torch.func.vmap(total)(torch.stack([logits, 2 * logits]))
    torch.testing.assert_close(many[1], total(2 * logits), rtol=1e-12, atol=1e-12)


def test_the_same_as_cross_entropy_of_a_head():
    hidden, head, bias, labels, _ = drawn(torch.float32, rows=(4, 50), width=16, classes=300)
    found = token_statistics(hidden, labels, head, bias=bias, want=("log_p",))
    wanted = linear_cross_entropy(hidden, head, labels, bias=bias, reduction="none")
    torch.testing.assert_close(-found.log_p, wanted, rtol=1e-6, atol=1e-6)


def test_what_it_refuses():
    hidden, head, bias, labels, costs = drawn()
    logits = hidden @ head.T
    for arguments, options, word in (
        ((logits, labels), {"want": ("labels",)}, "want"),
        ((logits, labels), {"want": "label"}, "want"),
        ((logits, labels), {"bias": bias}, "without a head"),
        ((logits, labels), {"softcap": 2.0}, "without a head"),
        ((logits, labels), {"temperature": 0.0}, "temperature"),
        ((logits, labels), {"columns": torch.tensor([7])}, "columns"),
        ((logits, labels), {"costs": (costs[0][:, :3], costs[1])}, "costs"),
        ((logits, labels), {"costs": (costs[0], costs[1] + 1)}, "costs"),
        ((logits, labels), {"costs": (costs[0].requires_grad_(), costs[1])}, "gradient"),
        ((logits, labels[:2]), {}, "leading shape"),
        ((logits, labels + 5), {}, "target"),
        ((hidden[..., :2], labels, head), {}, "hidden"),
    ):
        with pytest.raises((ValueError, TypeError), match=word):
            token_statistics(*arguments, **options)


def test_autocast_does_not_reach_logits_that_are_there():
    hidden, _, _, labels, costs = drawn(torch.float32, classes=4, scale=30.0)
    logits, labels = hidden, labels.clamp(max=3)
    table = 1e5 * costs[0][:, :4].float()
    wanted = token_statistics(logits, labels, want=("log_p", "entropy"), costs=(table, costs[1]))
    leaf = logits.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        own = token_statistics(leaf, labels, want=("log_p", "entropy"), costs=(table, costs[1]))
        (slope,) = torch.autograd.grad((own.entropy + own.cost).sum(), leaf)
    plain = logits.clone().requires_grad_()
    again = token_statistics(plain, labels, want=("log_p", "entropy"), costs=(table, costs[1]))
    assert torch.equal(own.entropy, wanted.entropy)
    assert torch.equal(own.cost, wanted.cost)
    assert torch.equal(slope, torch.autograd.grad((again.entropy + again.cost).sum(), plain)[0])


def test_log_p_keeps_its_digits_under_transforms():
    z = torch.tensor([[[1e4, 1e4 - 8.0]]])
    own = torch.func.vmap(lambda one: token_statistics(one, torch.tensor([0]), want=("log_p",)).log_p)(z)
    assert own.item() == pytest.approx(-math.log1p(math.exp(-8.0)), rel=1e-4)


@pytest.mark.parametrize("memory", ["auto", 200])
def test_a_second_backward_pass_gives_the_same(memory):
    """Logits that were kept are gone after the first."""
    hidden, head, _, labels, costs = drawn()
    leaves = [hidden.requires_grad_(), head.requires_grad_()]
    own = token_statistics(*leaves[:1], labels, leaves[1], want=WANTED, costs=costs, columns=COLUMNS, memory=memory)
    total = own.log_p.square().sum() + own.entropy.sum() + own.cost.sum() + own.columns.sum()
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(total, leaves)):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("rows", "mebibytes"), [(256, 64), (1024, 64), (1024, 16)])
def test_memory_of_a_head_stays_within_the_budget(rows, mebibytes):
    """Forward and backward, kept or not: logits, what is made of them, and the gradients."""
    hidden, head = (torch.randn(n, 16, requires_grad=True) for n in (rows, 16_000))
    labels = torch.randint(16_000, (rows,))

    def step():
        own = token_statistics(hidden, labels, head, want=("log_p", "entropy"), memory=mebibytes << 20)
        return torch.autograd.grad(own.log_p.sum() + own.entropy.sum(), (hidden, head))

    gradients = 4 * (hidden.numel() + 2 * head.numel())
    assert peak_bytes(step) <= (mebibytes << 20) + gradients + 200 * rows


def test_options_that_go_nowhere_are_named():
    z, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="columns: expected one and more"):
        token_statistics(z, labels, columns=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="softcap: expected None without a head"):
        token_statistics(z, labels, softcap=3.0)
