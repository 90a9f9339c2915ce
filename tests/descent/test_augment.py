import pytest
import torch

from steepest.descent.augment import ImageAugment, default_augment, image_augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def naive(image, flip, dy, dx, padding):
    """One image, pixel by pixel."""
    _, height, width = image.shape
    if flip:
        image = torch.stack([image[:, :, width - 1 - j] for j in range(width)], dim=2)
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            y, x = i + dy, j + dx
            if padding == "reflect":
                y = -y if y < 0 else 2 * (height - 1) - y if y >= height else y
                x = -x if x < 0 else 2 * (width - 1) - x if x >= width else x
            elif not (0 <= y < height and 0 <= x < width):
                continue
            out[:, i, j] = image[:, y, x]
    return out


def draws_of(flip, shift, images, seed):
    """What a seed draws, in the order rows, columns, flips."""
    g = generator(seed)
    rows, columns = (
        torch.randint(-shift, shift + 1, (images, 1), generator=g)[:, 0] if shift else [0] * images for _ in "yx"
    )
    mirrored = torch.rand(images, generator=g) < 0.5 if flip else [False] * images
    return [(bool(f), int(dy), int(dx)) for f, dy, dx in zip(mirrored, rows, columns)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 0), (False, 2), (True, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_the_naive_loops(layout, padding, flip, shift, channels):
    images = torch.randn(24, channels, 6, 5, generator=generator(1)).contiguous(memory_format=layout)
    before = images.clone()
    out = image_augment(flip, shift, padding=padding)(images, generator(2))
    drawn = draws_of(flip, shift, 24, 2)
    assert len(set(drawn)) > (2 * shift + 1) ** 2 * (1 + flip) // 8
    for image, view, how in zip(images, out, drawn):
        assert torch.equal(view, naive(image, *how, padding))
    assert torch.equal(images, before)
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert out.is_contiguous(memory_format=layout)


def test_flips_are_fair_and_shifts_uniform():
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    images = torch.stack([rows, columns]).expand(8000, 2, 9, 9)
    out = ImageAugment(flip=True, shift=2)(images, generator())
    dy = out[:, 0, 4, 4] - 4
    mirrored = out[:, 1, 4, 4] > out[:, 1, 4, 5]
    dx = torch.where(mirrored, 4 - out[:, 1, 4, 4], out[:, 1, 4, 4] - 4)
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / 8000**0.5
    for moved in (dy, dx, dx[mirrored], dx[~mirrored]):
        counts = torch.bincount((moved + 2).long(), minlength=5).double()
        assert len(counts) == 5
        expected = len(moved) / 5
        assert ((counts - expected).abs() < 5 * (expected * 0.8) ** 0.5).all()
    assert abs(torch.corrcoef(torch.stack([dy, dx, mirrored.float()]))[0, 1]) < 5 / 8000**0.5


def test_the_generator_decides_and_nothing_else():
    images = torch.randn(32, 3, 8, 8, generator=generator(5))
    augment = ImageAugment(flip=True, shift=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (augment(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    last = augment(images.contiguous(memory_format=torch.channels_last), generator(1))
    assert torch.equal(first, last)


def test_leading_dimensions_draw_for_each_image():
    images = torch.randn(4, 6, 3, 8, 8, generator=generator(5))
    augment = ImageAugment(flip=True, shift=2)
    out = augment(images, generator())
    assert torch.equal(out.flatten(0, 1), augment(images.flatten(0, 1), generator()))
    assert out.shape == images.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bfloat16])
def test_types_stay(dtype):
    images = torch.arange(2 * 16).view(2, 1, 4, 4).to(dtype)
    assert ImageAugment(shift=1, padding="zero")(images, generator()).dtype == dtype


def test_gradients_flow_back_to_the_pixels_that_were_taken():
    images = torch.randn(5, 2, 6, 6, requires_grad=True)
    ImageAugment(flip=True, shift=2, padding="zero")(images, generator()).sum().backward()
    assert set(images.grad.unique().tolist()) == {0.0, 1.0}


def test_the_usual_augmentations():
    assert default_augment((3, 32, 32)) == ImageAugment(flip=True, shift=4, padding="reflect")
    assert default_augment((1, 28, 28)) == ImageAugment(flip=False, shift=2, padding="reflect")
    assert default_augment((1, 8, 8)) == ImageAugment(flip=False, shift=0)
    assert str(default_augment((3, 8, 8))) == "random flips, shifts by up to 1 pixel"
    assert str(image_augment(shift=2, padding="zero")) == "shifts by up to 2 pixels, zeros"
    assert str(image_augment()) == "none"
    assert ImageAugment() == ImageAugment(flip=False, shift=0, padding="reflect")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ImageAugment(flip=1), TypeError, "flip"),
        (lambda: ImageAugment(shift=-1), ValueError, "shift"),
        (lambda: ImageAugment(shift=1.5), TypeError, "shift"),
        (lambda: ImageAugment(padding="edge"), ValueError, "padding"),
        (lambda: ImageAugment(shift=4)(torch.zeros(2, 1, 4, 9), generator()), ValueError, "shift of 4"),
        (lambda: ImageAugment(shift=1)(torch.zeros(3, 8, 8), generator()), ValueError, "inputs"),
        (lambda: ImageAugment(shift=1)([1.0], generator()), TypeError, "inputs"),
        (lambda: default_augment((32, 32)), ValueError, "shape"),
        (lambda: default_augment((0, 32, 32)), ValueError, "shape"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
