"""Which claims are expectations of ours.

A claim is the publication's unless it says ``ours=True``, or stands here: claims of experiments that ran before claims
could say so, and whose evidence would be stale by the word alone. Ours are numbers that were measured or worked out
here before, parts that we added to a method, and what is expected of a baseline or of a case that the publication
leaves out. An experiment whose code changes anyway takes its own along.
"""

from __future__ import annotations

from dataclasses import replace

from .experiment import Claim

OURS = {
    "anyloss": ("gmean over f1", "accuracy"),
    "ctc-peaky": ("plain fails at 3",),
    "harmonic-loss": ("order",),
    "mahalanobis-ood": ("near",),
    "sparse-ot": ("softmax imbalance",),
}
"""Keys of effects, by slug."""


def with_origin(slug: str, claim: Claim) -> Claim:
    """The claim of a system, marked where it is ours.

    >>> with_origin("harmonic-loss", Claim("order", "it is that of digits", size=1.0)).ours
    True
    """
    return replace(claim, ours=True) if claim.effect in OURS.get(slug, ()) else claim
