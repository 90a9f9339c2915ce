"""The last embeddings of a run in a ring, with their labels: negatives beyond the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import check_number, check_tensor


class EmbeddingQueue(nn.Module):
    """The last ``size`` rows that were put in, and their labels; cursor and count are in ``state_dict``.

    Rows lie in the order of their slots, not of their age. A slot that was never written is no row: it reads 0, and
    ``written`` is false there.

    Args:
        size: slots, >= 1.
        width: of a row.
        dtype: of the stored rows.

    >>> queue = EmbeddingQueue(3, 2)
    >>> queue.put(torch.eye(2), torch.tensor([5, 6]))
    >>> queue.rows, queue.labels, queue.written
    (tensor([[1., 0.],
            [0., 1.],
            [0., 0.]]), tensor([ 5,  6, -1]), tensor([ True,  True, False]))
    """

    rows: Tensor
    labels: Tensor
    cursor: Tensor
    count: Tensor

    def __init__(self, size: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        check_number("size", size, low=1, integer=True)
        check_number("width", width, low=1, integer=True)
        self.register_buffer("rows", torch.zeros(size, width, dtype=dtype))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def written(self) -> Tensor:
        """Boolean ``[size]``: slots that hold a row."""
        return torch.arange(len(self.rows), device=self.rows.device) < self.count

    @torch.no_grad()
    def put(self, rows: Tensor, labels: Tensor) -> None:
        """Store detached rows ``[B, width]`` and labels ``[B]`` in place of the oldest; of more than ``size`` the last.

        Raises:
            ValueError: another width or number of labels.
        """
        size = len(self.rows)
        check_tensor("rows", rows, floating=True, shape=(None, self.rows.shape[1]))
        check_tensor("labels", labels, floating=False, shape=tuple(rows.shape[:1]))
        rows, labels = rows.detach()[-size:], labels[-size:]
        places = (self.cursor + torch.arange(len(rows), device=self.rows.device)) % size
        # new tensors: a graph may hold the old ones
        self.rows = self.rows.index_copy(0, places, rows.to(self.rows.dtype))
        self.labels = self.labels.index_copy(0, places, labels.to(self.labels.dtype))
        self.cursor.add_(len(rows)).remainder_(size)
        self.count.add_(len(rows)).clamp_(max=size)
