"""Multimodal competition: encoders are paid when their own features decide the prediction, and charged for others'."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor
from torch.nn.functional import mse_loss

from ...core.checks import check_choice, check_logits, check_number, check_tensor, refuse, refuse_type
from ...core.loss import Loss, Sample
from ...core.reductions import widen
from ...core.scalars import is_number
from ...core.terms import kept_terms
from ._competition import PredictionDecoder, jensen_shannon, nt_xent

MODES = ("greedy", "independent", "collaborative")
PARTNERS = ("different_label", "other_sample")
Fuse = Callable[..., Tensor]
"""``fuse(z_0, z_1, ...) -> logits [N, K]``: what the model makes of the features of all modalities."""
Pairs = tuple[Tensor, Tensor]
"""Indices of samples and of their partners, ``[P]`` each."""


def permutation_pairs(
    target: I[Tensor, " batch"],
    num_permutations: int = 1,
    partner: str = "different_label",
    *,
    generator: torch.Generator | None = None,
) -> Pairs:
    """Partners for the samples of a batch, from random permutations one after the other.

    Args:
        target: labels ``[N]``.
        num_permutations: >= 1; each gives a sample one partner or none.
        partner: which pairs stay: ``"different_label"``, or ``"other_sample"``.
        generator: of the permutations, on the CPU; None for torch's own.

    Returns:
        Indices of samples and of their partners, ``[P]`` each with P <= N times ``num_permutations``, possibly 0.

    Raises:
        ValueError: an unknown kind of partner, labels that are not ``[N]``, fewer than 1 permutation.

    Example:
        >>> sample, partner = permutation_pairs(torch.tensor([0, 0, 1, 1]), 50)
        >>> bool(((sample < 2) == (partner >= 2)).all())
        True
    """
    check_tensor("target", target, ndim=1, floating=False)
    check_number("num_permutations", num_permutations, low=1, integer=True)
    check_choice("partner", partner, PARTNERS)
    rows = target.shape[0]
    drawn = [torch.randperm(rows, generator=generator) for _ in range(num_permutations)]
    partners = torch.cat(drawn).to(target.device)
    samples = torch.arange(rows, device=target.device).repeat(num_permutations)
    if partner == "different_label":
        stay = target[partners] != target[samples]
    else:
        stay = partners != samples
    return samples[stay], partners[stay]


def permutation_divergence(
    features: Sequence[Tensor],
    fuse: Fuse,
    pairs: Pairs,
    *,
    permuted: int | Sequence[int],
    player: int | None = None,
    reference: F[Tensor, "batch classes"] | None = None,
) -> F[Tensor, ""]:
    r"""How far the fused prediction moves when one modality's features are those of a partner.

    .. math:: D_{k \leftarrow p} = \frac1P \sum_{(i, j)} \mathrm{JS}\bigl(\operatorname{softmax} F(\tilde z_i),
        \operatorname{softmax} F(z_i)\bigr)

    where :math:`\tilde z_i` has modality p of sample j and all others of sample i; every modality but the player's k is
    detached in it. JS is the Jensen-Shannon divergence, between 0 and log 2.

    Args:
        features: one tensor ``[N, ...]`` for each modality.
        fuse: ``fuse(*features) -> [P, K]`` logits. It is called as it is: dropout draws anew, batch normalisation in
            training mode sees the mixed rows.
        pairs: samples i and partners j, ``[P]`` each; see :func:`permutation_pairs`.
        permuted: the modality p, or several that go together.
        player: the modality k that the mixed prediction's gradient may reach; None for all.
        reference: logits ``[N, K]`` of the whole features, attached or not; None to compute them here, attached.

    Returns:
        A scalar in float32 or wider, in nats; NaN without pairs.

    Raises:
        ValueError: fewer than two modalities, lengths that differ, a modality that isn't there, logits not ``[P, K]``.
        TypeError: features that are not floating tensors.

    Example:
        >>> features = [torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)]
        >>> swap = torch.tensor([0, 1]), torch.tensor([1, 0])
        >>> permutation_divergence(features, torch.add, swap, permuted=0)
        tensor(0.3278)
        >>> permutation_divergence(features, torch.add, swap, permuted=1)
        tensor(0.)

    Source: Balancing Multimodal Training Through Game-Theoretic Regularization, arXiv:2411.07335.
    """
    rows = _check_features(features)
    moved = (permuted,) if is_number(permuted, integer=True) else tuple(permuted)
    for name, chosen in (("permuted", moved), ("player", () if player is None else (player,))):
        for modality in chosen:
            check_number(name, modality, low=0, high=len(features) - 1, integer=True)
    samples, partners = pairs
    check_tensor("pairs[0]", samples, ndim=1, floating=False)
    check_tensor("pairs[1]", partners, floating=False, shape=tuple(samples.shape))
    if reference is None:
        reference = fuse(*features)
    _check_fused(reference, rows)
    mixed = [z[partners if m in moved else samples] for m, z in enumerate(features)]
    if player is not None:
        mixed = [z if m == player else z.detach() for m, z in enumerate(mixed)]
    logits = fuse(*mixed)
    _check_fused(logits, samples.shape[0])
    return jensen_shannon(widen(logits), widen(reference)[samples])


def mcr_loss(
    features: Sequence[Tensor],
    fuse: Fuse,
    target: I[Tensor, " batch"],
    *,
    competition: float = 0.1,
    contrastive: float = 0.0,
    ceb: float = 0.0,
    mode: str = "greedy",
    num_permutations: int = 1,
    partner: str = "different_label",
    temperature: float = 0.5,
    decoder: Callable[[Tensor], Tensor] | None = None,
    logits: F[Tensor, "batch classes"] | None = None,
    pairs: Pairs | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""The terms of the multimodal competition regulariser, weighted; their sum is added to the task's loss.

    ============  =============================================================================================
    competition   :math:`l \sum_S \sum_k \pm D_{k \leftarrow S}` over the sets S of modalities, neither empty nor
                  full, that are permuted. ``greedy``: minus where k is in S, plus elsewhere; ``independent``:
                  only the former; ``collaborative``: :math:`-l \sum_S D_S`, nothing detached
    contrastive   w times the supervised NT-Xent of all modalities' features on the unit sphere: positives have
                  one label, a positive is compared with the anchor's negatives, the mean is over positive pairs
    ceb           b times the mean squared error of the features, side by side, from the ``decoder``'s guess
                  given the detached logits
    ============  =============================================================================================

    For two modalities the greedy sum is :math:`-D_{0 \leftarrow 0} + D_{1 \leftarrow 0} - D_{1 \leftarrow 1} +
    D_{0 \leftarrow 1}`. Its value is 0 whatever the features, and the gradients of the reference and of ``fuse``'s own
    parameters cancel: it moves the encoders alone. What is detached are features; released code with a linear fusion
    also detaches the other modality's own columns of it, which then belong to the player. Features are used as they
    are given; released code computes them once more in eval mode. The modalities of a set S come from one partner.

    Args:
        features: one tensor ``[N, ...]`` for each of 2 or 3 modalities.
        fuse: ``fuse(*features) -> [N, K]`` logits; see :func:`permutation_divergence`.
        target: labels ``[N]``.
        competition: its weight l, >= 0.
        contrastive: w >= 0; the flattened features must then have one width.
        ceb: b >= 0; needs ``decoder``.
        mode: ``"greedy"``, ``"independent"`` or ``"collaborative"``.
        num_permutations, partner, generator: of :func:`permutation_pairs`.
        temperature: of the contrastive term, > 0.
        decoder: from logits ``[N, K]`` to ``[N, sum of the features' widths]``.
        logits: ``fuse(*features)`` where it has been computed already.
        pairs: in place of drawn ones.

    Returns:
        Scalars in float32 or wider, one for each weight above 0. Without a pair (a batch of one label) there is a
        warning and no competition.

    Raises:
        ValueError: an unknown mode or partner, a number out of range, shapes that don't match, no decoder.
        TypeError: features that are not floating tensors.

    Example:
        >>> features = [torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)]
        >>> mcr_loss(features, torch.add, torch.tensor([0, 1]), mode="collaborative", num_permutations=50)
        {'competition': tensor(-0.0328)}

    Source: Balancing Multimodal Training Through Game-Theoretic Regularization, arXiv:2411.07335.
    """
    _check_options(competition, contrastive, ceb, mode, num_permutations, partner, temperature)
    draw = functools.partial(permutation_pairs, target, num_permutations, partner, generator=generator)
    weights = (competition, contrastive, ceb)
    return _terms(features, fuse, target, weights, mode, temperature, decoder, logits, pairs or draw)[0]


