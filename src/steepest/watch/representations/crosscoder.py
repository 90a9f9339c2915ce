"""A sparse dictionary that two models share, and which of its latents are really one model's alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from ...core.checks import check_number, check_range, check_tensor, refuse, refuse_type
from ...core.reductions import widen
from ...core.terms import kept_terms
from ...core.undisturbed import same_random_states


class CrossCoder(nn.Module):
    r"""One sparse code for the activations of several models, with an encoder and a decoder for each of them.

    .. math::
        f &= \mathrm{relu}\Bigl(\sum_m h^m E^m + b\Bigr), \qquad \hat h^m = f D^m + c^m \\
        \mathrm{loss} &= \operatorname{mean}_i \Bigl(\sum_m \|h^m - \hat h^m\|^2
        + \mu \sum_j f_j \sum_m \|d_j^m\|\Bigr)

    The penalty does not change where a latent's code shrinks and its decoders grow by one factor: decoders need no norm
    of their own. It makes latents of concepts that both models have look like one model's:
    :class:`BatchTopKCrossCoder` does so far less, and :func:`latent_scaling` tells.

    Activations should be of one size in all models: :meth:`fit_scale` sees to it. Codes, reconstructions of
    :meth:`decode` and the loss are those of activations so scaled.

    Args:
        dim: d, width of the activations.
        dict_size: D, latents.
        models: 2 or more.
        l1: mu >= 0.
        init_norm: length of each decoder row at first, > 0; encoders begin as their transpose.
        generator: of the first weights.

    Attributes:
        encoder: ``[models, d, D]``. encoder_bias: ``[D]``. decoder: ``[models, D, d]``. decoder_bias: ``[models, d]``.
        scale: factor of each model's activations, ``[models]``, a buffer.
        terms: parts of the last loss, detached.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> coder = CrossCoder(4, 16, generator=torch.Generator().manual_seed(0))
        >>> h = torch.randn(8, 2, 4)
        >>> coder.encode(h).shape, coder(h).shape
        (torch.Size([8, 16]), torch.Size([8, 2, 4]))
        >>> coder.loss(h).backward()
        >>> list(coder.terms)
        ['squared_error', 'sparsity']

    Source: Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning, arXiv:2504.02922.
    """

    scale: Tensor

    def __init__(
        self,
        dim: int,
        dict_size: int,
        models: int = 2,
        *,
        l1: float = 0.1,
        init_norm: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_number("dim", dim, low=1, integer=True)
        check_number("dict_size", dict_size, low=1, integer=True)
        check_number("models", models, low=2, integer=True)
        check_number("l1", l1, low=0.0)
        check_number("init_norm", init_norm, low=0.0, open_low=True)
        rows = torch.randn(models, dict_size, dim, generator=generator)
        rows = init_norm * nn.functional.normalize(rows, dim=2)
        self.encoder = nn.Parameter(rows.mT.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(dict_size))
        self.decoder = nn.Parameter(rows)
        self.decoder_bias = nn.Parameter(torch.zeros(models, dim))
        self.register_buffer("scale", torch.ones(models))
        self.l1 = l1
        self.terms: dict[str, Tensor] = {}

    def fit_scale(self, h: F[Tensor, "batch models dim"], rms: float = 1.0) -> None:
        """Take the factors with which the activations of each model have the root mean squared length ``rms``."""
        check_number("rms", rms, low=0.0, open_low=True)
        self._check(h)
        lengths = widen(h.detach()).square().sum(2).mean(0).sqrt()
        if not bool((lengths > 0).all() and lengths.isfinite().all()):
            refuse("h", "activations of every model that are finite and not all 0", h)
        self.scale.copy_(rms / lengths)

    def normalize(self, h: F[Tensor, "batch models dim"]) -> F[Tensor, "batch models dim"]:
        """The activations times each model's factor, in float32 or wider."""
        self._check(h)
        return h.to(widen(self.decoder).dtype) * widen(self.scale)[:, None]

    def encode(self, h: F[Tensor, "batch models dim"]) -> F[Tensor, "batch latents"]:
        """The codes f >= 0 of activations."""
        return self._active(self.normalize(h))

    def decode(self, f: F[Tensor, "batch latents"]) -> F[Tensor, "batch models dim"]:
        """What codes stand for in each model, in the scale of :meth:`normalize`."""
        check_tensor("f", f, floating=True, shape=(None, self.decoder.shape[1]))
        return self._decoded(f) + widen(self.decoder_bias)

    def scores(self, f: F[Tensor, "batch latents"]) -> F[Tensor, "batch latents"]:
        r"""Codes times how long their decoders are, :math:`f_j \sum_m \|d_j^m\|`."""
        check_tensor("f", f, floating=True, shape=(None, self.decoder.shape[1]))
        return f * widen(self.decoder).norm(dim=2).sum(0)  # type: ignore[no-any-return]

    def forward(self, h: F[Tensor, "batch models dim"]) -> F[Tensor, "batch models dim"]:
        """The reconstruction, in the scale of the activations."""
        return self.decode(self.encode(h)) / widen(self.scale)[:, None]

    def loss(self, h: F[Tensor, "batch models dim"]) -> F[Tensor, ""]:
        """The loss of a batch; its parts are in ``terms``."""
        h = self._batch(h)
        f = self._active(h)
        squared_error = (h - self.decode(f)).square().sum((1, 2)).mean()
        sparsity = self.scores(f).sum(1).mean()
        self.terms = kept_terms({"squared_error": squared_error, "sparsity": sparsity})
        return squared_error + self.l1 * sparsity

    def extra_repr(self) -> str:
        """Sizes."""
        models, latents, dim = self.decoder.shape
        return f"dim={dim}, dict_size={latents}, models={models}"

    def _check(self, h: Tensor) -> None:
        models, _, dim = self.decoder.shape
        check_tensor("h", h, floating=True, shape=(None, models, dim))

    def _batch(self, h: Tensor) -> Tensor:
        h = self.normalize(h)
        if not len(h):
            refuse("h", "at least one row", h)
        return h

    def _active(self, h: Tensor) -> Tensor:
        """Rectified codes of scaled activations."""
        return torch.addmm(widen(self.encoder_bias), h.flatten(1), widen(self.encoder).flatten(0, 1)).relu()

    def _decoded(self, f: Tensor) -> Tensor:
        """Without the offsets."""
        rows = widen(self.decoder).movedim(0, 1)
        return (f @ rows.flatten(1)).unflatten(1, rows.shape[1:])  # type: ignore[no-any-return]


