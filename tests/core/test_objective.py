"""A penalty joined to an objective."""

from __future__ import annotations

import pytest
import torch

from steepest.core.objective import Objective, Penalty, TaskInfo, WithPenalty
from steepest.losses.classification.comp_sum import CompSumLoss

LOGITS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.5, 0.0]], dtype=torch.float64)
TARGET = torch.tensor([0, 1, 1])
FEATURES = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)


class Decay(Penalty):
    """Mean square of the features."""

    name = "decay"
    wants = ("features",)

    def forward(self, features):
        return features.square().mean()


class Spread(Penalty):
    """Of outputs and target alone."""

    name = "spread"
    wants = ("outputs", "target")

    def forward(self, outputs, target):
        return (outputs.sum(-1) * target).sum()


class Indexed(Objective):
    """A loss that needs the positions, moves with time and has a head of its own."""

    name = "indexed"
    tasks = ("binary",)
    domain = "score"
    needs = ("index",)
    stateful = True

    def __init__(self, reduction="mean"):
        super().__init__(reduction)
        self.calls = []

    def head(self, feature_dim, info):
        return torch.nn.Identity()

    def forward(self, outputs, target, *, index, weight=None):
        assert weight is None
        self.calls.append(("forward", index.tolist()))
        return outputs.mean()

    def probabilities(self, outputs):
        return torch.stack([1 - outputs.sigmoid(), outputs.sigmoid()], dim=-1)

    def predict(self, outputs):
        return (outputs > 0.5).long()

    def start_epoch(self, epoch, epochs):
        self.calls.append((epoch, epochs))

    def after_step(self):
        self.calls.append("step")


@pytest.mark.parametrize("factor", [0.0, 1.0, 0.25])
def test_value_gradient_and_terms(factor):
    base = CompSumLoss(tau=1.5)
    joined = WithPenalty(base, Decay(), factor)
    logits, features = LOGITS.clone().requires_grad_(), FEATURES.clone().requires_grad_()
    loss = joined(logits, TARGET, features=features)
    alone = base(logits, TARGET)
    torch.testing.assert_close(loss, alone + factor * 27 / 6)
    a, b = torch.autograd.grad(loss, (logits, features))
    torch.testing.assert_close(a, torch.autograd.grad(alone, logits)[0])
    torch.testing.assert_close(b, factor * 2 * FEATURES / 6)
    assert {k: t.item() for k, t in joined.terms.items()} == {
        "comp_sum": pytest.approx(alone.item()),
        "decay": pytest.approx(4.5),
    }
    assert not any(t.requires_grad for t in joined.terms.values())


def test_a_penalty_of_outputs_and_target():
    joined = WithPenalty(CompSumLoss(), Spread(), 2.0)
    torch.testing.assert_close(joined(LOGITS, TARGET), CompSumLoss()(LOGITS, TARGET) + 2.0 * 1.5)


def test_needs_are_joined_and_each_part_gets_its_own():
    inner = Indexed()
    joined = WithPenalty(inner, Decay())
    assert joined.needs == ("index", "features")
    assert WithPenalty(CompSumLoss(), Spread()).needs == ()
    found = joined(LOGITS[:, 0], TARGET, index=torch.arange(3), features=FEATURES)
    torch.testing.assert_close(found, LOGITS[:, 0].mean() + 4.5)
    assert inner.calls == [("forward", [0, 1, 2])]
    twice = WithPenalty(joined, Decay())
    assert twice.needs == ("index", "features")
    torch.testing.assert_close(twice(LOGITS[:, 0], TARGET, index=torch.arange(3), features=FEATURES), found + 4.5)


def test_it_stands_for_its_objective():
    inner = Indexed()
    joined = WithPenalty(inner, Decay())
    assert (joined.name, joined.tasks, joined.domain, joined.stateful) == ("indexed+decay", ("binary",), "score", True)
    assert (WithPenalty.name, CompSumLoss.name) == ("", "comp_sum")
    assert isinstance(joined.head(4, TaskInfo("binary", 3, 2, (1, 2))), torch.nn.Identity)
    scores = torch.tensor([0.2, 0.8])
    assert joined.predict(scores).tolist() == [0, 1]
    torch.testing.assert_close(joined.probabilities(scores), inner.probabilities(scores))
    joined.start_epoch(2, 5)
    joined.after_step()
    assert inner.calls == [(2, 5), "step"]


