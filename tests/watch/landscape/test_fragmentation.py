"""Fragmentation: numbers of the card, linear classifiers, naive loops over pairs and over a plane."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from steepest.watch.landscape import fragmentation_score, path_label_changes, region_count


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n=60, d=4, classes=3):
    generator = seeded(1)
    return torch.randn(n, d, generator=generator), torch.randint(classes, (n,), generator=generator)


def net(d=4, width=8, classes=3):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    return model


@pytest.mark.holds("fragmentation", 1)
def test_numbers_of_the_card():
    labels = torch.tensor([[0, 0, 1, 0, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1]])
    assert path_label_changes(labels).tolist() == [3, 0]
    assert int(path_label_changes(labels[0])) + 1 == 4


@pytest.mark.holds("fragmentation", 2)
def test_a_linear_classifier_of_two_classes():
    x, y = rows(classes=2)
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    got = fragmentation_score(model, x, y, 200, kind="all", generator=seeded())
    assert int(got["changes"].max()) == 1
    same = fragmentation_score(model, x, y, 200, kind="same", by="prediction", generator=seeded())
    assert float(same["score"]) == 0.0
    labels = model(x).argmax(1)
    assert bool((labels[same["rows"][:, 0]] == labels[same["rows"][:, 1]]).all())
    assert float(got["different"]) == 0.0


@pytest.mark.holds("fragmentation", 3)
def test_a_linear_classifier_has_one_run_of_each_label_on_a_path():
    torch.manual_seed(1)
    model = nn.Linear(4, 6)
    a, b = 3 * torch.randn(2, 300, 4)
    share = torch.linspace(0, 1, 101)[:, None]
    many = 0
    for start, end in zip(a, b):
        labels = model((1 - share) * start + share * end).argmax(1)
        assert int(path_label_changes(labels)) + 1 == len(labels.unique())
        many += len(labels.unique()) > 2
    assert many > 50
    got = fragmentation_score(
        model, torch.cat([a, b]), torch.zeros(600).long(), 300, by="prediction", generator=seeded()
    )
    assert float(got["same"]) == 0.0


def naive(model, x, y, pairs, steps, kind="all", hidden=None):
    """A loop over pairs and points."""
    excess = []
    for a, b in pairs.tolist():
        labels = []
        for k in range(steps + 1):
            s = k / steps
            if hidden is None:
                scores = model(((1 - s) * x[a] + s * x[b])[None])
            else:
                scores = model[hidden:]((1 - s) * model[:hidden](x[a][None]) + s * model[:hidden](x[b][None]))
            labels.append(int(scores.argmax()))
        changes = sum(p != q for p, q in pairwise(labels))
        excess.append(changes if y[a] == y[b] else max(0, changes - 1))
    return torch.tensor(excess).float()


@pytest.mark.parametrize("kind", ["all", "same", "different"])
def test_a_loop_over_pairs(kind):
    x, y = rows()
    model = net()
    got = fragmentation_score(model, x, y, 40, 30, kind=kind, generator=seeded())
    assert torch.equal(got["per_pair"], naive(model, x, y, got["rows"], 30))
    assert float(got["score"]) == pytest.approx(float(got["per_pair"].mean()))
    assert float(got["score"]) > 0.05
    same = y[got["rows"][:, 0]] == y[got["rows"][:, 1]]
    assert same.float().mean() == {"same": 1.0, "different": 0.0}.get(kind, same.float().mean())
    assert bool((got["rows"][:, 0] != got["rows"][:, 1]).all())
    if kind == "all":
        torch.testing.assert_close(got["same"], got["per_pair"][same].mean())
        torch.testing.assert_close(got["different"], got["per_pair"][~same].mean())


def test_pairs_are_uniform_over_those_of_the_kind():
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    x = torch.randn(6, 2, generator=seeded())
    for kind, count in (("same", 4), ("different", 11), ("all", 15)):
        drawn = (
            fragmentation_score(nn.Linear(2, 3), x, y, 6000, 1, kind=kind, generator=seeded())["rows"].sort(1).values
        )
        ways, counts = drawn.unique(dim=0, return_counts=True)
        assert len(ways) == count
        share = 6000 / count
        assert bool(((counts - share).abs() < 5 * share**0.5).all())


@pytest.mark.holds("fragmentation", 4)
def test_both_ways_and_any_temperature():
    model = net()

    def score(model, x):
        return float(fragmentation_score(model, x, torch.zeros(2).long(), 1, 101, generator=seeded())["score"])

    many = 0
    for seed in range(30):
        x = 2 * torch.randn(2, 4, generator=seeded(seed))
        forward = score(model, x)
        assert score(model, x.flip(0)) == forward
        assert score(lambda x: model(x) * (0.1 + x[:, :1].abs()) + x[:, 1:2], x) == forward
        many += forward > 0
    assert many > 5


@pytest.mark.holds("fragmentation", 5)
def test_equal_ends_and_finer_steps():
    x, y = rows()
    model = net()
    twice = x[:1].repeat(5, 1)
    got = fragmentation_score(model, twice, torch.tensor([0, 1, 0, 1, 1]), 20, generator=seeded())
    assert float(got["score"]) == 0.0
    counts = [fragmentation_score(model, x, y, 100, k, generator=seeded())["changes"] for k in (4, 8, 16, 64)]
    for coarse, fine in pairwise(counts):
        assert bool((fine >= coarse).all())
    assert int(counts[-1].sum()) > int(counts[0].sum())


def test_between_hidden_activations_and_no_trace():
    x, y = rows()
    model = net().train()
    model.append(nn.Dropout(0.5))
    got = fragmentation_score(model, x, y, 30, 25, layer="1", generator=seeded())
    assert model.training
    assert not model[1]._forward_hooks
    plain = nn.Sequential(*list(model)[:-1])
    assert torch.equal(got["per_pair"], naive(plain, x, y, got["rows"], 25, hidden=2))
    first = fragmentation_score(model, x, y, 30, 25, generator=seeded())
    assert torch.equal(first["rows"], got["rows"])
    assert torch.equal(first["per_pair"], naive(plain, x, y, got["rows"], 25))
    assert not torch.equal(first["per_pair"], got["per_pair"])


def regions(labels):
    """A flood fill over eight neighbours."""
    n, m = labels.shape
    open_places = {(i, j) for i in range(n) for j in range(m)}
    count = 0
    while open_places:
        stack = [open_places.pop()]
        count += 1
        while stack:
            i, j = stack.pop()
            for place in [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
                if place in open_places and labels[place] == labels[i, j]:
                    open_places.remove(place)
                    stack.append(place)
    return count


def test_regions_of_a_plane():
    def model(x):
        return (2 * x[..., :3]).sin()

    many = []
    for seed in range(5):
        points = 2 * torch.randn(3, 5, generator=seeded(seed))
        p = points.double().numpy()
        axes, _ = np.linalg.qr((p[1:] - p[0]).T)
        axes = axes * np.sign(((p[1:] - p[0]) @ axes)[[0, 1], [0, 1]])
        places = np.concatenate([[[0.0, 0.0]], (p[1:] - p[0]) @ axes])
        low, high = places.min(0), places.max(0)
        first, second = (np.linspace(a - (b - a) / 2, b + (b - a) / 2, 30) for a, b in zip(low, high))
        grid = p[0] + first[:, None, None] * axes[:, 0] + second[None, :, None] * axes[:, 1]
        with torch.no_grad():
            labels = model(torch.tensor(grid).float()).argmax(-1).numpy()
        many.append(regions(labels))
        assert region_count(model, points, 30) == many[-1]
    assert max(many) > 3
    x, y = rows(d=5)
    got = fragmentation_score(model, x, y, 4, kind="plane", grid=20, generator=seeded())
    assert got["per_pair"].tolist() == [region_count(model, x[row], 20) for row in got["rows"]]


def test_corners_join():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    def chequered(x):
        crossed = ((x[:, 0] > 0.5) ^ (x[:, 1] > 0.5)).float()
        return torch.stack([crossed, 1 - crossed], 1)

    assert region_count(chequered, points, 2) == 2
    assert region_count(lambda x: torch.ones(len(x), 2), points) == 1


def test_images_keep_their_shape():
    x = torch.randn(6, 1, 4, 4, generator=seeded())
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    assert fragmentation_score(model, x, torch.arange(6) % 2, 5, 3, generator=seeded())["per_pair"].shape == (5,)
    assert region_count(model, x[:3], 5) >= 1


def test_no_graph_is_built_and_a_failure_leaves_no_hook():
    x, y = rows()
    model = net()
    graphs = []

    def watched(rows):
        graphs.append(torch.is_grad_enabled())
        return model(rows)

    fragmentation_score(watched, x, y, 3, 3, generator=seeded())
    region_count(watched, x[:3], 3)
    assert graphs
    assert not any(graphs)
    with pytest.raises(RuntimeError):
        fragmentation_score(model, x[:, :2], y, 3, 3, layer="1", generator=seeded())
    assert not model[1]._forward_hooks


def test_what_it_refuses():
    x, y = rows()
    model = net()
    for wrong, error, message in (
        ({"x": x.long()}, TypeError, "x: expected a floating tensor"),
        ({"y": y.float()}, TypeError, "y: expected an integer tensor"),
        ({"y": y[:5]}, ValueError, "y: expected shape"),
        ({"pairs": 0}, ValueError, "pairs: expected an integer >= 1"),
        ({"by": "logit"}, ValueError, "by: expected one of"),
        ({"kind": "plane", "grid": 0}, ValueError, "grid: expected an integer >= 1"),
    ):
        with pytest.raises(error, match=message):
            fragmentation_score(model, **({"x": x, "y": y, "pairs": 2} | wrong))
    with pytest.raises(ValueError, match="layer: expected the name of a module"):
        fragmentation_score(lambda x: model(x), x, y, layer="1")
    with pytest.raises(TypeError, match="triplet: expected a floating tensor"):
        region_count(model, torch.arange(12).view(3, 4))
    with pytest.raises(ValueError, match="triplet: expected three points that span a plane"):
        region_count(model, x[[0, 0, 1]])
    with pytest.raises(TypeError, match="labels: expected an integer tensor"):
        path_label_changes(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="y: expected a pair of two classes"):
        fragmentation_score(model, x, torch.zeros_like(y), kind="different")
    with pytest.raises(ValueError, match="y: expected a pair of one class"):
        fragmentation_score(model, x[:3], torch.arange(3), kind="same")
    with pytest.raises(ValueError, match="kind: expected one of"):
        fragmentation_score(model, x, y, kind="path")
    with pytest.raises(ValueError, match="layer: expected the name of a module"):
        fragmentation_score(model, x, y, layer="9")
    with pytest.raises(ValueError, match="steps: expected an integer >= 1"):
        fragmentation_score(model, x, y, steps=0)
    with pytest.raises(ValueError, match="x: expected at least two rows"):
        fragmentation_score(model, x[:1], y[:1])
    with pytest.raises(ValueError, match="scores of the model: expected 2 dimensions"):
        fragmentation_score(lambda x: x[:, 0], x, y)
    with pytest.raises(TypeError, match="model: expected a model or a function"):
        fragmentation_score(3, x, y)
    with pytest.raises(ValueError, match="triplet: expected three points that span a plane"):
        region_count(model, torch.arange(12.0).view(3, 4))
    with pytest.raises(ValueError, match="triplet: expected three inputs"):
        region_count(model, x[:2])
    with pytest.raises(ValueError, match="labels: expected at least one point"):
        path_label_changes(torch.zeros(2, 0).long())
