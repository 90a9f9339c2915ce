"""Metrics of generated images and of text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ....core.checks import check_number, check_simplex, check_tensor, refuse, refuse_type
from ....core.reductions import widen
from .cards import logits_and_index, metric, pair
from .spaces import token_cross_entropy

IMAGES, LANGUAGE = "image generation", "language"
Texts = Sequence[str]


def _pictures(g: torch.Generator) -> tuple[Any, ...]:
    first = torch.rand(2, 3, 16, 16, generator=g, dtype=torch.float64)
    return first, (first + 0.1 * torch.randn(first.shape, generator=g, dtype=torch.float64)).clamp(0, 1)


@metric(IMAGES, "10 log10(range^2 / MSE)", "any real, in dB", True, _pictures)
def psnr(outputs: Tensor, target: Tensor, *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio over all pixels; infinite for equal images."""
    check_number("data_range", data_range, low=0.0, open_low=True)
    error = float(nnf.mse_loss(*pair(outputs, target)))
    return 10 * math.log10(data_range**2 / error) if error else math.inf


@metric(
    IMAGES, "mean of (2 m m' + c1) (2 s_xy + c2) / ((m^2 + m'^2 + c1) (s^2 + s'^2 + c2))", "[-1, 1]", True, _pictures
)
def ssim(outputs: Tensor, target: Tensor, *, data_range: float = 1.0, sigma: float = 1.5) -> float:
    """Structural similarity of images ``[N, C, H, W]``: an 11 x 11 Gaussian window, only where it fits."""
    check_number("data_range", data_range, low=0.0, open_low=True)
    check_number("sigma", sigma, low=0.0, open_low=True)
    check_tensor("outputs", outputs, ndim=4, floating=True)
    x, y = pair(outputs, target)
    if min(x.shape[2:]) < 11:
        refuse("outputs", "images of at least 11 x 11 pixels", outputs)
    line = (-(torch.arange(-5, 6, dtype=x.dtype, device=x.device) ** 2) / (2 * sigma**2)).exp()
    line = line / line.sum()
    window = (line[:, None] * line[None]).expand(x.shape[1], 1, 11, 11)

    def mean(value: Tensor) -> Tensor:
        return nnf.conv2d(value, window, groups=x.shape[1])

    a, b = mean(x), mean(y)
    spread, shared = mean(x * x) - a * a + mean(y * y) - b * b, mean(x * y) - a * b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return float(((2 * a * b + c1) * (2 * shared + c2) / ((a * a + b * b + c1) * (spread + c2))).mean())


def _rows(g: torch.Generator) -> tuple[Any, ...]:
    return (torch.randn(20, 5, generator=g, dtype=torch.float64).softmax(-1),)


@metric(IMAGES, "exp(mean KL(p(y|x) || p(y)))", "[1, C]", True, _rows)
def inception_score(outputs: Tensor) -> float:
    """Inception score of the class probabilities ``[N, C]`` that a classifier gives generated images."""
    check_tensor("outputs", outputs, ndim=2, floating=True)
    check_simplex("outputs", outputs)
    p = widen(outputs).double()
    return float((torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))).sum(-1).mean().exp())


def _features(g: torch.Generator) -> tuple[Any, ...]:
    return tuple(torch.randn(30, 4, generator=g, dtype=torch.float64) for _ in range(2))


@metric(IMAGES, "|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))", ">= 0", False, _features)
def frechet_distance(outputs: Tensor, target: Tensor) -> float:
    """Frechet distance (FID on Inception features) of the Gaussian fits of features ``[N, D]`` and ``[M, D]``."""
    check_tensor("outputs", outputs, ndim=2, floating=True)
    check_tensor("target", target, floating=True, shape=(None, outputs.shape[1]))
    a, b = widen(outputs).double(), widen(target).double()
    if min(len(a), len(b)) < 2:
        refuse("outputs", "at least two rows of each", outputs)
    first, second = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(a.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # the eigenvalues of S S' are those of the symmetric S^(1/2) S' S^(1/2)
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * shared)


def _tokens(g: torch.Generator) -> tuple[Any, ...]:
    logits, index = logits_and_index(8, 5)(g)
    return logits.view(2, 4, 5), index.view(2, 4)


@metric(LANGUAGE, "exp(token cross-entropy)", ">= 1", False, _tokens)
def perplexity(outputs: Tensor, target: Tensor, *, ignore_index: int = -100) -> float:
    """Perplexity of logits ``[N, T, V]`` for tokens ``[N, T]``."""
    return float(token_cross_entropy(outputs, target, ignore_index=ignore_index).exp())


def _texts(g: torch.Generator) -> tuple[Any, ...]:
    return ["the cat sat on the mat", "a dog ran"], ["the cat lay on the mat today", "a dog ran home"]


def _check_texts(outputs: Texts, target: Texts) -> None:
    for argument, value in (("outputs", outputs), ("target", target)):
        if isinstance(value, str) or not all(isinstance(text, str) for text in value):
            refuse_type(argument, "a list of texts", value)
    if len(outputs) != len(target) or not len(outputs):
        refuse("target", f"{len(outputs)} texts, as outputs, and at least one", len(target))


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@metric(LANGUAGE, "brevity penalty times the geometric mean of n-gram precisions", "[0, 1]", True, _texts)
def bleu(outputs: Texts, target: Texts, *, n: int = 4) -> float:
    """Corpus BLEU of texts with one reference each, words split at spaces, no smoothing."""
    check_number("n", n, low=1, integer=True)
    _check_texts(outputs, target)
    pairs = [(a.split(), b.split()) for a, b in zip(outputs, target)]
    logs = []
    for order in range(1, n + 1):
        grams = [(_grams(a, order), _grams(b, order)) for a, b in pairs]
        matches, total = sum((a & b).total() for a, b in grams), sum(a.total() for a, _ in grams)
        if not matches:
            return 0.0
        logs.append(math.log(matches / total))
    length, wanted = sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs)
    return math.exp(min(0.0, 1 - wanted / length) + sum(logs) / n)


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, word_b in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == word_b else max(row[j], row[j - 1])
    return row[-1]


@metric(LANGUAGE, "F1 of n-grams (rouge-n) or of the longest common subsequence (rouge-l)", "[0, 1]", True, _texts)
def rouge(outputs: Texts, target: Texts, *, kind: str | int = "l") -> float:
    """ROUGE F1, the mean over texts; words in lower case, of letters and digits. ``kind``: n, or ``"l"``."""
    if kind != "l":
        check_number("kind", kind, low=1, integer=True)
    _check_texts(outputs, target)
    scores = []
    for pair_ in zip(outputs, target):
        a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in pair_)
        if kind != "l":
            first, second = _grams(a, kind), _grams(b, kind)
            shared, sizes = (first & second).total(), first.total() + second.total()
        else:
            shared, sizes = _common(a, b), len(a) + len(b)
        scores.append(2 * shared / sizes if sizes else 0.0)
    return sum(scores) / len(scores)


@metric(LANGUAGE, "(substitutions + insertions + deletions) / words of the references", ">= 0", False, _texts)
def word_error_rate(outputs: Texts, target: Texts) -> float:
    """Word error rate: edit distance over all texts, by the words of the references."""
    _check_texts(outputs, target)
    errors = words = 0
    for text, reference in zip(outputs, target):
        a, b = text.split(), reference.split()
        row = list(range(len(b) + 1))
        for i, word in enumerate(a, 1):
            before, row[0] = row[0], i
            for j, word_b in enumerate(b, 1):
                before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != word_b))
        errors, words = errors + row[-1], words + len(b)
    return errors / words if words else math.nan
