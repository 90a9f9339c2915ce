"""How many bytes of tensors an operation holds at its worst moment, counted operation by operation on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from .torch_private import TorchDispatchMode, tree_leaves


class _Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in given or storage._cdata in self.known:
                continue
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that tensors made while ``function`` runs hold at once; those that were there don't count.

    Memory inside of one operation is not seen.

    >>> peak_bytes(lambda: torch.zeros(1000).add_(1))
    4000
    >>> peak_bytes(lambda: torch.zeros(1000) + 1)
    8000
    """
    with _Counted() as counted:
        function()
    return int(counted.most)