class MultimodalCompetitionRegularizer(Loss):
    """Competition of the modalities of one model, as a term beside the task's loss; see :func:`mcr_loss`.

    ``loss = cross_entropy(logits, y) + regularizer(features, fuse, y, logits)`` where ``logits = fuse(*features)``.
    ``terms`` holds the weighted parts, and ``divergence_p`` of each modality p, which says how much the prediction
    depends on it.

    Args:
        competition: its weight l, >= 0. Released presets: 0.1 with 6 permutations, contrastive and ceb 0.
        contrastive: weight of the supervised contrastive term, >= 0.
        ceb: weight of the reconstruction from the prediction, >= 0; needs ``classes`` and ``widths``. The decoder is a
            submodule: its parameters belong to the optimizer.
        mode: ``"greedy"``, ``"independent"`` or ``"collaborative"``.
        num_permutations: of a batch, >= 1.
        partner: ``"different_label"`` or ``"other_sample"``.
        temperature: of the contrastive term, > 0.
        classes: K of the logits.
        widths: of the flattened features, one a modality.

    Raises:
        ValueError: an unknown mode or partner, a number out of range, ceb without classes and widths.

    Example:
        >>> features = [torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)]
        >>> regularizer = MultimodalCompetitionRegularizer(mode="collaborative", num_permutations=50)
        >>> regularizer(features, torch.add, torch.tensor([0, 1]))
        tensor(-0.0328)
        >>> round(regularizer.terms["divergence_0"].item(), 4), regularizer.terms["divergence_1"].item()
        (0.3278, 0.0)

    Source: Balancing Multimodal Training Through Game-Theoretic Regularization, arXiv:2411.07335.
    """

    name = "multimodal_competition"
    gradient = "surrogate"

    def __init__(
        self,
        competition: float = 0.1,
        contrastive: float = 0.0,
        ceb: float = 0.0,
        mode: str = "greedy",
        num_permutations: int = 1,
        partner: str = "different_label",
        *,
        temperature: float = 0.5,
        classes: int | None = None,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_options(competition, contrastive, ceb, mode, num_permutations, partner, temperature)
        self.competition, self.contrastive, self.ceb, self.mode = competition, contrastive, ceb, mode
        self.num_permutations, self.partner, self.temperature = num_permutations, partner, temperature
        self.decoder: PredictionDecoder | None = None
        if ceb:
            if classes is None or widths is None:
                refuse("classes, widths", "numbers, because ceb > 0", (classes, widths))
            self.decoder = PredictionDecoder(classes, widths)

    def forward(
        self, features: Sequence[Tensor], fuse: Fuse, target: Tensor, logits: Tensor | None = None
    ) -> F[Tensor, ""]:
        """The term of features ``[N, ...]`` a modality, labels ``[N]``, and ``fuse(*features)`` where it is there."""
        draw = functools.partial(permutation_pairs, target, self.num_permutations, self.partner)
        weights = (self.competition, self.contrastive, self.ceb)
        terms, seen = _terms(features, fuse, target, weights, self.mode, self.temperature, self.decoder, logits, draw)
        self.terms = kept_terms({**terms, **seen})
        return functools.reduce(torch.add, terms.values(), widen(features[0]).new_zeros(()))

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[MultimodalCompetitionRegularizer, Sample]]:
        """Two modalities and three, every mode, all terms at once, and none."""
        samples: list[tuple[MultimodalCompetitionRegularizer, Sample]] = []
        cases: tuple[tuple[dict[str, Any], int], ...] = (
            ({"num_permutations": 2}, 2), ({"competition": 0.0}, 2),
            ({"mode": "independent", "partner": "other_sample"}, 3),
            ({"mode": "collaborative", "contrastive": 0.5, "ceb": 0.2, "classes": 3, "widths": (4, 4)}, 2),
        )  # fmt: skip
        target = (torch.arange(9) % 3).to(device)
        for hyper, modalities in cases:
            drawn = [torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(modalities)]
            args = ([z.to(device, dtype) for z in drawn], _example_fusion, target)
            samples.append((cls(**hyper).to(device), (args, {})))
        return samples


