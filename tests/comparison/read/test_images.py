import gzip
import hashlib
import io
import json
import struct
import zipfile

import numpy as np
import pytest

from steepest.comparison.errors import InputError
from steepest.comparison.read.images import ImageScaler, load_images

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 6, 5, 3), dtype=np.uint8)
Y = np.arange(24) % 3
X_TEST, Y_TEST = RNG.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8), np.arange(9) % 3


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def idx(path, array, kind=0x08, packed=True):
    body = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(body) if packed else body)
    return str(path)


def refused(words, source, **options):
    with pytest.raises(InputError, match=words) as caught:
        load_images(source, **options)
    assert "\n" not in str(caught.value)


# NPZ ----------------------------------------------------------------------------------------------------------------


def test_npz_pooled(tmp_path):
    path = npz(tmp_path / "a.npz", x=X, y=Y)
    images, test = load_images(path)
    assert test is None
    assert np.array_equal(images.pixels, X)
    assert images.pixels.dtype == np.uint8
    assert images.target.tolist() == Y.tolist()
    assert images.target.dtype == np.int64
    assert (images.name, images.target_name, images.task, images.classes) == (
        "a.npz",
        "label",
        "multiclass",
        tuple("012"),
    )
    assert (images.groups, images.times, images.weights, images.warnings) == (None, None, None, ())
    assert images.decisions == ("read: 24 images 6 x 5 x 3", "task: multiclass, 3 classes (0: 8, 1: 8, 2: 8)")
    assert images.sha256 == hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()


@pytest.mark.parametrize("split", ["auto", "file"])
def test_npz_with_its_own_test_part(tmp_path, split):
    path = npz(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X_TEST, y_test=Y_TEST)
    images, test = load_images(path, split=split)
    assert np.array_equal(images.pixels, X)
    assert np.array_equal(test.pixels, X_TEST)
    assert test.target.tolist() == Y_TEST.tolist()
    assert (test.classes, test.sha256, test.task) == (images.classes, images.sha256, images.task)
    assert images.decisions[-1] == "split: the file's own test part of 9"
    assert test.decisions[0] == "read: 9 images 6 x 5 x 3, the test part"


def test_npz_parts_joined(tmp_path):
    path = npz(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X_TEST, y_test=Y_TEST)
    images, test = load_images(path, split="pool")
    assert test is None
    assert np.array_equal(images.pixels, np.concatenate([X, X_TEST]))
    assert images.target.tolist() == [*Y, *Y_TEST]
    assert "split: folds of both parts joined (24 + 9)" in images.decisions


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (X.transpose(0, 3, 1, 2), "channels came second"),
        (X / 255, "times 255"),
        (X / np.float32(255), "times 255"),
        (X / 255 * (1 + 1e-5), "times 255"),
        (X.astype(np.float64), r"\[0, 255\], rounded"),
        (X.astype(np.float32) * 0.999, r"\[0, 255\], rounded"),
        (X.astype(np.int64), "integers in 0..255"),
        (X.astype(">u2"), "integers in 0..255"),
        (X.astype(np.uint16) * 257, "16 bits"),
        (X.astype(np.uint16) * 16 + X // 16, "12 bits"),
        (np.concatenate([X, np.full_like(X[..., :1], 255)], axis=3), "transparency: laid over white"),
    ],
)
def test_pixels_of_every_kind_are_the_same_bytes(tmp_path, given, line):
    images, _ = load_images(npz(tmp_path / "a.npz", x=given, y=Y))
    assert np.array_equal(images.pixels, X)
    assert images.pixels.flags.c_contiguous
    assert sum(line.replace("\\", "") in text for text in images.decisions) == 1


def test_grey_and_boolean_pixels(tmp_path):
    for x, expected in (
        (X[..., 0], X[..., :1]),
        (X[:, None, :, :, 0], X[..., :1]),
        (X[..., 0] > 99, (X[..., :1] > 99) * 255),
    ):
        images, _ = load_images(npz(tmp_path / "a.npz", X=x, Y=Y))
        assert np.array_equal(images.pixels, expected)


def test_one_rule_for_both_parts(tmp_path):
    dark = X_TEST / 255 / 300
    images, test = load_images(npz(tmp_path / "a.npz", x_train=X.astype(float), y_train=Y, x_test=dark, y_test=Y_TEST))
    assert images.pixels.max() > 200
    assert test.pixels.max() == 0


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (Y[:, None], ("0", "1", "2")),
        (Y.astype(np.uint8) + 8, ("8", "9", "10")),
        (Y.astype(float) - 1, ("-1", "0", "1")),
        (np.array(["b", "NA", "10"])[Y], ("10", "NA", "b")),
        (np.array(["ü".encode(), b"x", b"y"])[Y], ("x", "y", "ü")),
        (Y > 0, ("False", "True")),
    ],
)
def test_labels_of_every_kind(tmp_path, labels, classes):
    images, _ = load_images(npz(tmp_path / "a.npz", x=X, y=labels))
    assert images.classes == classes
    assert images.task == ("binary" if len(classes) == 2 else "multiclass")
    found = [v.decode() if isinstance(v, bytes) else v for v in np.ravel(labels).tolist()]
    assert [images.classes[c] for c in images.target] == [
        str(int(v)) if isinstance(v, float) else str(v) for v in found
    ]


