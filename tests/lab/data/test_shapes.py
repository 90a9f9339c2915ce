"""The drawn segmentation task, and soft-clDice, which the experiment on it uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.lab.data import shapes as module
from steepest.lab.data.shapes import KINDS, shapes
from steepest.lab.losses.dense.betti_matching import soft_cldice_loss
from steepest.losses.dense._persistence import betti_numbers


def test_images_and_masks():
    images, masks = shapes(6, 3)
    again = shapes(6, 3)
    assert images.shape == masks.shape == (6, 1, 48, 48)
    assert images.dtype == masks.dtype == np.float32
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(masks, again[1])
    np.testing.assert_allclose(images.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std((1, 2, 3)), 1, atol=1e-5)
    assert set(np.unique(masks)) == {0, 1}
    for other in (shapes(6, 4), shapes(6, 3, part="test")):
        assert (other[1] != masks).any((1, 2, 3)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_have_topology(kind):
    _, masks = shapes(20, 0, kinds=(kind,), size=40)
    components, holes = betti_numbers(masks > 0)
    assert masks.shape[-1] == 40
    assert (holes >= (1 if kind == "rings" else 0)).all()
    assert holes.mean() >= 1
    assert (components >= 1).all()
    # nearly every network is one piece, some rings lie apart
    assert (components == 1).mean() >= 0.8 if kind == "network" else (components > 1).any()


def test_lines_are_brighter_apart_from_gaps():
    images, masks = shapes(30, 0)
    inside = masks > 0
    assert images[inside].mean() > images[~inside].mean() + 0.5
    seen = module._fading(np.random.default_rng(0), inside[0, 0])
    assert 0 <= seen.min() < 0.1
    assert seen.max() == pytest.approx(1.0)
    assert (module._fading(np.random.default_rng(0), np.zeros((24, 24), dtype=bool)) == 1).all()


def test_parts_share_no_background(monkeypatch):
    photograph = np.zeros((100, 300))
    photograph[:, 200:] = 1
    monkeypatch.setattr(module, "_photographs", lambda: (photograph, photograph))
    rng = np.random.default_rng(0)
    for part, value in (("train", 0), ("test", 1)):
        assert all((module._background(rng, part, 24) == value).all() for _ in range(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "all"}, "part: expected one of train, test"),
        ({"kinds": ("tree",)}, "kinds: expected some of"),
        ({"kinds": ()}, "kinds: expected some of"),
        ({"size": 23}, "size: expected at least 24"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(1, 0, **options)


def test_soft_cldice():
    """Lines of three pixels: the skeleton is the middle; a gap costs its share of the skeleton."""
    y = torch.zeros(1, 1, 9, 40)
    y[..., 3:6, :] = 1
    assert soft_cldice_loss(y, y).item() == pytest.approx(0, abs=1e-6)
    broken = y.clone()
    broken[..., 15:25] = 0
    # 30 of 40 pixels of the middle line are there; all of the broken skeleton lies inside
    share = (30 + 1) / (40 + 1)
    assert soft_cldice_loss(broken, y).item() == pytest.approx(1 - 2 * share / (1 + share), abs=1e-6)
    # thicker lines have the same skeleton: clDice does not see them, unlike Dice
    thick = torch.zeros(1, 1, 9, 40)
    thick[..., 2:7, :] = 1
    assert soft_cldice_loss(thick, y).item() == pytest.approx(0, abs=1e-6)
