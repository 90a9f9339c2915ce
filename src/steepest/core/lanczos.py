"""Lanczos's method: eigenpairs at either end with error bounds, and spectral densities by stochastic quadrature."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import native
from .checks import check_choice, check_number, refuse
from .displaced import SINGLE, SMALLEST
from .lists import plain_lists
from .symmetric import SymmetricOperator, inner

ENDS = ("LA", "SA", "LM")
SOURCE = Path(__file__).with_name("lanczos.cpp")
SHORT, HALF_SHORT = 2**16, 2**20
"""Up to so many entries a step in one call of C++ is faster than operations of torch; and one that is less work."""

LARGE = 2**23
"""Bytes of a basis from which on large pages of memory are asked for."""


@cache
def _library(level: str) -> ctypes.CDLL | None:
    library = native.library(SOURCE)
    if library is not None:
        number, count, pointer = ctypes.c_double, ctypes.c_int64, ctypes.c_void_p
        library.lanczos_step.restype = library.lanczos_pages.restype = None
        library.lanczos_pages.argtypes = [pointer, count]
        library.lanczos_step.argtypes = [pointer, pointer, count, count, number, number, count, count, pointer]
    return library


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs of a symmetric operator.

    Attributes:
        eigenvalues: ``[k]``, float64, on the CPU; the one that was asked for most comes first.
        eigenvectors: ``[k, n]``, rows of length 1.
        residuals: ``[k]``: the length of A v - lambda v; an eigenvalue lies no further from each value.
        iterations: how many products were computed.
        converged: whether each residual is at most the tolerance times its eigenvalue, or rounding.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    residuals: Tensor
    iterations: int
    converged: bool


class Krylov:
    r"""The orthonormal basis Q of a Krylov space and the tridiagonal matrix T of an operator in it: Q A Q' = T.

    A new vector is made orthogonal to all that are there, twice where much of it vanishes. Scalars are float64. Where
    nothing is left of it beyond rounding of the largest entry of T, the space is closed under the operator.

    Args:
        product: of a vector ``[n]``.
        start: any vector that is not 0.
        most: the most vectors that may come.
        half: whether T alone is asked for. Then float32 vectors on the CPU are made orthogonal to all others only
            where a recurrence says that their products would come to the root of rounding; up to there T is what it
            is for an orthogonal basis, up to rounding.

    Attributes:
        alphas: diagonal of T.
        betas: beside the diagonal; the last one is the length of what is left.
        closed: whether nothing is left.
        finite: whether all products were.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], start: Tensor, most: int, *, half: bool = False) -> None:
        self._product = product
        self.most = min(most, start.numel())
        length = _length(start)
        if not length > 0:
            refuse("start", "a vector that is not 0", length)
        self._basis = start.new_empty(min(self.most + 1, 64), start.numel())
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.block = 0  # where the vectors of the last start begin
        self.finite = math.isfinite(length)
        self._size = 0.0  # the largest entry of T
        self._written = 0  # up to where C++ has written the basis
        self.half = half
        self._library: ctypes.CDLL | None = None
        if start.numel() <= (HALF_SHORT if half else SHORT) and plain_lists([self._basis]):
            self._library = _library(native.level())
            if self._library is not None and self._basis.nbytes >= LARGE:
                self._library.lanczos_pages(self._basis.data_ptr(), self._basis.nbytes)
            self._numbers = (ctypes.c_double * (3 + 5 * (self.most + 2)))()
        torch.div(start, length, out=self._basis[0])

    @property
    def closed(self) -> bool:
        return bool(self.betas) and self.betas[-1] == 0.0

    @property
    def basis(self) -> Tensor:
        """``[m, n]``."""
        return self._basis[: len(self.alphas)]

    def step(self, last: bool = False) -> None:
        """One product more; the last one for quadrature alone leaves out what is left of it."""
        place = len(self.alphas)
        own = self._basis[place]
        image = self._product(own).detach()
        rounding = 10 * torch.finfo(image.dtype).eps
        if last:
            alpha, length = inner(image, own), math.nan
        elif self._library is not None and _fits(image, own):
            alpha, length = self._native_step(place, image, rounding)
        else:
            self._library = None  # what it knows of the basis ends here
            alpha = inner(image, own)
            along = math.hypot(alpha, self.betas[-1]) if place else abs(alpha)
            image, length = _orthogonal(image, self._basis[: place + 1], along)
        if not (math.isfinite(alpha) and (last or math.isfinite(length))):
            self.finite = False
        self.alphas.append(alpha)
        self._size = max(self._size, abs(alpha))
        if length <= rounding * self._size or place + 1 == self.most == image.numel():
            length = 0.0
        self._size = max(self._size, length)
        self.betas.append(length)
        if length and not last and self._written <= place and place + 1 < self.most:
            self._put(place + 1, image, length)

    def _native_step(self, place: int, image: Tensor, rounding: float) -> tuple[float, float]:
        """Alpha and the length of what is left, which is the next vector of the basis."""
        assert self._library is not None
        self._make_room(place + 1)
        rows, n = self._basis.data_ptr(), self._basis.shape[1]
        self._library.lanczos_step(
            image.data_ptr(), rows, place + 1, n, self._size, rounding, self.half, self.most + 2, self._numbers
        )
        self._written = place + 1
        return self._numbers[0], self._numbers[1]

    def _make_room(self, place: int) -> None:
        if place >= len(self._basis):
            larger = self._basis.new_empty(min(2 * place, self.most + 1), self._basis.shape[1])
            larger[: len(self._basis)] = self._basis
            self._basis = larger

    def _put(self, place: int, image: Tensor, length: float) -> None:
        """A new vector of the basis, with length 1."""
        self._make_room(place)
        torch.div(image, length, out=self._basis[place])

    def restart(self, start: Tensor) -> bool:
        """Go on from another vector, once the space is closed; whether something of it lies outside."""
        image, rest = _orthogonal(start / _length(start), self.basis)
        image, rest = _orthogonal(image / rest, self.basis) if rest > 0 else (image, 0.0)
        if not rest > 0.5:
            return False
        self.block = len(self.alphas)
        self._put(self.block, image, rest)
        return True

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues ``[m]`` of T in order, and its eigenvectors ``[m, m]`` in columns."""
        from scipy.linalg import eigh_tridiagonal  # type: ignore[import-untyped]  # long to import

        values, vectors = eigh_tridiagonal(np.array(self.alphas), np.array(self.betas[:-1]), check_finite=False)
        return values, vectors


def _fits(image: Tensor, row: Tensor) -> bool:
    """Whether C++ can take a product as it is."""
    plain = type(image) is Tensor and image.dtype is row.dtype and image.device == row.device
    return plain and image.shape == row.shape and image.is_contiguous()


def _orthogonal(image: Tensor, rows: Tensor, along: float | None = None) -> tuple[Tensor, float]:
    """What of a vector is orthogonal to rows, and its length: again while most of the vector vanishes.

    ``along`` is the length of what lies along them, where it is known.
    """
    for _ in range(3):
        shares = rows @ image
        image = torch.addmv(image, rows.T, shares, alpha=-1)
        length = _length(image)
        if not length < 0.5 * (_length(shares) if along is None else along):
            break
        along = None
    return image, length


def _length(vector: Tensor) -> float:
    """In float64 where squares leave float32."""
    if vector.dtype == torch.float32 and vector.numel() <= SINGLE:
        length = float(torch.linalg.vector_norm(vector))
        if SMALLEST < length < 1 / SMALLEST:
            return length
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def eigenpairs(
    operator: SymmetricOperator,
    k: int = 1,
    which: str = "LA",
    *,
    tol: float = 1e-4,
    steps: int | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    r"""Eigenpairs at one end of the spectrum, by Lanczos's method with full reorthogonalisation.

    Args:
        operator: symmetric.
        k: how many.
        which: "LA" the algebraically largest, "SA" the smallest, "LM" the largest in modulus.
        tol: the residual, as a share of the eigenvalue's modulus, at which the search ends.
        steps: products at most; default ``max(2 k + 20, 100)``, and never more than n. Fewer than 2 k + 20 may be too
            few for a spectrum without gaps, which ``converged`` tells.
        start: a vector ``[n]``, or several in rows ``[m, n]``, such as the eigenvectors of a step before; default
            random.
        generator: of random starts; default the same at each call.

    Returns:
        Values, vectors, residuals, products, whether they converged; NaN where a product is not finite.

    Raises:
        ValueError: k beyond n, an unknown end, a start of another length.

    Example:
        >>> from steepest.core.symmetric import MatrixOperator
        >>> pairs = eigenpairs(MatrixOperator(torch.diag(torch.tensor([1.0, -5.0, 3.0]))), 2)
        >>> pairs.eigenvalues.round(decimals=4), pairs.converged
        (tensor([3., 1.], dtype=torch.float64), True)
    """
    return _search(operator, k, (which,), tol, steps, start, generator)[0]


def extreme_eigenpairs(
    operator: SymmetricOperator,
    k: int = 1,
    *,
    tol: float = 1e-4,
    steps: int | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Eigenpairs, Eigenpairs]:
    """The k largest and the k smallest eigenpairs, of one run: arguments as in :func:`eigenpairs`.

    >>> from steepest.core.symmetric import MatrixOperator
    >>> largest, smallest = extreme_eigenpairs(MatrixOperator(torch.diag(torch.tensor([1.0, -5.0, 3.0]))))
    >>> round(float(largest.eigenvalues), 4), round(float(smallest.eigenvalues), 4)
    (3.0, -5.0)
    """
    largest, smallest = _search(operator, k, ("LA", "SA"), tol, steps, start, generator)
    return largest, smallest


def random_vector(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Independent normal entries ``[n]``: drawn on the CPU in float64, so that they are the same on each device."""
    draw = torch.randn(operator.size, generator=generator, dtype=torch.float64, device=generator.device)
    return draw.to(operator.device, operator.dtype)


