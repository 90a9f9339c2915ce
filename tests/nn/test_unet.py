"""The small U-Net: shapes, skips, what it refuses."""

from __future__ import annotations

import pytest
import torch

from steepest.nn.unet import UNet


@pytest.mark.parametrize("size", [(32, 32), (31, 33), (4, 4), (5, 64)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_maps_have_the_size_of_the_images(size, depth):
    assert UNet(3, 2, width=4, depth=depth)(torch.randn(2, 3, *size)).shape == (2, 2, *size)


def test_an_image_does_not_depend_on_its_batch():
    net, images = UNet(1, 1, width=4), torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))


def test_every_level_reaches_the_output():
    net = UNet(1, 1, width=4, depth=3)
    net(torch.randn(2, 1, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_far_pixels_reach_each_other_only_through_the_deep_levels():
    for depth, reaches in ((1, False), (3, True)):
        net, images = UNet(1, 1, width=4, depth=depth).eval(), torch.ones(1, 1, 32, 32, requires_grad=True)
        for module in net.modules():  # group norm looks at all pixels: taken out for this
            if isinstance(module, torch.nn.Sequential):
                module[1], module[4] = torch.nn.Identity(), torch.nn.Identity()
        # positive weights, so that no unit is off
        with torch.no_grad():
            for p in net.parameters():
                p.abs_().add_(0.01)
        net(images)[0, 0, 16, 16].backward()
        assert bool(images.grad[0, 0, 16, 26] != 0) == reaches


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="width"):
        UNet(1, 1, width=0)
    with pytest.raises(ValueError, match="at least 4 x 4"):
        UNet(1, 1)(torch.zeros(1, 1, 3, 8))
    with pytest.raises(ValueError, match="inputs"):
        UNet(2, 1)(torch.zeros(1, 1, 8, 8))


def test_no_convolution_before_a_norm_has_a_bias():
    """The norm would take it away."""
    assert [
        name
        for name, m in UNet(1, 1, width=4).named_modules()
        if getattr(m, "bias", None) is not None and isinstance(m, torch.nn.Conv2d)
    ] == ["last"]
