"""Per-sample memory keyed by position in the training split, kept in ``state_dict``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_number, check_range, check_tensor, refuse


class SampleMemory(nn.Module):
    """One row of state for each training sample, and whether it was ever written.

    Args:
        num_samples: rows, >= 1.
        shape: shape of one row; ``()`` for a number.
        initial: value of rows never written.
        dtype: of the stored values.

    >>> memory = SampleMemory(4, initial=1.0)
    >>> memory.write(torch.tensor([2]), torch.tensor([5.0]))
    >>> memory.read(torch.tensor([2, 3])), memory.seen.tolist()
    (tensor([5., 1.]), [False, False, True, False])
    """

    values: Tensor
    seen: Tensor

    def __init__(
        self,
        num_samples: int,
        shape: tuple[int, ...] = (),
        initial: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_number("num_samples", num_samples, low=1, integer=True)
        self.register_buffer("values", torch.full((num_samples, *shape), initial, dtype=dtype))
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))

    def check(self, index: Tensor, rows: int) -> None:
        """Check positions ``[rows]`` in ``0..num_samples - 1``."""
        check_tensor("index", index, floating=False, shape=(rows,))
        if index.dtype == torch.bool:
            refuse("index", "integer positions", index)
        check_range("index", index, 0, self.values.shape[0] - 1)

    def read(self, index: Tensor) -> Tensor:
        """Stored rows ``[B, *shape]``, without a gradient."""
        return self.values[index]

    @torch.no_grad()
    def write(self, index: Tensor, rows: Tensor) -> None:
        """Store detached rows: of a position that occurs several times their mean, of whole numbers the last."""
        rows = rows.detach().to(self.values.dtype)
        if rows.is_floating_point():
            place = index.view(-1, *[1] * (rows.ndim - 1)).expand_as(rows)
            self.values.scatter_reduce_(0, place, rows, "mean", include_self=False)
        else:
            self.values[index] = rows
        self.seen[index] = True


def means_of_repeats(index: Tensor, rows: Tensor) -> Tensor:
    """Rows ``[B, ...]``, each replaced by the mean of those of its position ``[B]``.

    >>> means_of_repeats(torch.tensor([4, 7, 4]), torch.tensor([1.0, 5.0, 2.0]))
    tensor([1.5000, 5.0000, 1.5000])
    """
    same = (index.unsqueeze(1) == index).to(rows.dtype)  # [B, B]: their number alone would depend on values
    means: Tensor = torch.einsum("ij,j...->i...", same / same.sum(1, keepdim=True), rows)
    return means