class BatchTopKCrossCoder(CrossCoder):
    r"""A :class:`CrossCoder` that keeps the n k largest scores of a batch of n, and has no penalty.

    .. math::
        v_{ij} = f_j(x_i) \sum_m \|d_j^m\|, \qquad
        \mathrm{loss} = \operatorname{mean}_i \sum_m \|h_i^m - \hat h_i^m\|^2 + a \,
        \frac{\operatorname{mean}_i \sum_m \|e_i^m - \tilde f_i D^m\|^2}
        {\operatorname{mean}_i \sum_m \|e_i^m - \bar e^m\|^2}

    All other codes are 0; one sample may keep more than k. While training :math:`\theta` follows the smallest positive
    score that is kept; in ``eval()`` codes are kept whose score is above it, whatever else is in the batch. The second
    term keeps latents from dying: :math:`\tilde f` are, of each sample, the d / 2 largest scores among latents that
    have not fired for long, and the residual e has no gradient. Only :meth:`loss` moves what is learned without
    gradients, and only while training.

    Args:
        dim: d, width of the activations.
        dict_size: D, latents.
        k: codes that a sample keeps on average, 1 to D.
        models: 2 or more.
        k_start: k at the first step, from which it falls (or rises) linearly, rounded; None for k.
        k_steps: steps of that, >= 0.
        auxiliary: a >= 0.
        dead_after: samples after which a latent that has not fired is dead, >= 1.
        theta_decay: of the running mean, in [0, 1).
        theta_start: steps before it begins, >= 0.
        init_norm: length of each decoder row at first, > 0; encoders begin as their transpose.
        generator: of the first weights.

    Attributes:
        theta: the threshold, a scalar buffer; -1 before the first training step.
        idle: samples since each latent fired, ``[D]``, a buffer.
        steps: training steps so far, a scalar buffer.

    Raises:
        ValueError: numbers outside their range.

    Example:
        >>> coder = BatchTopKCrossCoder(4, 16, k=3, generator=torch.Generator().manual_seed(0))
        >>> h = torch.randn(8, 2, 4, generator=torch.Generator().manual_seed(1))
        >>> int((coder.encode(h) > 0).sum())
        24
        >>> coder.loss(h).backward()
        >>> bool(coder.theta > 0)
        True

    Source: Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning, arXiv:2504.02922.
    """

    theta: Tensor
    idle: Tensor
    steps: Tensor

    def __init__(
        self,
        dim: int,
        dict_size: int,
        k: int = 100,
        models: int = 2,
        *,
        k_start: int | None = None,
        k_steps: int = 0,
        auxiliary: float = 1 / 32,
        dead_after: int = 10_000_000,
        theta_decay: float = 0.999,
        theta_start: int = 0,
        init_norm: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim, dict_size, models, l1=0.0, init_norm=init_norm, generator=generator)
        check_number("k", k, low=1, high=dict_size, integer=True)
        if k_start is not None:
            check_number("k_start", k_start, low=1, high=dict_size, integer=True)
        check_number("k_steps", k_steps, low=0, integer=True)
        check_number("auxiliary", auxiliary, low=0.0)
        check_number("dead_after", dead_after, low=1, integer=True)
        check_number("theta_decay", theta_decay, low=0.0, high=1.0, open_high=True)
        check_number("theta_start", theta_start, low=0, integer=True)
        self.k, self.k_start, self.k_steps = k, k if k_start is None else k_start, k_steps
        self.auxiliary, self.dead_after = auxiliary, dead_after
        self.theta_decay, self.theta_start = theta_decay, theta_start
        self.register_buffer("theta", torch.tensor(-1.0))
        self.register_buffer("idle", torch.zeros(dict_size, dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def current_k(self) -> Tensor:
        """k at this step, an integer scalar."""
        along = (self.steps / self.k_steps).clamp(max=1.0) if self.k_steps else torch.ones_like(self.theta)
        return (self.k_start + (self.k - self.k_start) * along).round().long()

    def encode(self, h: F[Tensor, "batch models dim"]) -> F[Tensor, "batch latents"]:
        """The codes of a batch: its n k largest scores while training, those above the threshold in ``eval()``."""
        return self._sparse(self._active(self.normalize(h)))

    def loss(self, h: F[Tensor, "batch models dim"]) -> F[Tensor, ""]:
        """The loss of a batch; its parts are in ``terms``."""
        h = self._batch(h)
        active = self._active(h)
        f = self._sparse(active)
        if self.training:
            self._follow(f.detach())
        residual = h - self.decode(f)
        squared_error = residual.square().sum((1, 2)).mean()
        auxiliary = self._auxiliary(active, residual.detach())
        self.terms = kept_terms({"squared_error": squared_error, "auxiliary": auxiliary})
        return squared_error + self.auxiliary * auxiliary

    def _sparse(self, active: Tensor) -> Tensor:
        scores = self.scores(active).detach()
        if not self.training:
            return active * (scores > self.theta)
        most = min(scores.numel(), len(scores) * max(self.k, self.k_start))
        places = scores.flatten().topk(most, sorted=self.k_start != self.k).indices
        chosen = torch.arange(most, device=places.device) < len(scores) * self.current_k
        mask = torch.zeros(scores.numel(), dtype=torch.bool, device=places.device).scatter(0, places, chosen)
        return active * mask.view_as(active)

    @torch.no_grad()
    def _follow(self, f: Tensor) -> None:
        """Move the threshold, the counts of samples since a latent fired, and the step."""
        scores = self.scores(f)
        smallest = torch.where(scores > 0, scores, torch.inf).min()
        mean = torch.where(self.theta < 0, smallest, self.theta_decay * self.theta + (1 - self.theta_decay) * smallest)
        moves = smallest.isfinite() & (self.steps >= self.theta_start)
        self.theta.copy_(torch.where(moves, mean, self.theta))
        self.idle.copy_(torch.where((f > 0).any(0), 0, self.idle + len(f)))
        self.steps.add_(1)

    def _auxiliary(self, active: Tensor, residual: Tensor) -> Tensor:
        """How much of the residual's variance dead latents leave, about 1 at first; 0 where none is dead."""
        dead = self.idle >= self.dead_after
        most = min(max(1, residual.shape[2] // 2), len(dead))
        scores, places = torch.where(dead, self.scores(active).detach(), -torch.inf).topk(most, 1)
        codes = torch.zeros_like(active).scatter(1, places, active.gather(1, places) * (scores > -torch.inf))
        error = (residual - self._decoded(codes)).square().sum((1, 2)).mean()
        variance = (residual - residual.mean(0)).square().sum((1, 2)).mean()
        varies = variance > torch.finfo(residual.dtype).eps * residual.square().sum((1, 2)).mean()
        return torch.where(dead.any() & varies, error / torch.where(varies, variance, 1.0), 0.0)


def decoder_norm_difference(decoder: F[Tensor, "2 latents dim"]) -> F[Tensor, " latents"]:
    r"""Whose latent it is, by how long its two decoders are.

    .. math:: \Delta_j = \frac12 \Bigl(1 + \frac{\|d_j^C\| - \|d_j^B\|}{\max(\|d_j^C\|, \|d_j^B\|)}\Bigr)

    0 is the first model's alone, 1/2 is shared, 1 is the second's alone; the publication's bands are 0 to .1, .4 to .6
    and .9 to 1.

    Args:
        decoder: of a :class:`CrossCoder` of two models, ``[2, D, d]``.

    Returns:
        ``[D]``, in [0, 1], in float32 or wider; NaN where both are 0.

    Raises:
        ValueError: another shape.

    Example:
        >>> decoder_norm_difference(torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]))
        tensor([0.7500])

    Source: Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning, arXiv:2504.02922.
    """
    check_tensor("decoder", decoder, floating=True, shape=(2, None, None))
    base, chat = widen(decoder.detach()).norm(dim=2)
    return 0.5 * (1 + (chat - base) / torch.maximum(chat, base))  # type: ignore[no-any-return]


def latent_scaling(
    cc: CrossCoder,
    loader: Iterable[Tensor | Sequence[Tensor]] | Tensor,
    latents: Sequence[int] | Tensor | None = None,
    *,
    model: int = 1,
) -> dict[str, Tensor]:
    r"""How much of a latent's direction, as it fires, is in the activations of either model.

    With the direction :math:`d_j` of the model C whose latents are doubted (the chat model), for each model m

    .. math::
        \beta_j^m = \arg\min_\beta \sum_i \|\beta f_j(x_i) d_j - y_i^m\|^2
        = \frac{\sum_i f_j(x_i) \langle d_j, y_i^m \rangle}{\|d_j\|^2 \sum_i f_j(x_i)^2}

    for the error without the latent, :math:`y^m = h^m - (\hat h^m - f_j d_j^m)`, and for the reconstruction,
    :math:`y^m = \hat h^m`. Then :math:`\nu^\epsilon = \beta^{B, \epsilon} / \beta^{C, \epsilon}` is high where the
    other model's activations have the direction and its decoder shrank to 0 all the same (Complete Shrinkage), and
    :math:`\nu^r`, likewise of reconstructions, where other latents stand for it there (Latent Decoupling). A latent
    that is truly C's alone has both near 0.

    Sums are in float64, over one pass. Codes are those of ``eval()``, whatever the mode is and stays.

    Args:
        cc: of two models.
        loader: batches ``[n, 2, d]``, or tuples that begin with one; or one batch.
        latents: which ones, ``[L]`` indices; None for all.
        model: C, 1 (the second) or 0.

    Returns:
        ``nu_eps`` and ``nu_r`` ``[L]``; ``beta`` ``[2, 2, L]``: of error and reconstruction, of the first model and the
        second; ``active`` ``[L]``, samples in which they fired. NaN for latents that never fire.

    Raises:
        ValueError: more than two models, no batch, shapes or indices that don't fit.

    Example:
        >>> coder = CrossCoder(2, 1).requires_grad_(False)
        >>> _ = coder.encoder.copy_(torch.tensor([[[0.0], [0.0]], [[1.0], [0.0]]]))
        >>> _ = coder.decoder.copy_(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]]))
        >>> h = torch.tensor([[[0.5, 0.0], [1.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]])
        >>> scaling = latent_scaling(coder, h)
        >>> scaling["nu_eps"], scaling["nu_r"]
        (tensor([0.5000]), tensor([0.]))

    Source: Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning, arXiv:2504.02922.
    """
    if not isinstance(cc, CrossCoder):
        refuse_type("cc", "a CrossCoder", cc)
    models, size, _ = cc.decoder.shape
    if models != 2:
        refuse("cc", "a crosscoder of 2 models", f"one of {models}")
    check_number("model", model, low=0, high=1, integer=True)
    device = cc.decoder.device
    which = torch.arange(size, device=device) if latents is None else torch.as_tensor(latents, device=device)
    check_tensor("latents", which, ndim=1, floating=False)
    check_range("latents", which, 0, size - 1)
    training = cc.training
    cc.eval()
    try:
        with torch.no_grad(), same_random_states():
            beta, active = _betas(cc, [loader] if isinstance(loader, Tensor) else loader, which, model)
    finally:
        cc.train(training)
    beta = beta.to(widen(cc.decoder).dtype)
    nu_eps, nu_r = beta[:, 1 - model] / beta[:, model]
    return {"nu_eps": nu_eps, "nu_r": nu_r, "beta": beta, "active": active}


def _betas(
    cc: CrossCoder, batches: Iterable[Tensor | Sequence[Tensor]], latents: Tensor, model: int
) -> tuple[Tensor, Tensor]:
    decoders = cc.decoder[:, latents].double()
    directions = decoders[model]
    along = directions.new_zeros(2, 2, len(latents))
    power = directions.new_zeros(len(latents))
    active = torch.zeros_like(latents, dtype=torch.long)
    empty = True
    for batch in batches:
        h = batch if isinstance(batch, Tensor) else batch[0]
        codes = cc.encode(h.to(latents.device))
        rebuilt = cc.decode(codes).double()
        residual = cc.normalize(h.to(latents.device)).double() - rebuilt
        f = codes[:, latents].double()
        along += torch.stack([((side @ directions.T) * f[:, None]).sum(0) for side in (residual, rebuilt)])
        power += f.square().sum(0)
        active += (f > 0).sum(0)
        empty = False
    if empty:
        refuse("loader", "one or more batches", "none")
    # the error without a latent is the residual and what the latent gives: f_j <d_j, d_j^m>
    along[0] += (decoders * directions).sum(2) * power
    return along / (directions.square().sum(1) * power), active
