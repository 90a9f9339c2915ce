"""Real data of the experiments: from the folder, from OpenML where it lacks them, else an error that helps."""

from __future__ import annotations

import ast
import gzip
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest

from steepest.cli import run
from steepest.lab import data, evidence, gallery
from steepest.sources import source_files

DOCS = Path(__file__).parents[3] / "docs"
READERS = {
    "mnist_10k": "mnist-10k-images-idx3-ubyte.gz",
    "cifar10_subset": "cifar10-subset.npz",
    "shakespeare": "tiny-shakespeare.txt",
    "compas": "compas-two-years.csv",
    "characters": "tiny-shakespeare.txt",  # of the module of language models
    "facts": "tiny-shakespeare.txt",  # of that of forgetting
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEEPEST_DATA", str(tmp_path))
    return tmp_path


def fetching(monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray, labels: np.ndarray) -> list[tuple]:
    """OpenML without a network: gives these; what was asked for is noted."""
    asked = []

    def fetch_openml(name: str, *, version: int, as_frame: bool) -> SimpleNamespace:
        asked.append((name, version, as_frame))
        return SimpleNamespace(data=pixels, target=labels.astype(str).astype(object))

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    return asked


def unreachable(*_: object, **__: object) -> None:
    raise URLError("no route to host")


def test_mnist_is_the_same_from_files_and_from_openml(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((10_050, 784), np.uint8)
    pixels[-10_000::50] = rng.integers(0, 256, (200, 784))
    labels = rng.integers(0, 10, 10_050)
    asked = fetching(monkeypatch, pixels, labels)
    x, y = data.mnist_10k()
    assert asked == [("mnist_784", 1, False)]
    head = {
        "images-idx3": bytes(16) + pixels[-10_000:].tobytes(),
        "labels-idx1": bytes(8) + labels[-10_000:].astype(np.uint8).tobytes(),
    }
    for kind, content in head.items():
        (place / f"mnist-10k-{kind}-ubyte.gz").write_bytes(gzip.compress(content, 1))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    images, codes = data.mnist_10k()
    assert x.shape == images.shape == (10_000, 784)
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, codes)
    assert x.max() <= 1.0
    assert y.dtype == codes.dtype == np.int64


def test_cifar_is_balanced_planes_first_and_its_parts_are_disjoint(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 16_000
    pixels = np.zeros((rows, 3072), np.uint8)  # the row's number in the first pixels of the three planes
    pixels[:, 0], pixels[:, 1024], pixels[:, 2048] = np.arange(rows) // 256, np.arange(rows) % 256, 7
    fetching(monkeypatch, pixels, np.random.default_rng(0).permutation(np.arange(rows) % 10))
    x, y, x_test, y_test = data.cifar10_subset()
    assert (x.shape, x_test.shape) == ((5000, 3, 32, 32), (1000, 3, 32, 32))
    assert np.bincount(y).tolist() == [500] * 10
    assert np.bincount(y_test).tolist() == [100] * 10
    numbers, test_numbers = (np.round(part[:, :2, 0, 0] * 255) @ [256, 1] for part in (x, x_test))
    assert numbers.max() < 6000 <= test_numbers.min()
    assert (np.diff(numbers) > 0).all()
    np.testing.assert_allclose(x[:, 2, 0, 0], 7 / 255, rtol=1e-15)
    np.savez(
        place / "cifar10-subset.npz",
        x_train=np.round(x.transpose(0, 2, 3, 1) * 255).astype(np.uint8), y_train=y.astype(np.uint8),
        x_test=np.round(x_test.transpose(0, 2, 3, 1) * 255).astype(np.uint8), y_test=y_test.astype(np.uint8),
    )  # fmt: skip
    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    for fetched, kept in zip((x, y, x_test, y_test), data.cifar10_subset()):
        np.testing.assert_array_equal(fetched, kept)


@pytest.mark.parametrize("reader", [data.mnist_10k, data.cifar10_subset, data.shakespeare])
def test_what_is_missing_names_file_variable_and_source(reader, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    name = READERS[reader.__name__]
    with pytest.raises(FileNotFoundError) as caught:
        reader()
    assert all(word in str(caught.value) for word in (name, str(place), "STEEPEST_DATA", data.SOURCES[name]))


def test_without_the_variable_it_is_the_folder_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEEPEST_DATA")
    assert data.folder() == Path("data")


def test_the_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    monkeypatch.setattr("steepest.catalogue.evidence.evidence_folder", lambda: tmp_path)
    monkeypatch.setattr(gallery, "run_seed", lambda slug, scale, seed: data.shakespeare())
    assert run(["lab", "run", "z-loss"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("steepest: error: tiny-shakespeare.txt is not in")
    assert err.count("\n") == 1
    monkeypatch.setattr(evidence, "stale", lambda system: system.slug in ("cut-cross-entropy", "z-loss"))
    assert run(["lab", "gallery"]) == 0
    found = capsys.readouterr()
    assert {line.split(":")[0] for line in found.err.splitlines()} == {"cut-cross-entropy", "z-loss"}
    assert "no evidence yet" in found.out


def readers(module: str) -> set[str]:
    """The files that a module's experiment reads: by the names that it, or a private module that it imports, calls."""
    files = source_files(module)
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    imported = {(n.level, n.module or "") for n in nodes if isinstance(n, ast.ImportFrom) and n.level}
    for level, name in imported:
        if name.rpartition(".")[2].startswith("_"):
            file = files[0].parents[level - 1].joinpath(*name.split(".")).with_suffix(".py")
            nodes += ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    called = {getattr(node.func, "id", getattr(node.func, "attr", "")) for node in nodes if isinstance(node, ast.Call)}
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    called -= own & {"characters", "facts"}  # something else of the same name
    return {READERS[name] for name in called & set(READERS)}


def test_the_page_and_the_help_say_who_reads_what(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    assert sorted(name for row in rows for name in row[0].replace("`", "").split(", ")) == sorted(data.SOURCES)
    for name, what, source, users in rows:
        assert what
        own = {s.slug for s in gallery.experiments() if name.split("`")[1] in readers(s.experiment)}
        assert users.split(", ") == sorted(own), name
        where = data.SOURCES[name.split("`")[1]]
        assert where in source if where.startswith("https") else where.split('"')[1] in source
    assert run(["lab", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "STEEPEST_DATA" in shown
    assert "OpenML" in shown
