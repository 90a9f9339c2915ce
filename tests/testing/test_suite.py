"""The conformance suite lets a sound objective through and catches each broken one by the right check."""

from __future__ import annotations

import pytest
import torch

from steepest.core.checks import check_index, check_logits, check_tensor
from steepest.core.objective import Objective
from steepest.core.reductions import reduce, widen
from steepest.core.search import Float
from steepest.testing import check_objective, objective_checks


class Sound(Objective):
    """Cross-entropy.

    Args:
        classes: required, so that the suite must find out how to build one.

    Example: none.
    """

    name = "sound"
    tasks = ("multiclass",)

    def __init__(self, classes, reduction="mean"):
        super().__init__(reduction)
        self.classes = classes

    @classmethod
    def from_task(cls, info, **hyper):
        return cls(info.num_classes, **hyper)

    def each(self, z, target):
        return torch.logsumexp(z, -1) - z.gather(-1, target.unsqueeze(-1)).squeeze(-1)

    def forward(self, outputs, target, *, weight=None):
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        return reduce(self.each(widen(outputs), target), self.reduction, weight)

    def probabilities(self, outputs):
        return outputs.softmax(-1)


class SoundBatch(Sound):
    """The square of the mean; of several ranks each has that of its own batch.

    Example: none.
    """

    name = "sound_batch"
    unit = "batch"

    def forward(self, outputs, target, *, weight=None):
        return super().forward(outputs, target, weight=weight) ** 2


class SoundState(Sound):
    """Grows with every step.

    Example: none.
    """

    name = "sound_state"
    stateful = True

    def __init__(self, classes, reduction="mean"):
        super().__init__(classes, reduction)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def start_epoch(self, epoch, epochs):
        self.scale.fill_(epoch)

    def each(self, z, target):
        if self.training:
            self.count += 1
        return super().each(z, target) * self.count.clone() * self.scale


class WrongMean(Sound):
    def forward(self, outputs, target, *, weight=None):
        loss = super().forward(outputs, target, weight=weight)
        return loss * 1.01 if self.reduction == "mean" else loss


class IgnoresWeight(Sound):
    def forward(self, outputs, target, *, weight=None):
        return super().forward(outputs, target)


class TakesWeight(SoundBatch):
    def check_call(self, outputs, target, weight=None):
        super().check_call(outputs, target)


class TakesNegativeWeights(Sound):
    def forward(self, outputs, target, *, weight=None):
        negative = isinstance(weight, torch.Tensor) and weight.is_floating_point() and bool((weight < 0).any())
        return super().forward(outputs, target, weight=weight.abs() if negative else weight)


class SumOfBatch(SoundBatch):
    def __init__(self, classes, reduction="mean"):
        super().__init__(classes)
        self.reduction = reduction


class StaysHalf(Sound):
    def forward(self, outputs, target, *, weight=None):
        return super().forward(outputs, target, weight=weight).to(outputs.dtype)


class Overflows(Sound):
    def each(self, z, target):
        e = z.exp()
        return -torch.log(e.gather(-1, target.unsqueeze(-1)).squeeze(-1) / (e.sum(-1) + 1e-12) + 1e-12)


class WritesInEval(SoundState):
    def each(self, z, target):
        self.count += 1
        return Sound.each(self, z, target)


class UndeclaredBuffer(Sound):
    def __init__(self, classes, reduction="mean"):
        super().__init__(classes, reduction)
        self.register_buffer("count", torch.zeros(()))

    def each(self, z, target):
        self.count += 1
        return super().each(z, target)


class UndeclaredAttribute(Sound):
    count = 0

    def each(self, z, target):
        self.count += 1
        return super().each(z, target) * self.count


class Forgets(SoundState):
    def __init__(self, classes, reduction="mean"):
        super().__init__(classes, reduction)
        self.register_buffer("count", torch.zeros(()), persistent=False)


class ForgetsTheEpoch(SoundState):
    def __init__(self, classes, reduction="mean"):
        super().__init__(classes, reduction)
        self.register_buffer("scale", torch.ones(()), persistent=False)


class DropsGradient(Sound):
    def each(self, z, target):
        return super().each(z, target) + super().each(z, target).detach()


class TeachesBack(Sound):
    needs = ("teacher",)

    def forward(self, outputs, target, *, teacher, weight=None):
        return super().forward(outputs, target, weight=weight) + (widen(teacher) ** 2).mean()