def _search(
    operator: SymmetricOperator,
    k: int,
    ends: tuple[str, ...],
    tol: float,
    steps: int | None,
    start: Tensor | None,
    generator: torch.Generator | None,
) -> list[Eigenpairs]:
    n = operator.size
    check_number("k", k, low=1, high=n, integer=True)
    check_number("tol", tol, low=0.0)
    for end in ends:
        check_choice("which", end, ENDS)
    if steps is None:
        steps = max(2 * k + 20, 100)
    check_number("steps", steps, low=k, integer=True)
    generator = generator or torch.Generator().manual_seed(0)
    given = start is not None
    if start is None:
        start = random_vector(operator, generator)
    elif start.shape[-1:] != (n,) or start.ndim > 2:
        refuse("start", f"shape [{n}] or [m, {n}]", list(start.shape))
    elif start.ndim == 2:
        start = start.sum(0)
    krylov = Krylov(operator, start.to(operator.device, operator.dtype), steps)
    least = min(2 * k + 1, krylov.most)
    while True:
        krylov.step()
        count = len(krylov.alphas)
        if not krylov.finite:
            nothing = torch.full((k,), math.nan, dtype=torch.float64)
            wrong = Eigenpairs(nothing, torch.full((k, n), math.nan).to(start), nothing.clone(), count, False)
            return [wrong for _ in ends]
        full = count == krylov.most
        if krylov.closed and not full:
            if _settled(krylov, k, ends, given) or not krylov.restart(random_vector(operator, generator)):
                break
        elif full or (count >= least and count % CHECK_EVERY == 0 and _converged(krylov, k, ends, tol)):
            break
    return [_pairs(krylov, k, end, tol) for end in ends]