def test_further_arrays_and_copies_are_told(tmp_path):
    x, x_test = X.copy(), X_TEST.copy()
    x[3], x_test[2], x_test[5] = x[0], x[1], x[1]
    path = npz(tmp_path / "a.npz", x_train=x, y_train=Y, x_test=x_test, y_test=Y_TEST * 0, z=Y)
    images, test = load_images(path)
    assert images.warnings == (
        "1 further array not used: 'z'",
        "1 image repeats an earlier one: copies may fall on both sides of a split",
    )
    assert test.warnings == (
        "2 of 9 test images are also in the training part",
        "the test part has no image of 2 classes: '1', '2'",
    )


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, r"lacks 'y': expected arrays x, y or x_train.*there are 'x'"),
        ({"a": X, "b": Y}, "lacks 'x', 'y'.*'a', 'b'"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "lacks 'y_test'"),
        ({"x": X, "y": np.array([[0]] * 23 + [None], dtype=object)}, "y: an array of Python objects"),
        ({"x": X.astype(object), "y": Y}, "x: an array of Python objects"),
        ({"x": X[0, 0], "y": Y}, "expected images.*got shape 5 x 3"),
        ({"x": X[..., :2], "y": Y}, "with C 1, 3 or 4, got shape 24 x 6 x 5 x 2"),
        ({"x": np.uint8(3), "y": Y}, "of one number"),
        ({"x": X[:0], "y": Y[:0]}, "at least one image"),
        ({"x": X.astype(str), "y": Y}, "pixels as numbers"),
        ({"x": X + 1j, "y": Y}, "pixels as numbers"),
        ({"x": X / 255 - 0.5, "y": Y}, r"expected pixels in \[0, 1\] or \[0, 255\], got -0.5 to 0.5"),
        ({"x": X * 2.0, "y": Y}, r"\[0, 255\], got 0 to 510"),
        ({"x": X.astype(int) - 1, "y": Y}, r"in 0..255, or of up to 16 bits, got -1 to 254"),
        ({"x": np.where(X > 250, np.nan, X), "y": Y}, "NaN or infinity"),
        ({"x": np.where(X > 250, np.inf, X), "y": Y}, "NaN or infinity"),
        ({"x": X, "y": Y[:-1]}, "expected 24 labels, one for each image, got 23"),
        ({"x": X, "y": np.eye(3)[Y]}, "one label an image, got shape 24 x 3"),
        ({"x": X, "y": Y + 0.5}, "whole numbers or text, got 0.5 at position 1"),
        ({"x": X, "y": np.where(Y, 1, np.nan)}, "whole numbers or text, got nan"),
        ({"x": X, "y": Y + 1j}, "integers or text"),
        ({"x": X, "y": np.array(["a", "", " "])[Y]}, "16 labels empty .first: position '2'"),
        ({"x": X, "y": np.array([b"a", b"\xff", b"c"])[Y]}, "UTF-8"),
        ({"x": X, "y": Y * 0}, "one class only .'0'."),
        ({"x": X, "y": np.where(np.arange(24) < 4, 7, Y % 2)}, "1 class with fewer than 5 members .7: 4."),
        (
            {"x_train": X, "y_train": Y, "x_test": X_TEST[:, :5], "y_test": Y_TEST},
            "one size, got 6 x 5 x 3 in x_train and 5",
        ),
        ({"x_train": X, "y_train": Y, "x_test": X_TEST, "y_test": Y_TEST + 1}, "unknown class '3'"),
    ],
)
def test_npz_errors(tmp_path, arrays, words):
    refused(words, npz(tmp_path / "a.npz", **arrays))


