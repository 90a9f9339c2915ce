"""Pairwise distances against scipy and against components written out."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import cdist

from steepest.core.distances import VARIANTS, check_distance, distances

X = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
W = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], dtype=torch.float64)
FORMS = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
PARTS = [("canberra", "standard"), ("canberra", "robust"), ("chebyshev", "smooth")]
SCIPY = {
    "euclidean": {"metric": "euclidean"},
    "manhattan": {"metric": "cityblock"},
    "minkowski": {"metric": "minkowski", "p": 1.5},
    "chebyshev": {"metric": "chebyshev"},
    "cosine": {"metric": "cosine"},
    "canberra": {"metric": "canberra"},
}
OWN = [(name, variant) for name, variant in FORMS if name not in SCIPY or variant != VARIANTS[name][0]]


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(rows, 6, generator=generator, dtype=torch.float64) for rows in (9, 4))


def form(x, w, name, variant, **how):
    factor = None
    if name == "mahalanobis":
        factor = torch.eye(x.shape[1], dtype=x.dtype)
        factor = factor.diagonal() if variant == "diagonal" else factor
    return distances(x, w, distance=name, variant=variant or None, factor=factor, **how)


def naive(x, w, name, variant):
    """One pair, by components."""
    u = [abs(a - b) for a, b in zip(x, w)]
    total = [abs(a) + abs(b) for a, b in zip(x, w)]
    if name == "hamming":
        s = lambda v: 1 / (1 + math.exp(-v / 2.0))  # noqa: E731
        return sum(abs(s(a) - s(b)) for a, b in zip(x, w))
    if name == "mahalanobis":
        return math.dist(x, w)
    if name == "chebyshev":
        return math.log(sum(math.exp(10 * v) for v in u)) / 10
    if variant == "robust":
        return sum(v / max(t, 0.5) for v, t in zip(u, total))
    if variant == "weighted":
        return sum(t * (v / t) for v, t in zip(u, total)) / sum(total)
    if variant == "standard":
        return sum(u) / abs(sum(a + b for a, b in zip(x, w)))
    if variant == "normalized":
        a, b = ([abs(v) / sum(map(abs, z)) for v in z] for z in (x, w))
        return sum(abs(i - j) for i, j in zip(a, b)) / 2
    return sum(u) / sum(total)


@pytest.mark.parametrize("name", SCIPY)
def test_scipy(name, pair):
    x, w = pair
    wanted = torch.from_numpy(cdist(x.numpy(), w.numpy(), **SCIPY[name]))
    torch.testing.assert_close(distances(x, w, distance=name), wanted)


@pytest.mark.parametrize(
    ("name", "variant"), [f for f in FORMS if f[0] not in SCIPY or f[1] not in (VARIANTS[f[0]][0])]
)
def test_naive_loop(name, variant, pair):
    x, w = pair
    wanted = [[naive(a, b, name, variant) for b in w.tolist()] for a in x.tolist()]
    found = form(x, w, name, variant, temperature=2.0, floor=0.5)
    torch.testing.assert_close(found, x.new_tensor(wanted))


@pytest.mark.parametrize("shape", [(6,), (6, 6), (6, 2)])
def test_mahalanobis_with_a_metric(shape, pair):
    x, w = pair
    factor = torch.randn(shape, dtype=torch.float64)
    metric = torch.diag(factor**2) if factor.ndim == 1 else factor @ factor.T
    wanted = [[((a - b) @ metric @ (a - b)).sqrt().item() for b in w] for a in x]
    torch.testing.assert_close(distances(x, w, distance="mahalanobis", factor=factor), x.new_tensor(wanted))


@pytest.mark.parametrize(("name", "variant"), FORMS)
def test_gradient(name, variant, pair):
    x, w = (v.clone().requires_grad_() for v in pair)
    assert torch.autograd.gradcheck(lambda a, b: form(a, b, name, variant), (x, w))


@pytest.mark.parametrize(("name", "variant"), FORMS)
def test_mapped_over_models(name, variant, pair):
    x, w = pair
    xs, ws = (torch.stack([v, 2 * v.flip(0), v - 1]).requires_grad_() for v in (x, w))
    for chunk in (2**24, 24):
        mapped = torch.func.vmap(lambda a, b, c=chunk: form(a, b, name, variant, chunk=c))(xs, ws)
        slopes = torch.autograd.grad(mapped.square().sum(), (xs, ws))
        for i in range(3):
            one, other = (v.detach()[i].requires_grad_() for v in (xs, ws))
            single = form(one, other, name, variant)
            torch.testing.assert_close(mapped[i], single)
            for a, b in zip(slopes, torch.autograd.grad(single.square().sum(), (one, other))):
                torch.testing.assert_close(a[i], b)


@pytest.mark.parametrize(
    ("name", "variant"), [("canberra", "standard"), ("canberra", "robust"), ("chebyshev", "smooth")]
)
@pytest.mark.parametrize("chunk", [1, 24, 50, 215])
def test_in_parts_it_is_the_same_and_holds_no_more(name, variant, chunk, pair):
    x, w = (v.clone().requires_grad_() for v in pair)
    whole = form(x, w, name, variant)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.numel())
            return found

    with Watch():
        parts = form(x, w, name, variant, chunk=chunk)
        slopes = torch.autograd.grad(parts.sin().sum(), (x, w))
    assert largest <= max(chunk, w.numel(), x.numel())
    torch.testing.assert_close(parts, whole)
    for a, b in zip(slopes, torch.autograd.grad(whole.sin().sum(), (x, w))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("name", "variant"), FORMS)
def test_where_vectors_coincide_or_vanish(name, variant):
    x = torch.tensor([[1.0, -2.0], [0.0, 0.0]], requires_grad=True)
    w = torch.tensor([[1.0, -2.0], [0.0, 0.0]], requires_grad=True)
    d = form(x, w, name, variant)
    slopes = torch.autograd.grad(d.sum(), (x, w))
    assert all(bool(torch.isfinite(v).all()) for v in (d, *slopes))
    if variant != "smooth":
        assert d[0, 0].item() == pytest.approx(0.0, abs=1e-6)
        assert d[1, 1].item() == (1.0 if name == "cosine" else 0.0)


def test_cosine_distance_is_never_negative():
    w = torch.randn(200, 7)
    d = distances(torch.cat([w, 3 * w]), w, distance="cosine")
    assert float(d.min()) >= 0


def test_many_centres_by_a_matrix_product_far_from_the_origin():
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 8, generator=generator) for n in (30, 300))
    wanted = torch.from_numpy(cdist(x.double().numpy(), w.double().numpy()))
    for shift in (0.0, 100.0):
        torch.testing.assert_close(distances(x + shift, w + shift).double(), wanted, rtol=1e-4, atol=1e-4)


def test_half_inputs_give_float32(pair):
    x, w = pair
    found = distances(x.bfloat16(), w.bfloat16(), distance="manhattan")
    assert found.dtype == torch.float32
    wanted = distances(x.bfloat16().double(), w.bfloat16().double(), distance="manhattan")
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_refusals():
    assert check_distance("bray_curtis", None) == "abs"
    bad = (
        {"distance": "taxi"},
        {"distance": "canberra", "variant": "abs"},
        {"distance": "minkowski", "p": 0.5},
        {"distance": "chebyshev", "variant": "smooth", "sharpness": 0.0},
        {"distance": "hamming", "temperature": 0.0},
        {"distance": "canberra", "floor": 0.0},
        {"distance": "mahalanobis"},
        {"distance": "mahalanobis", "factor": torch.ones(3)},
        {"factor": torch.ones(2)},
        {"chunk": 0},
    )
    for how in bad:
        with pytest.raises(ValueError, match=": expected "):
            distances(X, W, **how)
    with pytest.raises(ValueError, match="centres: expected"):
        distances(X, W[:, :1])