CHECK_EVERY = 4
"""After so many steps residuals are looked at."""


def _order(values: np.ndarray, k: int, end: str) -> np.ndarray:
    keys = {"LA": -values, "SA": values, "LM": -np.abs(values)}[end]
    return np.argsort(keys, kind="stable")[:k]


def _residuals(krylov: Krylov, values: np.ndarray, vectors: np.ndarray, tol: float) -> tuple[np.ndarray, bool]:
    r""":math:`|\beta_m s_{mi}|` of some pairs, and whether all are small."""
    residuals = np.abs(krylov.betas[-1] * vectors[-1])
    size = max(map(abs, (*krylov.alphas, *krylov.betas)))
    rounding = 10 * torch.finfo(krylov.basis.dtype).eps * size
    return residuals, bool((residuals <= np.maximum(tol * np.abs(values), rounding)).all())


def _converged(krylov: Krylov, k: int, ends: tuple[str, ...], tol: float) -> bool:
    values, vectors = krylov.ritz()
    for end in ends:
        places = _order(values, k, end)
        if not _residuals(krylov, values[places], vectors[:, places], tol)[1]:
            return False
    return True


def _settled(krylov: Krylov, k: int, ends: tuple[str, ...], given: bool) -> bool:
    """Whether a closed space has the pairs that are wanted.

    One has each eigenvalue of its start once. So a random start gives the first pair; and more are complete when a
    start outside the space has brought none of them.
    """
    if len(krylov.alphas) < k:
        return False
    if krylov.block == 0:
        return k == 1 and not given
    values, vectors = krylov.ritz()
    places = np.concatenate([_order(values, k, end) for end in ends])
    return bool(((vectors[krylov.block :, places] ** 2).sum(0) < 0.5).all())


