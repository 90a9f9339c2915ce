import numpy as np
import pytest
from PIL import Image

from steepest.comparison.errors import InputError
from steepest.comparison.read.images import is_image_source, load_images


def folder(root, classes, count=4, size=(6, 5), mode="RGB", suffix="png", salt=0):
    """``size`` is width, height; returns the pixels by file name."""
    made = {}
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            generator = np.random.default_rng([salt, k, i])
            shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.{suffix}")
            made[f"{name}/{i}.{suffix}"] = pixels
    return made


def refused(words, source, **options):
    with pytest.raises(InputError, match=words) as caught:
        load_images(source, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "bmp", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_folder_of_classes(tmp_path, suffix, mode):
    made = folder(tmp_path / "pets", ["dog", "cat"], 5, mode=mode, suffix=suffix)
    images, test = load_images(str(tmp_path / "pets"))
    assert test is None
    assert (images.name, images.task, images.classes) == ("pets", "binary", ("cat", "dog"))
    assert images.target.tolist() == [0] * 5 + [1] * 5
    for pixels, name in zip(images.pixels, sorted(made)):
        assert np.array_equal(pixels, made[name].reshape(5, 6, -1))
    assert images.decisions == (
        f"read: 10 images 5 x 6 x {3 if mode == 'RGB' else 1}",
        "task: binary, 2 classes (cat: 5, dog: 5)",
    )
    assert images.warnings == ()


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "gif", "webp"])
def test_lossy_files_come_near(tmp_path, suffix):
    for k, name in enumerate(("dark", "light")):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (16, 16), (40 + 150 * k, 60 + 5 * i, 80)).save(tmp_path / name / f"{i}.{suffix}")
    images, _ = load_images(str(tmp_path))
    assert images.pixels.shape == (10, 16, 16, 3)
    for i, pixels in enumerate(images.pixels):
        assert np.abs(pixels.astype(int) - [40 + 150 * (i // 5), 60 + 5 * (i % 5), 80]).max() <= 8


def test_class_names_that_are_numbers_are_in_their_order(tmp_path):
    folder(tmp_path, ["10", "9"], 5)
    assert load_images(str(tmp_path))[0].classes == ("9", "10")


@pytest.mark.parametrize("test_name", ["test", "Test", "val", "validation"])
def test_folder_with_parts(tmp_path, test_name):
    folder(tmp_path / "train", ["a", "b"], 5)
    made = folder(tmp_path / test_name, ["a", "b"], 1, salt=1)
    (tmp_path / "extra").mkdir()
    images, test = load_images(str(tmp_path))
    assert (len(images.pixels), len(test.pixels)) == (10, 2)
    assert np.array_equal(test.pixels[1], made["b/0.png"])
    assert images.warnings == ("1 folder beside the parts not used: 'extra'",)
    pooled, none = load_images(str(tmp_path), split="pool")
    assert (len(pooled.pixels), none) == (12, None)
    assert pooled.sha256 == images.sha256 == test.sha256


def test_validation_beside_a_test_part_is_trained_on(tmp_path):
    for salt, (part, count) in enumerate({"train": 5, "val": 2, "test": 1}.items()):
        folder(tmp_path / part, ["a", "b"], count, salt=salt)
    images, test = load_images(str(tmp_path))
    assert (np.bincount(images.target).tolist(), len(test.pixels)) == ([7, 7], 2)
    assert "'val' is joined to 'train'" in images.decisions


def test_classes_may_be_named_train_and_test(tmp_path):
    folder(tmp_path, ["train", "test"], 5)
    images, test = load_images(str(tmp_path))
    assert (images.classes, test) == (("test", "train"), None)


def test_the_digest_sees_names_and_contents_only(tmp_path):
    for root in ("one", "two"):
        folder(tmp_path / root, ["a", "b"], 5)
    first, second = (load_images(str(tmp_path / root))[0].sha256 for root in ("one", "two"))
    assert first == second
    (tmp_path / "two" / "a" / "0.png").rename(tmp_path / "two" / "a" / "00.png")
    renamed = load_images(str(tmp_path / "two"))[0].sha256
    Image.new("RGB", (6, 5)).save(tmp_path / "one" / "a" / "0.png")
    assert len({first, renamed, load_images(str(tmp_path / "one"))[0].sha256}) == 3


def test_modes_become_grey_or_colour(tmp_path):
    (tmp_path / "a").mkdir()
    folder(tmp_path, ["b"], 5, mode="L")
    sixteen = np.arange(30, dtype=np.uint16).reshape(5, 6) * 2000
    Image.fromarray(sixteen).save(tmp_path / "a" / "0.png")
    Image.new("1", (6, 5), 1).save(tmp_path / "a" / "1.png")
    Image.new("LA", (6, 5), (7, 0)).save(tmp_path / "a" / "2.png")
    for i in (3, 4):
        Image.new("L", (6, 5), i).save(tmp_path / "a" / f"{i}.png")
    images, _ = load_images(str(tmp_path))
    assert images.pixels.shape == (10, 5, 6, 1)
    assert np.array_equal(images.pixels[0, ..., 0], np.rint(sixteen * (255 / 65535)))
    assert [images.pixels[i].max() for i in (1, 2, 3)] == [255, 255, 3]
    assert "pixels: 16 bits (0 to 58000), scaled to 0..255: 1 of 10 images" in images.decisions
    assert "transparency: 1 images laid over white" in images.decisions
    palette = Image.new("P", (6, 5), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "a" / "3.png")
    Image.new("RGBA", (6, 5), (1, 2, 3, 51)).save(tmp_path / "a" / "4.png")
    images, _ = load_images(str(tmp_path))
    assert images.pixels[3, 0, 0].tolist() == [10, 20, 30]
    assert images.pixels[4, 0, 0].tolist() == [204, 204, 205]  # a fifth of it, four fifths of white
    assert images.pixels[2, 0, 0].tolist() == [255, 255, 255]
    assert "channels: 3; 8 of 10 images are grey, repeated in each channel" in images.decisions


def test_turned_photographs(tmp_path):
    folder(tmp_path, ["a", "b"], 5)
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png", exif=exif)
    assert np.array_equal(load_images(str(tmp_path))[0].pixels[0], pixels[::-1, ::-1])


def test_folder_resized(tmp_path):
    folder(tmp_path, ["a"], 5, size=(6, 5))
    folder(tmp_path, ["b"], 5, size=(8, 8))
    Image.new("RGB", (20, 10), (9, 8, 7)).save(tmp_path / "a" / "0.png")
    refused("differ in size: 'a/0.png' is 10 x 20, 'a/1.png' is 5 x 6 .height x width.", str(tmp_path))
    images, _ = load_images(str(tmp_path), size=8)
    assert images.pixels.shape == (10, 8, 8, 3)
    assert (images.pixels[0] == [9, 8, 7]).all()
    assert "resized to 8 x 8: 5 images" in images.decisions


def test_what_lies_beside_is_told(tmp_path):
    folder(tmp_path, ["a", "b", ".hidden"], 5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("words")
    (tmp_path / "a" / ".DS_Store").write_text("words")
    Image.new("L", (3, 3)).save(tmp_path / "loose.png")
    images, _ = load_images(str(tmp_path))
    assert images.classes == ("a", "b")
    assert images.warnings == (
        "1 folder without images not used: 'empty'",
        "1 entry of class folders not used: 'notes.txt'",
        "1 image outside the class folders not used",
    )


def test_folder_errors(tmp_path):
    refused("no folder", str(tmp_path / "absent"))
    refused("has no sub-folder with images", str(tmp_path))
    Image.new("L", (3, 3)).save(tmp_path / "loose.png")
    refused("holds 1 image but no class folders", str(tmp_path))
    folder(tmp_path, ["a"], 5)
    refused("one class only .'a'.", str(tmp_path))
    folder(tmp_path, ["b"], 3)
    refused("1 class with fewer than 5 members .b: 3.", str(tmp_path))
    refused("fewer than 4 members", str(tmp_path), folds=2)
    for broken in (b"", b"words", (tmp_path / "a" / "0.png").read_bytes()[:60]):
        (tmp_path / "a" / "1.png").write_bytes(broken)
        refused("cannot read the image 'a/1.png'", str(tmp_path))


def test_unknown_class_in_the_test_folder(tmp_path):
    folder(tmp_path / "train", ["a", "b"], 5)
    folder(tmp_path / "test", ["a", "c"], 1, salt=1)
    refused("unknown class 'c'; expected one of 'a', 'b'", str(tmp_path))


def test_what_is_an_image_source(tmp_path):
    folder(tmp_path / "classes", ["a"], 1)
    folder(tmp_path / "parts" / "train", ["a"], 1)
    folder(tmp_path / "tables", ["a"], 1)
    (tmp_path / "tables" / "data.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    yes = ["x.npz", "X.NPZ", "a-idx3-ubyte:b-idx1-ubyte", "C:\\a.gz:C:\\b.gz", tmp_path / "classes", tmp_path / "parts"]
    no = ["x.csv", "x.csv.gz", "iris", "a.gz:b.csv", "", tmp_path / "tables", tmp_path / "empty", tmp_path / "absent"]
    assert [is_image_source(str(s)) for s in yes] == [True] * len(yes)
    assert [is_image_source(str(s)) for s in no] == [False] * len(no)
