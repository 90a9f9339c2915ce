"""What losses of pairs share: margins, a queue, rows of one label, the contract itself."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch

from steepest.core.embedding_queue import EmbeddingQueue
from steepest.core.heads import NormedLinear
from steepest.core.margins import angular_margin
from steepest.core.pair_loss import PairLoss
from steepest.losses.contrastive import CLIPLoss, NTXentLoss, SupConLoss


def test_a_margin_is_added_to_the_angle():
    angles = torch.linspace(0.01, math.pi - 0.51, 20, dtype=torch.float64)
    wanted = (angles + 0.5).cos()
    torch.testing.assert_close(angular_margin(angles.cos(), 0.5), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(angular_margin(angles.cos(), 0.5, monotone=True), wanted, rtol=0, atol=1e-9)


def test_beyond_pi_less_the_margin_there_are_two_forms():
    """Cosines (-.95, .2, .1), label 0, margin .5, scale 64: known numbers of both."""
    cosines = torch.tensor([-0.95, 0.2, 0.1])
    for monotone, target, loss in ((False, -0.983404, 75.739517), (True, -1.189713, 88.943277)):
        own = angular_margin(cosines[:1], 0.5, monotone=monotone)
        assert own.item() == pytest.approx(target, abs=1e-6)
        z = 64 * torch.cat([own, cosines[1:]])
        assert -z.log_softmax(0)[0].item() == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_slope_of_a_margin_is_finite_at_the_ends(dtype):
    cosines = torch.tensor([-1.0, 1.0, -1.0005, 1.0005], dtype=dtype, requires_grad=True)
    lowered = angular_margin(cosines, torch.tensor([0.5, 0.1, 0.2, 0.3]))
    assert lowered.dtype == torch.float32
    assert torch.autograd.grad(lowered.sum(), cosines)[0].isfinite().all()


def test_degrees_are_refused():
    with pytest.raises(ValueError, match=r"margin: expected an angle in radians, at most pi, got 28\.6"):
        angular_margin(torch.zeros(2), 28.6)


def test_a_queue_keeps_the_last_rows_and_goes_on_after_loading():
    queue = EmbeddingQueue(4, 1)
    queue.put(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 2, 3]))
    assert queue.written.tolist() == [True, True, True, False]
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    again = EmbeddingQueue(4, 1)
    again.load_state_dict(torch.load(file, weights_only=True))
    for one in (queue, again):
        one.put(torch.tensor([[4.0], [5.0]]), torch.tensor([4, 5]))
        assert one.rows.squeeze(1).tolist() == [5.0, 2.0, 3.0, 4.0]
        assert one.labels.tolist() == [5, 2, 3, 4]
        assert one.written.all()
    queue.put(torch.arange(10.0).unsqueeze(1), torch.arange(10))
    assert sorted(queue.labels.tolist()) == [6, 7, 8, 9]
    assert sorted(queue.rows.squeeze(1).tolist()) == [6.0, 7.0, 8.0, 9.0]


def test_a_normed_head_stays_in_its_own_type_under_autocast():
    head = NormedLinear(4, 3)
    features = torch.randn(5, 4, requires_grad=True)
    wanted = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        cosines = head(features)
    assert torch.equal(cosines, wanted)
    cosines.sum().backward()
    assert head.weight.dtype == torch.float32
    assert head.weight.grad.dtype == torch.float32
    assert head(features.half()).dtype == torch.float32


class Local(PairLoss):
    """A loss of each rank's own batch.

    Example:
        >>> 1
        1
    """

    name = "local"
    ranks = "local"

    def batch_loss(self, outputs, target):
        return outputs.sum()


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("outputs: expected 2 dimensions", lambda: SupConLoss()(torch.zeros(2, 3, 4), torch.zeros(3).long())),
        ("outputs: expected shape", lambda: NTXentLoss()(torch.zeros(3, 3, 4), torch.zeros(3).long())),
        ("target: expected shape", lambda: NTXentLoss()(torch.zeros(2, 3, 4), torch.zeros(2).long())),
        ("target: expected an integer", lambda: SupConLoss()(torch.zeros(3, 4), torch.zeros(3))),
        ("ids: expected shape", lambda: CLIPLoss()(torch.zeros(2, 3, 4), torch.zeros(3).long(), ids=torch.arange(2))),
        ("forward: expected nothing", lambda: SupConLoss()(torch.zeros(3, 4), torch.zeros(3).long(), ids=None)),
        ("over_ranks: expected", lambda: Local().over_ranks()),
        ("group: expected", lambda: SupConLoss().over_ranks()(torch.zeros(3, 4), torch.zeros(3).long())),
    ],
)
def test_wrong_calls_are_named(words, call):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_a_copy_shares_its_ranks():
    loss = SupConLoss().over_ranks()
    assert copy.deepcopy(loss)._group is loss._group
    assert loss.over_ranks(on=False)._group is None


def test_a_graph_may_hold_what_a_queue_has():
    queue, q = EmbeddingQueue(3, 2), torch.ones(1, 2, requires_grad=True)
    queue.put(torch.eye(2), torch.tensor([5, 6]))
    loss = (q @ queue.rows.t()).exp().sum()
    queue.put(torch.ones(2, 2), torch.tensor([7, 8]))
    loss.backward()
    assert q.grad[0].tolist() == pytest.approx([math.e, math.e], rel=1e-6)
    assert queue.labels.tolist() == [8, 6, 7]
