"""Sums of vectors and stochastic gradients whose privacy comes from noise of all users and a shuffler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from jaxtyping import Float as F
from jaxtyping import Int
from torch import Tensor

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse

SCALES = ("2L", "L")
LARGEST_EPS = 15.0
_EXACT = 2**53
"""Counts up to it are exact in double precision."""


def _binomial(trials: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Int[Tensor, ...]:
    """Draws of Bin(trials, 1/4), by NumPy: those of torch are floats."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.as_tensor(np.random.default_rng(seed).binomial(trials, 0.25, size=shape)).long()


def _levels(
    x: F[Tensor, "... d"], bound: float, g: int, scale: str, generator: torch.Generator | None
) -> Int[Tensor, "... d"]:
    """Coordinates on the grid of the message, rounded at random to one of their neighbours."""
    top = g if scale == "2L" else 2 * g
    place = ((x.detach().double() + bound) * (top / (2 * bound))).clamp(0, top)
    low = place.floor()
    chance = torch.rand(place.shape, generator=generator, dtype=torch.float64).to(place.device)
    return low.long() + (chance < place - low).long()


def shuffle_randomizer(
    x: F[Tensor, "... d"],
    bound: float,
    g: int,
    b: int,
    *,
    scale: str = "2L",
    generator: torch.Generator | None = None,
) -> Int[Tensor, "... d"]:
    r"""A user's message: of g + b bits a coordinate, how many are ones.

    .. math:: u = \frac{g (x_j + L)}{2L}, \qquad m_j = \lfloor u \rfloor + \text{Ber}(u - \lfloor u \rfloor)
        + \text{Bin}(b, \tfrac14)

    Bits of one coordinate are alike, and the shuffler permutes those of all users, so that their number says all.

    Args:
        x: vectors with coordinates of at most ``bound``; a row a user.
        bound: L > 0.
        g: levels of the grid, >= 1.
        b: noisy bits, >= 0.
        scale: ``"2L"``, or ``"L"``: u = g (x + L) / L with up to 2 g levels, as in a public re-implementation.
        generator: of the rounding and the noise; torch's own by default.

    Returns:
        counts of ones, of the shape of ``x``, in int64.

    Raises:
        ValueError: arguments out of their ranges, a coordinate beyond the bound.

    Example:
        >>> shuffle_randomizer(torch.tensor([1.0, -1.0]), 1.0, 4, 0)
        tensor([4, 0])

    Source: Shuffle Private Stochastic Convex Optimization, arXiv:2106.09805.
    """
    check_tensor("x", x, floating=True)
    check_number("bound", bound, low=0.0, high=math.inf, open_low=True, open_high=True)
    check_number("g", g, low=1, integer=True)
    check_number("b", b, low=0, high=_EXACT, integer=True)
    check_choice("scale", scale, SCALES)
    if not bool((x.abs() <= bound * (1 + 1e-6)).all()):
        refuse("x", f"coordinates of at most {bound:g}", x)
    return _levels(x, bound, g, scale, generator) + _binomial(b, tuple(x.shape), generator).to(x.device)