class WrongSurrogate(Sound):
    gradient = "surrogate"

    def reference_gradient(self, outputs, target):
        return 2 * (outputs.softmax(-1) - torch.nn.functional.one_hot(target, outputs.shape[1])) / len(outputs)


class NoReference(Sound):
    gradient = "surrogate"


class SwallowsNaN(Sound):
    def each(self, z, target):
        return torch.nan_to_num(super().each(z, target))


class TakesLogits(Sound):
    domain = "log_probabilities"

    def forward(self, outputs, target, *, weight=None):
        check_logits(outputs)
        check_index(target, outputs)
        return reduce(self.each(widen(outputs), target), self.reduction, weight)


class IgnoresParameter(Sound):
    search = {"temperature": Float(0.5, 2.0)}

    def __init__(self, classes, temperature=1.0, reduction="mean"):
        super().__init__(classes, reduction)


class InOrder(Sound):
    def each(self, z, target):
        return super().each(z, target) * torch.linspace(0.5, 1.5, len(z), dtype=z.dtype)


class OtherWords(Sound):
    def forward(self, outputs, target, *, weight=None):
        if not isinstance(outputs, torch.Tensor):
            raise ValueError("bad outputs!")
        return super().forward(outputs, target, weight=weight)


class AnyReduction(Sound):
    def __init__(self, classes, reduction="mean"):
        super().__init__(classes)
        self.reduction = reduction


class TakesAnyLabel(Sound):
    def forward(self, outputs, target, *, weight=None):
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        return super().forward(outputs, target % 5, weight=weight)


class NotOne(Sound):
    """Its probabilities sum to 0.9.

    Example: none.
    """

    def probabilities(self, outputs):
        return 0.9 * outputs.softmax(-1)


class SoundLabels(Objective):
    """Binary cross-entropy of each label.

    Example: none.
    """

    name = "sound_labels"
    tasks = ("multilabel",)
    targets = ("multi_hot",)

    def forward(self, outputs, target, *, weight=None):
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_tensor("target", target, shape=tuple(outputs.shape))
        y, z = target.to(widen(outputs)), widen(outputs)
        return reduce((z.clamp_min(0) - z * y + (-z.abs()).exp().log1p()).mean(-1), self.reduction, weight)

    def probabilities(self, outputs):
        return outputs.sigmoid()

    def predict(self, outputs):
        return (outputs > 0).long()

    @classmethod
    def samples(cls, generator, dtype=torch.float32, device="cpu"):
        outputs = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        target = torch.randint(2, (7, 5), generator=generator)
        return [(cls().to(device), ((outputs.to(device, dtype), target.to(device)), {}))]


class OtherLabels(SoundLabels):
    def predict(self, outputs):
        return (outputs > 0.5).long()


class OtherPrediction(Sound):
    def predict(self, outputs):
        return outputs.argmin(-1)


class LooksAtValues(Sound):
    def each(self, z, target):
        return super().each(z, target) if float(z.detach().max()) > -1e9 else 0 * z.sum(-1)


class Scaled(torch.autograd.Function):
    """The same, with a backward pass in place: right for one gradient at a time."""

    @staticmethod
    def forward(ctx, z):
        ctx.buffer = torch.ones_like(z)
        return z.clone()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.buffer.mul_(upstream)


class ByHand(Sound):
    def each(self, z, target):
        eager = torch._C._functorch.maybe_current_level() is None
        return super().each(Scaled.apply(z) if eager else z, target)


class StopsUnderTransforms(Sound):
    def each(self, z, target):
        eager = torch._C._functorch.maybe_current_level() is None
        return super().each(z if eager else 2 * z - z.detach(), target)


class NumbersOfValues(Sound):
    def each(self, z, target):
        eager = torch._C._functorch.maybe_current_level() is None
        return super().each(z * (1 + 0 * z.detach().abs().max().item()) if eager else z, target)


class MasksRows(Sound):
    def each(self, z, target):
        return (z[target >= 0] - z).sum(-1) + super().each(z, target)


class CrashesOnEmpty(Sound):
    def each(self, z, target):
        return super().each(z, target) + 0 * z.max()


class Unseeded(Sound):
    stateful = True
    noise = iter(range(10**9))

    def each(self, z, target):
        return super().each(z, target) + next(self.noise)


class AttachedTerms(Sound):
    def each(self, z, target):
        found = super().each(z, target)
        self.terms = {"loss": found.mean()}
        return found