def _terms(
    features: Sequence[Tensor],
    fuse: Fuse,
    target: Tensor,
    weights: tuple[float, float, float],
    mode: str,
    temperature: float,
    decoder: Callable[[Tensor], Tensor] | None,
    logits: Tensor | None,
    pairs: Pairs | Callable[[], Pairs],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weighted terms, and how far the prediction moves with each modality alone."""
    rows = _check_features(features)
    check_tensor("target", target, floating=False, shape=(rows,))
    competition, contrastive, ceb = weights
    terms: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    if competition or ceb:
        logits = fuse(*features) if logits is None else logits
        _check_fused(logits, rows)
    if competition:
        drawn = pairs() if callable(pairs) else pairs
        if len(drawn[0]):
            assert logits is not None
            loss, seen = _competition(features, fuse, drawn, mode, logits)
            terms["competition"] = competition * loss
        else:
            warnings.warn("no partners in this batch: the modalities don't compete in it", stacklevel=3)
    if contrastive:
        terms["contrastive"] = contrastive * nt_xent(features, target, temperature)
    if ceb:
        assert logits is not None
        if decoder is None:
            refuse("decoder", "a module from logits to features, because ceb > 0", None)
        wide = torch.cat([widen(z).flatten(1) for z in features], 1)
        guess = decoder(widen(logits).detach())
        check_tensor("decoder(logits)", guess, floating=True, shape=tuple(wide.shape))
        terms["ceb"] = ceb * mse_loss(wide, guess.to(wide.dtype))
    return terms, seen


def _competition(
    features: Sequence[Tensor], fuse: Fuse, pairs: Pairs, mode: str, reference: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The signed sum over sets of permuted modalities and players; the divergence of each modality alone."""
    modalities = range(len(features))
    parts: list[Tensor] = []
    seen: dict[str, Tensor] = {}
    for size in modalities[1:]:
        for moved in itertools.combinations(modalities, size):
            players = (None,) if mode == "collaborative" else moved if mode == "independent" else modalities
            for k in players:
                divergence = permutation_divergence(
                    features, fuse, pairs, permuted=moved, player=k, reference=reference
                )
                parts.append(-divergence if k is None or k in moved else divergence)
            if size == 1:
                seen[f"divergence_{moved[0]}"] = divergence
    return functools.reduce(torch.add, parts), seen


def _example_fusion(*features: Tensor) -> Tensor:
    return functools.reduce(torch.mul, [1 + torch.tanh(widen(z)[:, :3]) for z in features])


def _check_features(features: Sequence[Tensor]) -> int:
    """Check one floating tensor for each of two or more modalities, all of one length; gives the length."""
    if not isinstance(features, list | tuple):
        refuse_type("features", "a sequence of tensors", features)
    if len(features) < 2:
        refuse("features", "two modalities or more", len(features))
    for m, z in enumerate(features):
        check_tensor(f"features[{m}]", z, floating=True)
        if z.ndim < 2 or z.shape[0] != features[0].shape[0]:
            refuse(f"features[{m}]", "[N, ...] of one N for all modalities", z)
    return len(features[0])


def _check_fused(logits: Tensor, rows: int) -> None:
    check_logits(logits, argument="fuse(*features)")
    if logits.shape[0] != rows:
        refuse("fuse(*features)", f"{rows} rows", logits)


def _check_options(
    competition: float,
    contrastive: float,
    ceb: float,
    mode: str,
    num_permutations: int,
    partner: str,
    temperature: float,
) -> None:
    for name, value in (("competition", competition), ("contrastive", contrastive), ("ceb", ceb)):
        check_number(name, value, low=0.0, high=math.inf, open_high=True)
    check_choice("mode", mode, MODES)
    check_number("num_permutations", num_permutations, low=1, integer=True)
    check_choice("partner", partner, PARTNERS)
    check_number("temperature", temperature, low=0.0, open_low=True)