class ShuffleVectorSum:
    r"""The sum of bounded vectors of n users, released once: (eps, delta)-differentially private in the shuffle model.

    .. math::
        g = \lceil \max(2 \sqrt n, d, 4) \rceil, \qquad
        b = \Bigl\lceil \frac{24 \cdot 10^4\, g^2 \ln^2 (4 (d^2 + 1) / \delta)}{\epsilon^2 n} \Bigr\rceil, \qquad
        \hat s_j = \frac{2L}{g} \Bigl(Y_j - \frac{n b}{4}\Bigr) - n L

    where Y_j is the number of ones among all bits of coordinate j (:func:`shuffle_randomizer`). It is unbiased, with
    the variance :math:`(2L/g)^2 (\tfrac{3}{16} n b + \sum_i r_{ij} (1 - r_{ij}))` where r are the parts of u below 1,
    which the rounding draws: a standard deviation of about :math:`424\, L \ln(4 (d^2 + 1) / \delta) / \epsilon`,
    whatever n.

    :meth:`sum` simulates the protocol: it draws the noise of all users at once. Its noise comes from a sampler in
    double precision and a pseudo-random generator, which is right for experiments. A release to others takes an exact
    sampler and a cryptographic generator, each user drawing their own noise: the guarantee is void otherwise.

    Args:
        n: users, >= 1.
        d: coordinates, >= 1.
        eps: in (0, 15].
        delta: in (0, 1/2).
        bound: L > 0, the largest length of a vector.
        clip: whether longer vectors are cut to that length instead of refused.
        scale: ``"2L"``, or ``"L"`` as in a public re-implementation, which has half the error and twice the influence
            of a user.
        levels, noise_bits: g and b, for a look at the protocol; None takes those above, and others guarantee nothing.

    Attributes:
        g, b: as above.

    Raises:
        ValueError: numbers outside their range, or so little eps that counts exceed what is exact in double precision.

    Example:
        >>> protocol = ShuffleVectorSum(1000, 10, eps=1.0, delta=1e-6)
        >>> protocol.g, protocol.b, round(protocol.noise_std())
        (64, 386050164, 8408)

    Source: Shuffle Private Stochastic Convex Optimization, arXiv:2106.09805.
    """

    def __init__(
        self,
        n: int,
        d: int,
        eps: float,
        delta: float,
        bound: float = 1.0,
        *,
        clip: bool = False,
        scale: str = "2L",
        levels: int | None = None,
        noise_bits: int | None = None,
    ) -> None:
        check_number("n", n, low=1, integer=True)
        check_number("d", d, low=1, integer=True)
        check_number("eps", eps, low=0.0, high=LARGEST_EPS, open_low=True)
        check_number("delta", delta, low=0.0, high=0.5, open_low=True, open_high=True)
        check_number("bound", bound, low=0.0, high=math.inf, open_low=True, open_high=True)
        check_flag("clip", clip)
        check_choice("scale", scale, SCALES)
        if levels is not None:
            check_number("levels", levels, low=1, integer=True)
        if noise_bits is not None:
            check_number("noise_bits", noise_bits, low=0, integer=True)
        self.n, self.d, self.eps, self.delta, self.bound = n, d, float(eps), float(delta), float(bound)
        self.clip, self.scale = clip, scale
        self.g = math.ceil(max(2 * math.sqrt(n), d, 4)) if levels is None else levels
        log = math.log(4 * (d * d + 1) / delta)
        self.b = math.ceil(24e4 * self.g**2 * log**2 / (self.eps**2 * n)) if noise_bits is None else noise_bits
        if self.n * (2 * self.g + self.b) > _EXACT:
            refuse("eps", f"one at which {n} users send at most 2^53 bits a coordinate", eps)

    def noise_std(self) -> float:
        """Standard deviation of a coordinate of the released sum; the rounding adds at most L / 2 to it."""
        return self._step * math.sqrt(self.n * self.b * 3) / 4

    @property
    def _step(self) -> float:
        """What one bit stands for."""
        return (2 if self.scale == "2L" else 1) * self.bound / self.g

    def _bounded(self, x: Tensor) -> Tensor:
        check_tensor("x", x, floating=True)
        if x.shape[-1:] != (self.d,):
            refuse("x", f"vectors of {self.d} coordinates", x)
        x = x.detach().double()
        if not bool(x.isfinite().all()):
            refuse("x", "finite vectors", x)
        lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if not self.clip and bool((lengths > self.bound * (1 + 1e-6)).any()):
            refuse("x", f"vectors of length at most {self.bound:g} (clip=True cuts longer ones)", float(lengths.max()))
        bounded: Tensor = x * (self.bound / lengths.clamp(min=self.bound))
        return bounded

    def randomize(self, x: F[Tensor, "... d"], generator: torch.Generator | None = None) -> Int[Tensor, "... d"]:
        """The message of a user, or one a row: counts of ones a coordinate.

        Raises:
            ValueError: a vector beyond the bound without ``clip``, one that is not finite, another width.
        """
        return shuffle_randomizer(self._bounded(x), self.bound, self.g, self.b, scale=self.scale, generator=generator)

    def aggregate(self, counts: Int[Tensor, "*n d"]) -> F[Tensor, " d"]:
        """The estimate of the sum from the ones of each coordinate, ``[d]``, or from all messages, ``[n, d]``.

        Raises:
            ValueError: another shape, another number of messages.
        """
        check_tensor("counts", counts, ndim=(1, 2), floating=False)
        if counts.ndim == 2:
            check_tensor("counts", counts, shape=(self.n, self.d))
            counts = counts.long().sum(0)
        check_tensor("counts", counts, shape=(self.d,))
        surplus: Tensor = (4 * counts.long() - self.n * self.b).double() / 4  # whole numbers until here
        estimate: Tensor = self._step * surplus - self.n * self.bound
        return estimate

    def sum(self, x: F[Tensor, "n d"], generator: torch.Generator | None = None) -> F[Tensor, " d"]:
        """The released sum of all users' vectors, in float64: its distribution is that of the protocol.

        Raises:
            ValueError: another shape; a vector beyond the bound without ``clip``, or one that is not finite.
        """
        check_tensor("x", x, floating=True, shape=(self.n, self.d))
        levels = _levels(self._bounded(x), self.bound, self.g, self.scale, generator).sum(0)
        return self.aggregate(levels + _binomial(self.n * self.b, (self.d,), generator).to(x.device))