def _pairs(krylov: Krylov, k: int, end: str, tol: float) -> Eigenpairs:
    values, vectors = krylov.ritz()
    places = _order(values, k, end)
    if len(places) < k:  # pragma: no cover - a random start lies outside any smaller space
        refuse("k", f"at most {len(places)} eigenpairs in the space that was found", k)
    residuals, small = _residuals(krylov, values[places], vectors[:, places], tol)
    mix = torch.from_numpy(np.ascontiguousarray(vectors[:, places].T)).to(krylov.basis)
    rows = mix @ krylov.basis
    return Eigenpairs(
        torch.from_numpy(values[places].copy()), rows, torch.from_numpy(residuals.copy()), len(krylov.alphas), small
    )


def largest_eigenpair(
    product: Callable[[Tensor], Tensor], start: Tensor, iters: int = 30, tol: float = 1e-3
) -> tuple[float, Tensor]:
    """The algebraically largest eigenvalue of a symmetric map and its vector of length 1, by Lanczos's method.

    In the space of a start and its images no vector has a larger quotient than the one that is returned, so that the
    other end of the spectrum may be as large as it likes, and power iteration with as many products is never nearer.
    Where a product is not finite, both are NaN. It ends where the space of the start does: see :func:`eigenpairs`,
    which goes on from there.

    Args:
        product: of a vector ``[n]``.
        start: any vector that is not 0.
        iters: products at most.
        tol: the residual, as a share of the eigenvalue's size, at which the search ends.

    >>> value, vector = largest_eigenpair(lambda v: v * torch.tensor([-9.0, 1.0, 2.0]), torch.ones(3))
    >>> round(value, 4), vector.abs().round(decimals=3)
    (2.0, tensor([0., 0., 1.]))
    """
    krylov = Krylov(product, start, iters)
    while True:
        krylov.step()
        if not krylov.finite:
            return math.nan, torch.full_like(start, math.nan)
        values, vectors = krylov.ritz()
        residual = krylov.betas[-1] * abs(vectors[-1, -1])
        if krylov.closed or len(krylov.alphas) == krylov.most or residual <= tol * abs(values[-1]):
            return float(values[-1]), torch.from_numpy(vectors[:, -1].copy()).to(start) @ krylov.basis