def test_broken_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=X, y=Y)
    whole = path.read_bytes()
    for broken in (b"", b"no zip", whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(broken)
        refused("'a.npz' is not an NPZ file, or broken", str(path))
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 255
    path.write_bytes(damaged)
    refused("x: broken or truncated", str(path))
    with io.BytesIO() as single:
        np.save(single, X)
        path.write_bytes(single.getvalue())
    refused("not an NPZ file", str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.txt", "words")
    refused("lacks 'x', 'y'", str(path))


def test_missing_files_and_options(tmp_path):
    path = npz(tmp_path / "photos.npz", x=X, y=Y)
    refused("no file .*did you mean 'photos.npz'", str(tmp_path / "photo.npz"))
    refused("did you mean 'pool'", path, split="pol")
    refused("no test part of its own", path, split="file")
    refused("size: expected an integer of at least 4, got '3'", path, size=3)
    refused("size", path, size=8.5)
    refused("folds: expected an integer of at least 2", path, folds=1)
    assert len(load_images(path, folds=8)[0].classes) == 3
    refused("fewer than 9 members .0: 8, 1: 8, 2: 8.", path, folds=9)
    (tmp_path / "words.txt").write_text("words")
    refused("holds no images", str(tmp_path / "words.txt"))
    (tmp_path / "b.npz").mkdir()
    refused("is a folder", str(tmp_path / "b.npz"))


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_npz(tmp_path, channels):
    flat = np.full((12, 6, 6, channels), 77, dtype=np.uint8)
    images, _ = load_images(npz(tmp_path / "a.npz", x=flat, y=np.arange(12) % 2), size=8)
    assert np.array_equal(images.pixels, np.full((12, 8, 8, channels), 77))
    assert "resized from 6 x 6 to 8 x 8" in images.decisions


# IDX ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("kind", "dtype"), [(0x08, ">u1"), (0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]
)
def test_idx_of_every_type(tmp_path, packed, kind, dtype):
    pixels = X[..., 0] % 128
    a = idx(tmp_path / "x-idx3-ubyte", pixels.astype(dtype), kind, packed)
    b = idx(tmp_path / "y-idx1-ubyte", (Y + 100).astype(dtype), kind, packed)
    images, test = load_images(f"{a}:{b}")
    assert test is None
    assert np.array_equal(images.pixels, pixels[..., None])
    assert images.classes == ("100", "101", "102")
    assert images.target.tolist() == Y.tolist()
    assert images.name == "x-idx3-ubyte"
    both = (tmp_path / "x-idx3-ubyte").read_bytes() + (tmp_path / "y-idx1-ubyte").read_bytes()
    assert images.sha256 == hashlib.sha256(both).hexdigest()


def test_idx_errors(tmp_path):
    good = idx(tmp_path / "x.gz", X[..., 0])
    labels = idx(tmp_path / "y.gz", Y.astype(np.uint8))
    refused("'y.gz' holds labels and 'x.gz' images", f"{labels}:{good}")
    refused(
        "expected 24 labels, one for each image, got 23", f"{good}:" + idx(tmp_path / "z.gz", Y[1:].astype(np.uint8))
    )
    refused("no file", f"{good}:{tmp_path / 'absent.gz'}")
    refused("got shape 24 x 6", f"{idx(tmp_path / 'flat.gz', X[:, :, 0, 0])}:{labels}")
    whole = gzip.decompress((tmp_path / "x.gz").read_bytes())
    bad = tmp_path / "bad.gz"
    for body, words in (
        (whole[:-1], "says 24 x 6 x 5 numbers, which needs 736 bytes: it has 735"),
        (whole + b"\0", "it has 737"),
        (whole[:9], "truncated inside its header"),
        (b"\0\0\x08\0" + whole[4:], "not an IDX file: its first bytes are 00 00 08 00"),
        (b"\0\0\x07\3" + whole[4:], "not an IDX file"),
        (b"\1\0\x08\3" + whole[4:], "not an IDX file"),
        (b"", "not an IDX file"),
        (gzip.compress(whole)[:-20], "broken gzip"),
        (gzip.compress(whole)[:30] + b"x" * 40, "broken gzip"),
    ):
        bad.write_bytes(body)
        refused(words, f"{bad}:{labels}")


# Scaler -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_scaler_against_float64(channels):
    pixels = X[..., :channels]
    rows = np.arange(0, 24, 2)
    scaler = ImageScaler().fit(pixels[rows])
    part = pixels[rows].astype(np.float64) / 255
    np.testing.assert_allclose(scaler.mean, part.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, part.std((0, 1, 2)), rtol=1e-12)
    out = scaler.transform(pixels)
    assert (out.dtype, out.shape, out.flags.c_contiguous) == (np.float32, (24, channels, 6, 5), True)
    expected = (pixels / 255 - part.mean((0, 1, 2))) / part.std((0, 1, 2))
    np.testing.assert_allclose(out, expected.transpose(0, 3, 1, 2), atol=3e-7)
    again = ImageScaler.from_json(json.loads(json.dumps(scaler.to_json())))
    assert np.array_equal(again.transform(pixels), out)


def test_scaler_of_a_flat_channel_and_its_errors():
    flat = np.full((4, 3, 3, 1), 51, dtype=np.uint8)
    scaler = ImageScaler().fit(flat)
    assert scaler.std.tolist() == [1.0]
    assert np.abs(scaler.transform(flat)).max() < 1e-7
    for bad in (X, X[0], X[..., :1].astype(float)):
        with pytest.raises(InputError):
            scaler.transform(bad)
    with pytest.raises(InputError, match="at least one image"):
        ImageScaler().fit(X[:0])
