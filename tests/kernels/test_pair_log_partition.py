"""Log-partitions of pairs against a loop in float64: kept and formed again, of rows and of both sides, masked."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.kernels import pair_log_partition

pytestmark = pytest.mark.holds("pair-log-partition")


def drawn(n=5, m=7, width=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((n, width), (m, width))
    ]


def by_definition(a, b, *, scale=None, bias=None, weight=None, mask=None, ids=None, positive=None, include=True):
    """A pair after the other, as it is written; the sums of rows and of columns, and how many pairs they have."""
    n, m = len(a), len(b)
    terms = {}
    positives = [-math.inf] * n
    for i in range(n):
        for j in range(m):
            s = sum(float(x) * float(y) for x, y in zip(a[i], b[j])) * (1.0 if scale is None else float(scale[i][j]))
            s += 0.0 if bias is None else float(bias[i][j])
            s += 0.0 if weight is None else math.log(float(weight[i][j])) if weight[i][j] > 0 else -math.inf
            if mask is not None and not mask[i][j]:
                continue
            own = positive is not None and positive[i] == j
            if own:
                positives[i] = s
            if (own and not include) or (not own and ids is not None and ids[0][i] == ids[1][j]):
                continue
            terms[i, j] = s

    def total(values):
        return math.log(sum(math.exp(v) for v in values)) if any(v > -math.inf for v in values) else -math.inf

    rows = [[s for (i, _), s in terms.items() if i == k] for k in range(n)]
    columns = [[s for (_, j), s in terms.items() if j == k] for k in range(m)]
    means = [
        sum(math.exp(s - total(row)) * s for s in row if s > -math.inf) if total(row) > -math.inf else 0.0
        for row in rows
    ]
    sizes = [[len(line) for line in lines] for lines in (rows, columns)]
    return positives, [total(r) for r in rows], [total(c) for c in columns], *sizes, means


POSITIVE = torch.tensor([2, 0, -1, 6, 4])
IDS = torch.tensor([1, 2, 3, 1, 5]), torch.tensor([2, 1, 1, 3, 5, 1, 1])
MATRIX = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
CASES = {
    "plain": {},
    "no positives": {"positive": "none"},
    "a scale of rows": {"scale": MATRIX[:, :1].exp()},
    "a scale of columns": {"scale": MATRIX[0].exp()},
    "a scale of pairs": {"scale": MATRIX.exp()},
    "bias": {"bias": MATRIX[0], "scale": 2.0},
    "a bias of rows": {"bias": MATRIX[:, :1]},
    "weights": {"weight": (MATRIX > 0).double() * MATRIX.exp()},
    "a mask of columns": {"mask": torch.tensor([1, 0, 1, 0, 1, 0, 1]).bool()},
    "a mask of rows": {"mask": torch.tensor([1, 1, 1, 0, 1]).bool().unsqueeze(1)},
    "a mask of pairs": {"mask": MATRIX > -0.5},
    "a row that has nothing": {"mask": (MATRIX > 0) & (torch.arange(5) != 1).unsqueeze(1)},
    "ids": {"ids": IDS},
    "ids without positives": {"ids": IDS, "positive": "none"},
    "negatives alone": {"include_positive": False},
    "all of it": {
        "scale": MATRIX[:, :1].exp(), "bias": MATRIX, "weight": MATRIX.exp(), "mask": MATRIX < 1, "ids": IDS,
        "include_positive": False,
    },
}  # fmt: skip


def whole(value):
    return None if value is None else torch.as_tensor(value).expand(5, 7).tolist()


@pytest.mark.parametrize("memory", ["auto", 1], ids=["kept", "formed again"])
@pytest.mark.parametrize("name", CASES)
def test_numbers_and_gradients_are_those_of_the_definition(name, memory):
    options = {"positive": POSITIVE, **CASES[name]}
    a, b = drawn()
    positives, rows, columns, row_counts, column_counts, means = by_definition(
        a, b, **{key: whole(options.get(key)) for key in ("scale", "bias", "weight", "mask")}, ids=options.get("ids"),
        positive=None if isinstance(options["positive"], str) else options["positive"].tolist(),
        include=options.get("include_positive", True),
    )  # fmt: skip
    pairs = pair_log_partition(a, b, sides="both", memory=memory, **options)
    wanted = torch.tensor([rows, positives], dtype=torch.float64)
    torch.testing.assert_close(pairs.log_z, wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pairs.column_log_z, torch.tensor(columns, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert pairs.count.tolist() == row_counts
    assert pairs.column_count.tolist() == column_counts
    alone = pair_log_partition(a, b, memory=memory, mean=True, **options)
    torch.testing.assert_close(alone.mean, torch.tensor(means, dtype=torch.float64), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(alone.log_z, pairs.log_z, rtol=0, atol=0)
    if isinstance(options["positive"], str):
        assert pairs.positive is None
        assert pairs.log_p is None
    else:
        torch.testing.assert_close(pairs.positive, wanted[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pairs.log_p, wanted[1] - wanted[0], rtol=1e-11, atol=1e-12, equal_nan=True)
        place = POSITIVE.clamp_min(0)
        by_column = wanted[1] - torch.tensor(columns, dtype=torch.float64)[place]
        torch.testing.assert_close(pairs.column_log_p, by_column, rtol=1e-11, atol=1e-12)

    names = [key for key in ("scale", "bias", "weight") if isinstance(options.get(key), torch.Tensor)]

    def finite_numbers(a, b, *rest):
        pairs = pair_log_partition(a, b, sides="both", memory=memory, **{**options, **dict(zip(names, rest))})
        numbers = [pairs.log_z, pairs.log_p, pairs.positive, pairs.column_log_z, pairs.column_log_p]
        return tuple(t[t.isfinite()] for t in numbers if t is not None)

    if name != "weights":  # at a weight of 0 there is no derivative of its logarithm
        leaves = [t.clone().requires_grad_() for t in (a, b, *(options[key] for key in names))]
        assert torch.autograd.gradcheck(finite_numbers, leaves, fast_mode=True)


@pytest.mark.parametrize("memory", ["auto", 1], ids=["kept", "formed again"])
def test_second_derivatives_transforms_and_graphs(memory):
    a, b = drawn(4, 4)

    def run(a, b):
        pairs = pair_log_partition(a, b, scale=2.0, sides="both", memory=memory)
        return -(pairs.log_p + pairs.column_log_p).sum()

    assert torch.autograd.gradgradcheck(run, (a.clone().requires_grad_(), b.clone().requires_grad_()), fast_mode=True)
    leaf = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(run(leaf, b), leaf)
    torch.testing.assert_close(torch.func.grad(run)(a, b), slope)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(run))(a[None], b[None])[0], slope)


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    a, b = drawn(4, 4)

    def run(a, b):
        pairs = pair_log_partition(a, b, scale=2.0, sides="both", ids=torch.tensor([0, 1, 1, 2]))
        return -(pairs.log_p + pairs.column_log_p).sum()

    torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(a, b), run(a, b))


@pytest.mark.parametrize("memory", ["auto", 1], ids=["kept", "formed again"])
def test_what_no_pair_counts_of_may_be_anything(memory):
    a, b = drawn()
    rows, columns = torch.tensor([1, 1, 0, 1, 1]).bool(), torch.tensor([1, 0, 1, 1, 1, 1, 1]).bool()
    values, slopes = [], []
    for content in (0.0, math.nan, math.inf):
        c, d = a.clone(), b.clone()
        c[2], d[1] = content, content
        c.requires_grad_(), d.requires_grad_()
        pairs = pair_log_partition(
            c, d, mask=rows.unsqueeze(1) & columns, positive=POSITIVE.clamp_min(2), sides="both", memory=memory
        )
        value = pairs.log_p[rows].sum() + pairs.column_log_z[columns].sum()
        values.append(value)
        slopes.append(torch.cat(torch.autograd.grad(value, (c, d))))
    assert values[0] == values[1] == values[2]
    assert slopes[0].isfinite().all()
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


def test_functions_of_rows_are_what_their_matrices_are():
    a, b = drawn()
    weight, mask = MATRIX.exp(), MATRIX > -0.5
    wanted = pair_log_partition(a, b, bias=MATRIX, weight=weight, mask=mask, memory=1)
    result = pair_log_partition(
        a, b, bias=lambda rows: MATRIX[rows], weight=lambda rows: weight[rows], mask=lambda rows: mask[rows], memory=1
    )
    for one, two in zip(result[:4], wanted[:4]):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_give_float32_of_the_rounded_rows(dtype):
    a, b = drawn(dtype=dtype)
    pairs = pair_log_partition(a, b, scale=50.0)
    wide = pair_log_partition(a.double(), b.double(), scale=50.0)
    assert pairs.log_p.dtype == torch.float32
    torch.testing.assert_close(pairs.log_p, wide.log_p.float(), rtol=1e-5, atol=1e-5)


def test_a_confident_row_keeps_what_its_similarities_would_round_away():
    """Two columns at scale 1e4: log p is -log1p(e^-7), whatever the size of the similarities."""
    a = torch.tensor([[1.0]])
    pairs = pair_log_partition(a, torch.tensor([[1.0], [1.0 - 7 / 8192]]), scale=8192.0)
    assert pairs.log_p.item() == pytest.approx(-math.log1p(math.exp(-7)), rel=1e-5)


def test_many_blocks_are_one():
    a, b = drawn(300, 310, 4, torch.float32)
    leaf, wide = a.clone().requires_grad_(), a.double().requires_grad_()
    options = {"sides": "both", "scale": 3.0}
    few = pair_log_partition(leaf, b, memory=1, **options)
    exact = pair_log_partition(wide, b.double(), **options)
    for one, two in zip(few[:7], exact[:7]):
        torch.testing.assert_close(one.double(), two.double(), rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad((few.log_p + few.column_log_p).mean(), leaf)
    (truth,) = torch.autograd.grad((exact.log_p + exact.column_log_p).mean(), wide)
    torch.testing.assert_close(slope.double(), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("a: expected", {"a": torch.zeros(3)}),
        ("b: expected", {"b": torch.zeros(7, 2)}),
        ("sides: expected", {"sides": "columns"}),
        ("positive: expected", {"positive": torch.zeros(4, dtype=torch.int64)}),
        ("positive: expected", {"positive": torch.full((5,), 7)}),
        ("mask: expected", {"mask": torch.ones(5, 7)}),
        ("mask: expected", {"mask": torch.ones(5, dtype=torch.bool)}),
        ("weight: expected", {"weight": torch.ones(7, 5)}),
        ("ids: expected", {"ids": torch.arange(5)}),
        ("include_positive: expected", {"include_positive": False, "positive": "none"}),
    ],
)
def test_wrong_arguments_are_named(words, change):
    a, b = drawn(dtype=torch.float32)
    with pytest.raises((ValueError, TypeError), match=words):
        pair_log_partition(**{"a": a, "b": b, **change})


def test_a_scale_of_a_row_that_is_hidden_may_be_anything():
    a, b = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    a, b = a[:3].requires_grad_(), b.requires_grad_()
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    scale = torch.tensor([[1.0], [math.nan], [2.0]])
    pair_log_partition(a, b, positive="none", mask=mask, scale=scale).log_z[[0, 2]].sum().backward()
    assert b.grad.isfinite().all()
    assert not a.grad[1].any()
    with pytest.raises(ValueError, match="positive: expected columns"):
        pair_log_partition(a, b, positive=torch.tensor([True, False, True]))