class ShuffleSGD:
    r"""Projected stochastic gradient descent in which every user takes part once, in one private sum.

    .. math:: \theta_t = \Pi_{\|\theta\| \le R} \Bigl(\theta_{t-1} - \frac{\eta}{B}\, \hat s_t\Bigr), \qquad
        \bar\theta = \frac1T \sum_{t=1}^{T} \theta_t, \qquad T = \lfloor n / B \rfloor

    from zero, with :math:`\hat s_t` the :class:`ShuffleVectorSum` of the gradients of batch t. Batches are disjoint and
    in random order; the n mod B users left over take no part. So the whole run is (eps, delta)-private, by parallel
    composition. Noise of the mean gradient has a standard deviation of about 424 L ln(4 (d^2 + 1) / delta) / (eps B) a
    coordinate: batches of less than ten thousand users are mostly noise. (The publication's accelerated, smoothed and
    multi-pass forms are not here.)

    Args:
        radius: R > 0.
        eps, delta, bound, clip, scale: as in :class:`ShuffleVectorSum`; gradients of convex losses have bounded lengths
            by their Lipschitz constant, others need ``clip``.
        batch: B >= 1.
        lr: > 0.
        generator: of the order, the rounding and the noise.

    Attributes:
        average: the average of the iterates, ``[d]``, in float64.
        path: all of them, ``[T, d]``.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> rows = torch.full((200_000, 1), 0.5, dtype=torch.float64)
        >>> generator = torch.Generator().manual_seed(0)
        >>> sgd = ShuffleSGD(1.0, eps=1.0, delta=1e-6, batch=100_000, lr=1.0, bound=1.5, generator=generator)
        >>> sgd.fit(lambda theta, x: theta - x, rows, d=1).path.shape
        torch.Size([2, 1])

    Source: Shuffle Private Stochastic Convex Optimization, arXiv:2106.09805.
    """

    def __init__(
        self,
        radius: float,
        eps: float,
        delta: float,
        batch: int,
        lr: float,
        *,
        bound: float = 1.0,
        clip: bool = False,
        scale: str = "2L",
        generator: torch.Generator | None = None,
    ) -> None:
        check_number("radius", radius, low=0.0, open_low=True)
        check_number("batch", batch, low=1, integer=True)
        check_number("lr", lr, low=0.0, open_low=True)
        ShuffleVectorSum(batch, 1, eps, delta, bound, clip=clip, scale=scale)  # refuses what it cannot take
        self.radius, self.eps, self.delta, self.batch, self.lr = float(radius), eps, delta, batch, float(lr)
        self.bound, self.clip, self.scale, self.generator = bound, clip, scale, generator
        self.average = self.path = torch.zeros(0)

    def fit(self, gradients: Callable[..., Tensor], *data: F[Tensor, "n ..."], d: int) -> Self:
        """Descend.

        Args:
            gradients: ``gradients(theta, *rows)``, of each row's loss at ``theta`` ``[d]``, ``[B, d]``.
            *data: tensors with a row a user.
            d: coordinates of theta.

        Raises:
            ValueError: no data, tensors of different lengths, fewer users than a batch has, gradients of another shape
                or beyond the bound.
        """
        check_number("d", d, low=1, integer=True)
        if not data:
            refuse("data", "at least one tensor", data)
        for rows in data:
            check_tensor("data", rows)
            if len(rows) != len(data[0]):
                refuse("data", f"{len(data[0])} rows", rows)
        users = len(data[0])
        if users < self.batch:
            refuse("batch", f"at most {users}, the number of users", self.batch)
        protocol = ShuffleVectorSum(self.batch, d, self.eps, self.delta, self.bound, clip=self.clip, scale=self.scale)
        order = torch.randperm(users, generator=self.generator).to(data[0].device)
        theta: Tensor = torch.zeros(d, dtype=torch.float64, device=data[0].device)
        path = []
        for start in range(0, users - self.batch + 1, self.batch):
            own = order[start : start + self.batch]
            slopes = gradients(theta, *(rows[own] for rows in data))
            check_tensor("gradients", slopes, floating=True, shape=(self.batch, d))
            theta = theta - self.lr * protocol.sum(slopes, self.generator) / self.batch
            theta = theta * (self.radius / theta.norm().clamp(min=self.radius))
            path.append(theta)
        self.path = torch.stack(path)
        self.average = self.path.mean(0)
        return self
