"""Named parts of a loss, kept for the reader of a run."""

from __future__ import annotations

from torch import Tensor

from .transforms import transformed


def kept_terms(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """``terms`` detached; nothing inside ``vmap`` or ``torch.func.grad``, whose tensors die with the transform.

    >>> import torch
    >>> kept_terms({"clean": torch.tensor(1.0, requires_grad=True)})
    {'clean': tensor(1.)}
    """
    if transformed():
        return {}
    return {name: term.detach() for name, term in terms.items()}