def test_state_and_parameters_of_both_are_its_own():
    penalty = Decay()
    penalty.scale = torch.nn.Parameter(torch.ones(()))
    joined = WithPenalty(Indexed(), penalty)
    assert [name for name, _ in joined.named_parameters()] == ["penalty.scale"]
    assert set(joined.state_dict()) == {"penalty.scale"}


def test_refusals():
    with pytest.raises(ValueError, match="weight: expected a number >= 0"):
        WithPenalty(CompSumLoss(), Decay(), -1.0)
    for reduction in ("none", "sum"):
        with pytest.raises(ValueError, match="objective: expected reduction 'mean'"):
            WithPenalty(CompSumLoss(reduction=reduction), Decay())
    assert WithPenalty.unit == "batch"
    with pytest.raises(TypeError, match="weight: expected None"):
        WithPenalty(CompSumLoss(), Spread())(LOGITS, TARGET, weight=torch.ones(3))
    with pytest.raises(KeyError):
        WithPenalty(CompSumLoss(), Decay())(LOGITS, TARGET)


def test_the_decision_follows_what_is_predicted():
    """The spherical softmax does not see the signs of outputs; a margin of outputs would rank rows the wrong way."""
    from steepest.losses import CrossEntropyLoss, SphericalLoss

    outputs = torch.tensor([[3.0, -1.0], [0.1, -4.0], [-2.0, 1.0], [1.0, 1.5]])
    plain, spherical = CrossEntropyLoss().decision(outputs), SphericalLoss().decision(outputs)
    assert torch.equal(plain, outputs[:, 1] - outputs[:, 0])
    assert torch.equal((spherical > 0).long(), SphericalLoss().predict(outputs))
    p = SphericalLoss().probabilities(outputs)
    torch.testing.assert_close(spherical.float(), (p[:, 1] / p[:, 0]).log())
    assert (plain > 0).tolist() != (spherical > 0).tolist()
    assert torch.equal(CrossEntropyLoss().decision(outputs[:, 0]), outputs[:, 0])
    three = torch.randn(4, 3)
    assert torch.equal(CrossEntropyLoss().decision(three), three)
    assert torch.equal(SphericalLoss().decision(three).argmax(1), SphericalLoss().predict(three))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_rows_for_a_fused_head(reduction):
    """Losses of single rows and their gradients, whatever the reduction; detached."""
    from steepest.losses import FocalLoss

    z, y = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    objective = FocalLoss(reduction=reduction)
    losses, slopes = objective.fused_row(z, y)
    leaf = z.clone().requires_grad_()
    expected = FocalLoss(reduction="none")(leaf, y)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(slopes, torch.autograd.grad(expected.sum(), leaf)[0])
    assert not losses.requires_grad
    assert not slopes.requires_grad
    assert objective.reduction == reduction


def test_what_is_no_loss_of_single_rows_has_no_fused_row():
    from steepest.losses import AnyLoss

    with pytest.raises(TypeError, match="single samples"):
        AnyLoss().fused_row(torch.zeros(2), torch.zeros(2, dtype=torch.long))


def test_outputs_beyond_the_domain_are_refused_except_cosines():
    """A margin loss says itself what it does with a cosine of more than 1."""
    outputs, target = torch.tensor([1.5, 0.5]), torch.tensor([1, 0])
    for domain in ("probabilities", "cosine"):
        objective = type("Bounded", (Indexed,), {"domain": domain})()
        if domain == "cosine":
            objective.check_call(outputs, target)
        else:
            with pytest.raises(ValueError, match="outputs: expected"):
                objective.check_call(outputs, target)


def test_samples_bring_what_a_member_needs():
    tasks = []

    class Needing(Indexed):
        tasks, needs = ("multiclass",), ("index", "features")

        @classmethod
        def from_task(cls, info, **hyper):
            tasks.append(info)
            return cls()

    ((_, ((outputs, target), kwargs)),) = Needing.samples(torch.Generator().manual_seed(0), torch.float64)
    (info,) = tasks
    assert outputs.shape == (7, 5)
    assert set(target.tolist()) == set(range(5))
    assert sum(info.class_counts) == info.num_samples == 21
    assert kwargs["features"].shape == (7, info.feature_dim)
    assert len(set(kwargs["index"].tolist()) & set(range(info.num_samples))) == 7