class OtherHead(Sound):
    def head(self, feature_dim, info):
        return torch.nn.Linear(feature_dim, info.num_classes + 1)


class NoDocstring(Sound):
    __doc__ = None


class TakesAnyKeyword(Sound):
    def __init__(self, k=1, classes=5, reduction="mean", **ignored):
        super().__init__(classes, reduction)
        self.k = k

    @classmethod
    def from_task(cls, info, **hyper):
        return cls(classes=info.num_classes, **hyper)


class SearchesNothing(Sound):
    search = {"tau": None}


class CountsIgnored(Sound):
    def __init__(self, classes, ignore_index=-100, reduction="mean"):
        super().__init__(classes, reduction)
        self.ignore_index = ignore_index

    def forward(self, outputs, target, *, weight=None):
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs, ignore_index=self.ignore_index)
        kept = target != self.ignore_index
        return reduce(self.each(widen(outputs), target * kept) * kept, self.reduction, weight)


class SaysNothingOfRanks(Sound):
    """The mean alone. Example: none."""

    unit = "batch"


BROKEN = [
    (WrongMean, "reductions"), (SumOfBatch, "reductions"), (IgnoresWeight, "weights"), (TakesWeight, "weights"),
    (StaysHalf, "precision"), (Overflows, "extremes"), (WritesInEval, "eval"), (UndeclaredBuffer, "stateless"),
    (UndeclaredAttribute, "stateless"), (Forgets, "state_dict"), (ForgetsTheEpoch, "state_dict"),
    (DropsGradient, "gradient"), (TeachesBack, "gradient"), (WrongSurrogate, "gradient"), (NoReference, "declaration"),
    (InOrder, "order"),
    (OtherWords, "bad_input"), (AnyReduction, "bad_input"), (TakesAnyLabel, "bad_input"), (NotOne, "probabilities"),
    (OtherPrediction, "probabilities"), (OtherLabels, "probabilities"),
    (TakesNegativeWeights, "bad_input"), (LooksAtValues, "vmap"), (LooksAtValues, "compile"), (MasksRows, "vmap"),
    (SwallowsNaN, "nan"), (IgnoresParameter, "parameters"), (TakesLogits, "bad_input"),
    (ByHand, "transforms"), (StopsUnderTransforms, "transforms"), (NumbersOfValues, "shapes"),
    (CrashesOnEmpty, "empty"), (Unseeded, "seed"), (AttachedTerms, "output"), (OtherHead, "head"),
    (NoDocstring, "declaration"), (TakesAnyKeyword, "keywords"),
    (SearchesNothing, "declaration"), (SaysNothingOfRanks, "declaration"), (CountsIgnored, "ignore_index"),
]  # fmt: skip


@pytest.mark.parametrize("cls", [Sound, SoundBatch, SoundState, SoundLabels])
def test_a_sound_objective_passes(cls):
    check_objective(cls)


@pytest.mark.parametrize(("cls", "name"), BROKEN, ids=[f"{cls.__name__}-{name}" for cls, name in BROKEN])
def test_a_broken_one_is_caught(cls, name):
    with pytest.raises((AssertionError, RuntimeError)):  # RuntimeError: torch's own, from gradcheck, vmap, compile
        dict(objective_checks(cls))[name]()


def test_the_first_broken_promise_is_named():
    with pytest.raises(AssertionError, match=r"NotOne, probabilities: probabilities sum to one: differs by 0\.1"):
        check_objective(NotOne)


def test_an_exemption_needs_a_check_of_that_name():
    class Exempt(NotOne):
        """Exempt.

        Example: none.
        """

        exempt = {"probabilities": "a share of them is kept for none of the classes"}

    assert "probabilities" not in dict(objective_checks(Exempt))
    Exempt.exempt = {"probability": "misspelt"}
    with pytest.raises(ValueError, match=r"exempt: expected names of checks, got \['probability'\]"):
        objective_checks(Exempt)


def test_building_again_leaves_the_class_alone():
    from steepest.testing._common import rebuilds

    before = Sound.__init__
    rebuilt = rebuilds(Sound)
    assert Sound.__init__ is before
    assert rebuilt[0](reduction="sum").reduction == "sum"
    assert rebuilt[0]().classes == 5
    rebuilds(WrongMean)
    assert "__init__" not in vars(WrongMean)
