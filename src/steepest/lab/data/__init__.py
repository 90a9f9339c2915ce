"""Real data of the experiments: what scikit-learn carries or fetches, image sets and a text from a folder.

The experiments of the room ``steepest.data`` lie in the packages below.
"""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import numpy as np

SOURCES = {
    "mnist-10k-images-idx3-ubyte.gz": 'sklearn.datasets.fetch_openml("mnist_784", version=1)',
    "mnist-10k-labels-idx1-ubyte.gz": 'sklearn.datasets.fetch_openml("mnist_784", version=1)',
    "cifar10-subset.npz": 'sklearn.datasets.fetch_openml("CIFAR_10", version=1)',
    "tiny-shakespeare.txt": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "compas-two-years.csv": "https://raw.githubusercontent.com/propublica/compas-analysis/master/"
    "compas-scores-two-years.csv",
}
"""The files that experiments read from :func:`folder`, and where each comes from: a fetch is run where the file is
missing, an address is for the reader."""


def digits(seed: int, *, train: int = 1200) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``(x, y, x_test, y_test)`` of scikit-learn's digits, standardised by the training part, stratified by seed."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return split(x, y, seed, train=train)


def built_in(
    name: str, seed: int, *, train: float | int = 0.7
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same for ``wine``, ``iris``, ``breast_cancer`` or ``diabetes``."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return split(x, y, seed, train=train)


def split(
    x: np.ndarray, y: np.ndarray, seed: int, *, train: float | int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test part, stratified where ``y`` holds classes, features standardised by the training part."""
    from sklearn.model_selection import train_test_split

    kinds = y if y.dtype.kind in "iu" else None
    a, b, ya, yb = train_test_split(x, y, train_size=train, stratify=kinds, random_state=seed)
    mean, scale = a.mean(0), a.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    return (a - mean) / scale, ya, (b - mean) / scale, yb


def folder() -> Path:
    """Where image sets and texts lie: ``$STEEPEST_DATA``, or ``data`` under the current directory."""
    return Path(os.environ.get("STEEPEST_DATA", "data"))


def mnist_10k() -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 MNIST test digits, ``[10000, 784]`` in [0, 1], and their labels.

    Two IDX files of :func:`folder`; without them the last 10,000 rows of OpenML's ``mnist_784``, which scikit-learn
    fetches once and keeps.

    Raises:
        FileNotFoundError: neither is to be had.
    """
    images, labels = "mnist-10k-images-idx3-ubyte.gz", "mnist-10k-labels-idx1-ubyte.gz"
    if not (here(images) and here(labels)):
        x, y = _fetched(images, "mnist_784")
        return x[-10_000:] / 255.0, y[-10_000:]
    with gzip.open(_file(images)) as file:
        x = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784) / 255.0
    with gzip.open(_file(labels)) as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    return x, y


def halved(x: np.ndarray) -> np.ndarray:
    """Flat square images ``[N, side ** 2]`` of even side, averaged over 2 x 2 pixels: ``[N, (side / 2) ** 2]``.

    >>> halved(np.arange(16.0)[None]).tolist()
    [[2.5, 4.5, 10.5, 12.5]]
    """
    half = math.isqrt(x.shape[1]) // 2
    return x.reshape(len(x), half, 2, half, 2).mean((2, 4)).reshape(len(x), -1)


def cifar10_subset() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``(x_train, y_train, x_test, y_test)``: 500 and 100 images of each class ``[N, 3, 32, 32]`` in [0, 1].

    ``cifar10-subset.npz`` of :func:`folder`; without it the first ones of each class among the first 50,000 and the
    last 10,000 rows of OpenML's ``CIFAR_10``, which scikit-learn fetches once and keeps: not the same images.

    Raises:
        FileNotFoundError: neither is to be had.
    """
    name = "cifar10-subset.npz"
    if not here(name):
        x, y = _fetched(name, "CIFAR_10")
        arrays = []
        for start, end, count in ((0, -10_000, 500), (-10_000, len(y), 100)):
            targets = y[start:end]
            rows = np.sort(np.concatenate([np.flatnonzero(targets == label)[:count] for label in np.unique(targets)]))
            arrays += [x[start:end][rows].reshape(-1, 3, 32, 32) / 255.0, targets[rows]]
        return arrays[0], arrays[1], arrays[2], arrays[3]
    with np.load(_file(name), allow_pickle=False) as file:
        images = [file[k].transpose(0, 3, 1, 2) / 255.0 for k in ("x_train", "x_test")]
        labels = [file[k].reshape(-1).astype(np.int64) for k in ("y_train", "y_test")]
    return images[0], labels[0], images[1], labels[1]


def shakespeare() -> str:
    """Forty thousand lines of Shakespeare's plays, the text known as tiny Shakespeare.

    Raises:
        FileNotFoundError: ``tiny-shakespeare.txt`` is not in :func:`folder`.
    """
    return _file("tiny-shakespeare.txt").read_text(encoding="utf-8")


def here(name: str) -> bool:
    """Whether :func:`folder` holds this file."""
    return (folder() / name).is_file()


def _file(name: str) -> Path:
    if not here(name):
        raise FileNotFoundError(f"{_missing(name)}; it comes from {SOURCES[name]}")
    return folder() / name


def _missing(name: str) -> str:
    return f"{name} is not in {str(folder())!r}; set STEEPEST_DATA to the folder that holds it"


def _fetched(name: str, data_set: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of an image set of OpenML, instead of the file ``name``."""
    from sklearn.datasets import fetch_openml

    try:
        fetched = fetch_openml(data_set, version=1, as_frame=False)
    except (OSError, ValueError) as error:  # no network; a set that OpenML does not know, or not whole
        raise FileNotFoundError(f"{_missing(name)}; {SOURCES[name]} failed: {error}") from error
    return np.asarray(fetched.data), np.asarray(fetched.target).astype(np.int64)


def flip_labels(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with ``share`` of them replaced by another class, and where."""
    rng = np.random.default_rng([seed, 71])
    classes = int(y.max()) + 1
    hit = rng.permutation(len(y))[: round(share * len(y))]
    noisy = y.copy()
    noisy[hit] = (noisy[hit] + rng.integers(1, classes, len(hit))) % classes
    where = np.zeros(len(y), dtype=bool)
    where[hit] = True
    return noisy, where
