"""An objective of several members against a loop over them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.core.each_member import EachMember
from steepest.core.heads import LinearHeads, MemberHeads, heads_of_members
from steepest.core.objective import Objective, TaskInfo
from steepest.losses import (
    AnyLoss,
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    HarmonicLoss,
    PSKDLoss,
    SquaredErrorLoss,
)

ROWS, MEMBERS, CLASSES = 6, 3, 4


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def labels():
    return torch.arange(ROWS) % CLASSES


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_mean_of_the_members_losses(weighted):
    outputs, target = drawn(ROWS, MEMBERS, CLASSES), labels()
    named = {"weight": torch.rand(ROWS, generator=torch.Generator().manual_seed(1))} if weighted else {}
    loss = EachMember(CrossEntropyLoss(), MEMBERS, "multiclass")(outputs, target, **named)
    alone = [CrossEntropyLoss()(outputs[:, m], target, **named) for m in range(MEMBERS)]
    torch.testing.assert_close(loss, torch.stack(alone).mean(), rtol=1e-12, atol=0.0)


def test_a_loss_of_the_batch_sees_one_member_at_a_time():
    outputs, target = drawn(ROWS, MEMBERS), labels() % 2
    both = EachMember(AnyLoss(), MEMBERS, "binary")
    assert both.unit == "batch"
    alone = [AnyLoss()(outputs[:, m], target) for m in range(MEMBERS)]
    torch.testing.assert_close(both(outputs, target), torch.stack(alone).mean(), rtol=1e-12, atol=0.0)
    joined = AnyLoss()(outputs.flatten(0, 1), target.repeat_interleave(MEMBERS))
    assert (both(outputs, target) - joined).abs() > 1e-4, "which is another number than that of all rows"


def test_a_memory_gets_the_mean_of_a_row_s_members():
    info = TaskInfo("multiclass", num_samples=ROWS, num_classes=CLASSES, epochs=4)
    both = EachMember(PSKDLoss.from_task(info), MEMBERS, "multiclass")
    outputs, index = drawn(ROWS, MEMBERS, CLASSES).float(), torch.arange(ROWS)
    both.start_epoch(1, 4)
    both(outputs, labels(), index=index)
    both.start_epoch(2, 4)
    stored = both.objective.memory.read(index)
    torch.testing.assert_close(stored, outputs.softmax(-1).mean(1).to(stored), rtol=1e-3, atol=1e-3)
    assert all(name.startswith("objective.") for name in both.state_dict())
    assert both.stateful


class OfFeatures(Objective):
    """Needs features and the head."""

    name, tasks, needs = "of_features", ("multiclass",), ("features", "head")

    def forward(self, outputs, target, *, features, head):
        return (head(features) - outputs).square().sum() + features.sum() + 0 * target.sum()


def test_features_and_head_are_the_members_own():
    both = EachMember(OfFeatures(), MEMBERS, "multiclass")
    info = TaskInfo("multiclass", num_samples=ROWS, num_classes=CLASSES)
    head, features = both.head(5, info), drawn(ROWS, MEMBERS, 5).float()
    loss = both(head(features), labels(), features=features, head=head)
    torch.testing.assert_close(loss, features.sum((0, 2)).mean(), rtol=1e-5, atol=1e-5)

    class Rows(OfFeatures):
        needs = ("features",)

        def forward(self, outputs, target, *, features):
            return (features.sum(-1) * target).mean()

    loss = EachMember(Rows(), MEMBERS, "multiclass")(head(features), labels(), features=features)
    torch.testing.assert_close(loss, (features.sum(-1) * labels()[:, None]).mean())


def test_probabilities_are_averaged_and_what_is_said_follows_them():
    outputs = drawn(ROWS, MEMBERS, CLASSES)
    both = EachMember(CrossEntropyLoss(), MEMBERS, "multiclass")
    p = torch.softmax(outputs, -1).mean(1)
    torch.testing.assert_close(both.probabilities(outputs), p)
    assert torch.equal(both.predict(outputs), p.argmax(1))
    torch.testing.assert_close(both.decision(outputs), p.log())
    two = drawn(ROWS, MEMBERS, 2)
    p = torch.softmax(two, -1).mean(1)
    torch.testing.assert_close(
        EachMember(CrossEntropyLoss(), MEMBERS, "binary").decision(two), (p[:, 1] / p[:, 0]).log()
    )


def test_without_probabilities_the_mean_of_the_outputs_decides():
    class Silent(CrossEntropyLoss):
        def probabilities(self, outputs):
            return None

    outputs = drawn(ROWS, MEMBERS, CLASSES)
    both = EachMember(Silent(), MEMBERS, "multiclass")
    assert both.probabilities(outputs) is None
    assert torch.equal(both.predict(outputs), outputs.mean(1).argmax(1))
    torch.testing.assert_close(both.decision(outputs), outputs.mean(1))


def test_numbers_are_averaged():
    outputs = drawn(ROWS, MEMBERS)
    both = EachMember(SquaredErrorLoss(), MEMBERS, "regression")
    torch.testing.assert_close(both.predict(outputs), outputs.mean(1))
    target = drawn(ROWS)
    torch.testing.assert_close(both(outputs, target), (outputs - target[:, None]).square().mean())
    head = both.head(5, TaskInfo("regression", num_samples=ROWS))
    assert head(drawn(ROWS, MEMBERS, 5).float()).shape == (ROWS, MEMBERS)


def test_labels_are_said_one_by_one():
    outputs = drawn(ROWS, MEMBERS, CLASSES)
    both = EachMember(BinaryCrossEntropyLoss(), MEMBERS, "multilabel")
    p = torch.sigmoid(outputs).mean(1)
    torch.testing.assert_close(both.probabilities(outputs), p)
    assert torch.equal(both.predict(outputs), (p > 0.5).long())
    torch.testing.assert_close(both.decision(outputs), torch.logit(p))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_heads_are_one_product(bias):
    heads = [nn.Linear(5, 2, bias=bias) for _ in range(MEMBERS)]
    joint, features = heads_of_members(heads), drawn(ROWS, MEMBERS, 5).float()
    assert type(joint) is (LinearHeads if bias else MemberHeads)
    torch.testing.assert_close(joint(features), MemberHeads(heads)(features))
    torch.testing.assert_close(joint[1](features[:, 1]), heads[1](features[:, 1]))
    torch.testing.assert_close(joint[1].weight, heads[1].weight)
    joint[1](features[:, 1]).sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in joint.parameters() if p.grad is not None) > 0


def test_own_heads_of_an_objective_stay():
    info = TaskInfo("multiclass", num_samples=ROWS, num_classes=CLASSES)
    both = EachMember(HarmonicLoss(), MEMBERS, "multiclass")
    head, features = both.head(5, info), drawn(ROWS, MEMBERS, 5).float()
    assert type(head) is MemberHeads
    torch.testing.assert_close(head(features)[:, 2], head.heads[2](features[:, 2]))


def test_epochs_and_steps_reach_the_objective():
    class Counting(CrossEntropyLoss):
        calls = ()

        def start_epoch(self, epoch, epochs):
            self.calls = (*self.calls, epoch)

        def after_step(self):
            self.calls = (*self.calls, "step")

        def sampler(self, labels, batch_size, generator):
            return iter([labels])

    both = EachMember(Counting(), MEMBERS, "multiclass")
    both.start_epoch(3, 4)
    both.after_step()
    assert both.objective.calls == (3, "step")
    assert next(both.sampler(labels(), 2, torch.Generator())) is not None


def test_refusals():
    with pytest.raises(ValueError, match="members: expected"):
        EachMember(CrossEntropyLoss(), 0, "multiclass")
    with pytest.raises(ValueError, match="reduction 'mean'"):
        EachMember(CrossEntropyLoss(reduction="sum"), 2, "multiclass")
    with pytest.raises(ValueError, match="task: expected one of binary"):
        EachMember(CrossEntropyLoss(), 2, "multitask")