@dataclass(frozen=True)
class SpectralDensity:
    r"""The spectrum of an operator as probes see it: :math:`\frac{1}{n} \sum_i f(\lambda_i) \approx \sum_j w_j f(x_j)`.

    Attributes:
        nodes: ``[probes, m]``, float64, in order.
        weights: ``[probes, m]``, that sum to 1 for each probe; 0 where a space had fewer nodes.
        size: n.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    def mean(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """The mean of a function over all eigenvalues, and its standard error over probes (NaN for one)."""
        values = torch.where(self.weights > 0, self.weights * function(self.nodes), 0.0).sum(1)
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return float(values.mean()), error

    def curve(self, grid: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The density on a grid ``[g]``, each node a Gaussian of width sigma, and its standard error over probes."""
        check_number("sigma", sigma, low=0.0, open_low=True)
        z = (grid.double()[:, None, None] - self.nodes) / sigma
        values = (self.weights * torch.exp(-0.5 * z**2)).sum(2) / (sigma * math.sqrt(2 * math.pi))
        count = values.shape[1]
        error = values.std(1) / math.sqrt(count) if count > 1 else torch.full_like(values[:, 0], math.nan)
        return values.mean(1), error


def spectral_density(
    operator: SymmetricOperator,
    probes: int = 1,
    steps: int = 80,
    *,
    starts: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    r"""The density of eigenvalues by stochastic Lanczos quadrature.

    Of each start the eigenvalues of its tridiagonal matrix are the nodes, and the squared first components of the
    eigenvectors the weights.

    Args:
        operator: symmetric.
        probes: how many starts.
        steps: products a start, at most n.
        starts: rows ``[probes, n]``; default random signs.
        generator: of random signs; default the same at each call.

    Raises:
        ValueError: counts below 1, starts of another length, a product that is not finite.

    Example:
        >>> from steepest.core.symmetric import MatrixOperator
        >>> density = spectral_density(MatrixOperator(torch.diag(torch.tensor([1.0, 3.0]))), starts=torch.ones(1, 2))
        >>> density.nodes.round(decimals=4), density.weights.round(decimals=4)
        (tensor([[1., 3.]], dtype=torch.float64), tensor([[0.5000, 0.5000]], dtype=torch.float64))
    """
    check_number("probes", probes, low=1, integer=True)
    check_number("steps", steps, low=1, integer=True)
    if starts is not None and (starts.ndim != 2 or starts.shape[1] != operator.size or not len(starts)):
        refuse("starts", f"shape [probes, {operator.size}]", list(starts.shape))
    generator = generator or torch.Generator().manual_seed(0)
    count = probes if starts is None else len(starts)
    nodes, weights = [], []
    for number in range(count):
        start = random_signs(operator, generator, 1)[0] if starts is None else starts[number]
        krylov = Krylov(operator, start.to(operator.device, operator.dtype), steps, half=True)
        while not krylov.closed and len(krylov.alphas) < krylov.most:
            krylov.step(last=len(krylov.alphas) + 1 == krylov.most)
            if not krylov.finite:
                refuse("operator", "finite products", "one that is not")
        values, vectors = krylov.ritz()
        nodes.append(torch.from_numpy(values))
        weights.append(torch.from_numpy(vectors[0] ** 2))
    width = max(map(len, nodes))
    wide = torch.stack([torch.cat([x, x[-1:].expand(width - len(x))]) for x in nodes])
    padded = torch.stack([torch.cat([w, w.new_zeros(width - len(w))]) for w in weights])
    return SpectralDensity(wide, padded, operator.size)


def random_signs(operator: SymmetricOperator, generator: torch.Generator, count: int) -> Tensor:
    """Independent signs ``[count, n]``: drawn on the CPU, a row after the other, so that they are the same anywhere."""
    n = operator.size
    words = torch.empty(count, (n + 55) // 56, dtype=torch.int64, device=generator.device)
    for row in words:
        row.random_(2**56, generator=generator)
    octets = words.view(torch.uint8).view(count, -1, 8)[:, :, :7].to(operator.device, torch.int32)
    signs = _signs_of_octets(operator.device, operator.dtype)
    return torch.nn.functional.embedding(octets, signs).view(count, -1)[:, :n]


@cache
def _signs_of_octets(device: torch.device, dtype: torch.dtype) -> Tensor:
    """``[256, 8]``."""
    return (2 * (torch.arange(256)[:, None] >> torch.arange(8) & 1) - 1).to(device, dtype)
