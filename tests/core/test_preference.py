"""Named losses of preferences: against loops in float64, at the numbers of reported faults, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from steepest.core.log_complement import log1mexp
from steepest.core.preference import (
    PREFERENCE_FORMS,
    LogProbabilityLoss,
    PreferenceLoss,
    margin_losses,
    preference_loss,
)
from steepest.testing import check_preference, preference_checks

BATCH = {
    "policy_chosen": [-3.0, -12.0, -5.5, -40.0],
    "policy_rejected": [-4.0, -9.0, -7.25, -22.0],
    "ref_chosen": [-3.5, -11.0, -6.0, -30.0],
    "ref_rejected": [-3.8, -10.5, -6.5, -31.0],
}
LENGTHS = ([3, 2, 4, 5], [2, 5, 4, 1])
EPS, BETA = 0.2, 0.3


def double(*values):
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def sigma(x):
    return 1 / (1 + math.exp(-x))


def log_loss(x, eps=EPS):
    return -(1 - eps) * math.log(sigma(x)) - eps * math.log(sigma(-x))


# the publications' equations of one pair: scores c and r, log-probabilities of the policy per token p and q
NAIVE = {
    "sigmoid": lambda c, r: log_loss(BETA * (c - r)),
    "sigmoid_norm": lambda c, r: log_loss(BETA * (c - r)),
    "hinge": lambda c, r: max(0.0, 1 - BETA * (c - r)),
    "ipo": lambda c, r: (c - r - 1 / (2 * BETA)) ** 2,
    "exponential": lambda c, r: math.exp(-BETA * (c - r)),
    "kto_pair": lambda c, r: 1 - sigma(BETA * (c - r)),
    "discopop": lambda c, r: (
        (1 - sigma(BETA * (c - r) / 0.4)) * math.log1p(math.exp(-BETA * (c - r)))
        + sigma(BETA * (c - r) / 0.4) * math.exp(-BETA * (c - r))
    ),
    "exo_pair": lambda c, r: sum(
        p * math.log(p / q) for p, q in ((sigma(BETA * (c - r)), 1 - EPS), (sigma(BETA * (r - c)), EPS))
    ),
    "robust": lambda c, r: (
        ((1 - EPS) * log_loss(BETA * (c - r), 0) - EPS * log_loss(BETA * (r - c), 0)) / (1 - 2 * EPS)
    ),
    "nca_pair": lambda c, r: log_loss(BETA * c, 0) + 0.5 * log_loss(-BETA * c, 0) + 0.5 * log_loss(-BETA * r, 0),
    "bco_pair": lambda c, r: log_loss(BETA * c, 0) + log_loss(-BETA * r, 0),
    "sppo_hard": lambda c, r: (c - 1 / (2 * BETA)) ** 2 + (r + 1 / (2 * BETA)) ** 2,
    "apo_zero": lambda c, r: 1 - sigma(BETA * c) + sigma(BETA * r),
    "apo_down": lambda c, r: sigma(BETA * c) + 1 - sigma(BETA * (c - r)),
    "cpo": lambda c, r: log_loss(BETA * (c - r)) - 0.7 * c,
    "slic": lambda c, r: max(0.0, 1 - BETA * (c - r)) - 0.7 * c,
    "simpo": lambda c, r: log_loss(BETA * (c - r) - 0.9),
    "orpo": lambda c, r: (
        -c
        - BETA * math.log(sigma(math.log(math.exp(c) / (1 - math.exp(c))) - math.log(math.exp(r) / (1 - math.exp(r)))))
    ),
}
OPTIONS = {"label_smoothing": EPS, "tau": 0.4, "nll_weight": 0.7, "gamma": 0.9}


def call(name, **changes):
    """A named loss of the batch with options of the naive equations, scores per token where the name says so."""
    form = PREFERENCE_FORMS[name]
    tensors = double(*BATCH.values())
    options = {k: v for k, v in OPTIONS.items() if k in form.options}
    if form.per_token:
        options |= dict(zip(("chosen_length", "rejected_length"), map(torch.tensor, LENGTHS)))
    args = tensors if form.reference else tensors[:2]
    return preference_loss(*args, loss_type=name, **{"beta": BETA, **options, **changes})


@pytest.mark.parametrize("name", NAIVE)
def test_naive_loops(name):
    form = PREFERENCE_FORMS[name]
    losses, chosen, rejected = call(name)
    for i in range(4):
        c, r = BATCH["policy_chosen"][i], BATCH["policy_rejected"][i]
        if form.reference:
            c, r = c - BATCH["ref_chosen"][i], r - BATCH["ref_rejected"][i]
        if form.per_token:
            c, r = c / LENGTHS[0][i], r / LENGTHS[1][i]
        assert losses[i].item() == pytest.approx(NAIVE[name](c, r), rel=1e-12)
        assert (chosen[i].item(), rejected[i].item()) == pytest.approx((BETA * c, BETA * r), rel=1e-12)


def test_every_name_is_computed_by_hand():
    assert {*NAIVE, "aot", "aot_unpaired", "kto", "apo_zero_unpaired"} == set(PREFERENCE_FORMS)
    assert all(":math:" in form.formula for form in PREFERENCE_FORMS.values())


def test_losses_in_order_of_size():
    p, q, u, v = BATCH.values()
    margins = zip(sorted(a - b for a, b in zip(p, q)), sorted(a - b for a, b in zip(u, v)))
    wanted = [log_loss(BETA * (a - b)) for a, b in margins]
    assert call("aot", label_smoothing=EPS).losses.tolist() == pytest.approx(wanted, rel=1e-12)
    scores = zip(sorted(a - b for a, b in zip(p, u)), sorted(a - b for a, b in zip(q, v)))
    wanted = [log_loss(BETA * (a - b)) for a, b in scores]
    assert call("aot_unpaired", label_smoothing=EPS).losses.tolist() == pytest.approx(wanted, rel=1e-12)


def test_unpaired_answers():
    p, q, u, v = double(*BATCH.values())
    z = torch.tensor(0.75, requires_grad=True)
    options = {"beta": BETA, "desirable_weight": 0.5, "undesirable_weight": 1.5}
    own = p.requires_grad_()
    losses, chosen, rejected = preference_loss(own, q[:1], u, v[:1], "kto", kl=z, **options)
    wanted = [0.5 * (1 - sigma(BETA * (float(a - b) - 0.75))) for a, b in zip(p.detach(), u)]
    wanted.append(1.5 * (1 - sigma(BETA * (0.75 - float(q[0] - v[0])))))
    assert losses.tolist() == pytest.approx(wanted, rel=1e-12)
    assert (chosen.shape, rejected.shape) == ((4,), (1,))
    losses.sum().backward()
    assert z.grad is None
    losses = preference_loss(p, q[:1], u, v[:1], "apo_zero_unpaired", **options).losses
    wanted = [0.5 * sigma(-BETA * float(a - b)) for a, b in zip(p.detach(), u)] + [
        1.5 * sigma(BETA * float(q[0] - v[0]))
    ]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-12)
    nobody = torch.zeros(0)
    assert preference_loss(nobody, q, nobody, v, "kto", kl=0.0).losses.shape == (4,)


@pytest.mark.parametrize(
    ("name", "value", "slope"), [("sigmoid", 0.437488, -0.035434), ("hinge", 0.4, -0.1), ("ipo", 1.0, 2.0)]
)
def test_a_margin_of_6_at_beta_a_tenth(name, value, slope):
    chosen = torch.tensor([-4.0], requires_grad=True)
    losses = preference_loss(chosen, *(torch.tensor([v]) for v in (-10.0, -1.0, -1.0)), name).losses
    (gradient,) = torch.autograd.grad(losses.sum(), chosen)
    assert losses.item() == pytest.approx(value, abs=1e-6)
    assert gradient.item() == pytest.approx(slope, abs=1e-6)


def test_ipo_of_sums_and_of_means():
    """Chosen: 3 tokens, -6 against -9; rejected: one token, -4 under both."""
    given = double([-6.0], [-4.0], [-9.0], [-4.0])
    lengths = {"chosen_length": torch.tensor([3]), "rejected_length": torch.tensor([1])}
    assert preference_loss(*given, "ipo").losses.item() == pytest.approx(4.0, abs=1e-12)
    assert preference_loss(*given, "ipo", **lengths).losses.item() == pytest.approx(16.0, abs=1e-12)


def test_log_odds_of_what_is_nearly_certain():
    """log(1 - p) by subtraction is -inf from 1 - 6e-8 on."""
    near = torch.tensor([-1e-9])
    assert log1mexp(near).item() == pytest.approx(-20.723266, abs=2e-6)
    x = torch.tensor([-1e-9, -0.3, -0.7, -5.0, -50.0], dtype=torch.float64)
    wanted = [math.log(-math.expm1(v)) for v in x.tolist()]
    assert log1mexp(x).tolist() == pytest.approx(wanted, rel=1e-14)
    # odds of 1e9 against 1: -log sigmoid(20.7)
    one = torch.tensor([1])
    chosen = near.clone().requires_grad_()
    even = torch.tensor([-math.log(2)])
    options = {"beta": 1.0, "chosen_length": one, "rejected_length": one}
    value = preference_loss(chosen, even, loss_type="orpo", **options).losses
    (slope,) = torch.autograd.grad(value.sum(), chosen)
    assert value.item() == pytest.approx(2e-9, rel=1e-5)
    assert slope.item() == pytest.approx(-2.0, rel=1e-6)  # -1 - p_l / (1 - p_l)
    value = preference_loss(even, near, loss_type="orpo", **options).losses
    assert value.item() == pytest.approx(math.log(2) + 20.723266, abs=4e-6)


def test_a_certain_answer_has_a_slope():
    """At p = 1 its odds are infinite, the loss is -log p and the slope -1 - beta odds of the other."""
    one, chosen = torch.tensor([1]), torch.zeros(1, requires_grad=True)
    given = {"beta": 0.5, "chosen_length": one, "rejected_length": one}
    loss = preference_loss(chosen, torch.tensor([math.log(0.75)]), loss_type="orpo", **given).losses
    (slope,) = torch.autograd.grad(loss.sum(), chosen)
    assert (loss.item(), slope.item()) == pytest.approx((0.0, -1 - 0.5 * 3), rel=1e-6)


def test_both_forms_of_the_odds_ratio_meet():
    """Where the way of computing it changes, at log q = -1 and at odds of e^60."""
    p = torch.tensor([-0.4, -0.4, -1e-20, -1e-30], dtype=torch.float64)
    q = torch.tensor([-1.0 - 1e-12, -1.0 + 1e-12, -0.2, -0.2], dtype=torch.float64)
    one = torch.ones(4)
    loss = preference_loss(q, p, loss_type="orpo", beta=1.0, chosen_length=one, rejected_length=one).losses + q
    wanted = [
        math.log1p(math.exp(b) / -math.expm1(b) * -math.expm1(a) / math.exp(a)) for a, b in zip(q.tolist(), p.tolist())
    ]
    assert loss.tolist() == pytest.approx(wanted, rel=1e-12)


def test_the_step_before_the_first():
    """Policy and reference equal: ln 2 of every logistic loss, and no rewards."""
    x = torch.tensor([-7.0, -100.0])
    for name in ("sigmoid", "robust", "aot", "aot_unpaired"):
        losses, chosen, rejected = preference_loss(x, x - 3, x, x - 3, name)
        assert losses.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6), name
        assert not chosen.any()
        assert not rejected.any()


def test_margin_losses_are_those_of_pairs():
    p, q, u, v = double(*BATCH.values())
    for name, function in margin_losses().items():
        wanted = preference_loss(p, q, u, v, name, beta=BETA).losses
        assert torch.allclose(function((p - u) - (q - v), BETA), wanted, rtol=1e-14, atol=0), name
        assert function(torch.zeros(2, dtype=torch.bfloat16), 1.0).dtype == torch.float32
    with pytest.raises(ValueError, match="beta: expected a number > 0"):
        margin_losses()["sigmoid"](p, 0.0)
    with pytest.raises(TypeError, match="rho: expected a floating tensor"):
        margin_losses()["sigmoid"](torch.tensor([1]), 1.0)


def test_losses_far_away():
    far = torch.tensor([-1e4, -1.0, -1e4])
    near = torch.tensor([-1.0, -1e4, -1e4])
    zero = torch.zeros(3)
    for name in set(margin_losses()) - {"exponential"}:
        own = far.clone().requires_grad_()
        losses = preference_loss(own, near, zero, zero, name, beta=1.0).losses
        (slope,) = torch.autograd.grad(losses.sum(), own)
        assert losses.isfinite().all(), name
        assert slope.isfinite().all(), name
    assert preference_loss(far, near, zero, zero, "exponential", beta=1.0).losses[0].isinf()
    assert preference_loss(zero - 88, zero, zero, zero, "exponential", beta=1.0).losses.isfinite().all()


FOUR = double([-1.0], [-2.0], [-1.0], [-2.0])


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (FOUR, {"loss_type": "dpo"}, "loss_type: expected one of 'sigmoid'"),
        (FOUR, {"beta": 0.0}, "beta: expected a number > 0"),
        (FOUR, {"beta": math.inf}, "beta: expected a finite number"),
        (FOUR, {"label_smoothing": 0.5}, "label_smoothing: expected a number >= 0 and < 0.5"),
        (FOUR, {"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing: expected none with loss_type='hinge'"),
        (FOUR, {"loss_type": "exo_pair"}, "label_smoothing: expected a number > 0 with loss_type='exo_pair'"),
        (FOUR, {"tau": 0.1}, "tau: expected none with loss_type='sigmoid', where it does nothing"),
        (FOUR, {"loss_type": "discopop", "tau": 0.0}, "tau: expected a number > 0"),
        (FOUR, {"kl": 0.1}, "kl: expected none with loss_type='sigmoid'"),
        (FOUR, {"kl": torch.tensor(0.1)}, "kl: expected none with loss_type='sigmoid'"),
        (FOUR, {"loss_type": "kto"}, "kl: expected a number with loss_type='kto'"),
        (FOUR, {"loss_type": "kto", "kl": torch.zeros(2)}, r"kl: expected shape \(\)"),
        (FOUR, {"desirable_weight": 0.1}, "desirable_weight: expected none"),
        (FOUR, {"loss_type": "kto", "kl": 0.0, "desirable_weight": -1.0}, "desirable_weight: expected a number >= 0"),
        (FOUR, {"loss_type": "simpo"}, "ref_chosen: expected None with loss_type='simpo', which has no reference"),
        (FOUR[:2], {"loss_type": "simpo"}, "chosen_length: expected numbers of tokens with loss_type='simpo'"),
        (FOUR[:2], {"loss_type": "slic", "nll_weight": -0.1}, "nll_weight: expected a number >= 0"),
        (FOUR, {"chosen_length": torch.tensor([2])}, "rejected_length: expected lengths of both answers, or of none"),
        (FOUR, {"chosen_length": torch.tensor([0])}, "chosen_length: expected numbers of tokens >= 1"),
        (FOUR, {"chosen_length": torch.tensor([1, 2])}, r"chosen_length: expected shape \(1\)"),
        ([torch.zeros(2), *FOUR[1:]], {}, r"policy_rejected: expected shape \(2\)"),
        ([*FOUR[:2], torch.zeros(2), FOUR[3]], {}, r"ref_chosen: expected shape \(1\)"),
        ([*FOUR[:3], torch.zeros(1, 1)], {}, r"ref_rejected: expected shape \(1\)"),
        ([torch.zeros(1, 1), *FOUR[1:]], {}, "policy_chosen: expected 1 dimensions"),
    ],
)
def test_refused(args, options, message):
    with pytest.raises(ValueError, match=message):
        preference_loss(*args, **options)


def test_refused_kinds():
    with pytest.raises(TypeError, match="ref_chosen: expected a tensor, got None"):
        preference_loss(*FOUR[:2])
    one = torch.tensor([1])
    with pytest.raises(ValueError, match="policy_chosen: expected log-probabilities <= 0, got 1"):
        preference_loss(
            torch.ones(1), -torch.ones(1), loss_type="orpo", chosen_length=one, rejected_length=one
        )  # fmt: skip
    with pytest.raises(ValueError, match="policy_rejected: expected log-probabilities <= 0, got 1"):
        preference_loss(
            -torch.ones(1), torch.ones(1), loss_type="orpo", chosen_length=one, rejected_length=one
        )  # fmt: skip
    with pytest.raises(TypeError, match="tau: expected a number"):
        preference_loss(*FOUR, "discopop", tau=torch.tensor(0.1))
    with pytest.raises(ValueError, match="gamma: expected none"):
        PreferenceLoss("hinge", gamma=1.0)
    with pytest.raises(ValueError, match="label_smoothing: expected a number > 0"):
        PreferenceLoss("exo_pair")
    with pytest.raises(ValueError, match="reduction: expected one of"):
        PreferenceLoss(reduction="median")
    with pytest.raises(ValueError, match="kl: expected a number with loss_type='kto'"):
        PreferenceLoss("kto")(*FOUR)


def test_the_module():
    p, q, u, v = double(*BATCH.values())
    loss = PreferenceLoss("robust", BETA, EPS, reduction="sum")
    losses, chosen, rejected = preference_loss(p, q, u, v, "robust", beta=BETA, label_smoothing=EPS)
    assert loss(p, q, u, v).item() == pytest.approx(losses.sum().item(), rel=1e-15)
    assert {name: float(term) for name, term in loss.terms.items()} == pytest.approx(
        {
            "chosen_reward": float(chosen.mean()),
            "rejected_reward": float(rejected.mean()),
            "margin": float((chosen - rejected).mean()),
            "accuracy": 0.5,
        }
    )
    assert PreferenceLoss(reduction="none")(p, q, u, v).shape == (4,)
    kto = PreferenceLoss("kto", undesirable_weight=2.0)
    wanted = preference_loss(p, q[:1], u, v[:1], "kto", kl=0.5, undesirable_weight=2.0).losses.mean()
    assert torch.equal(kto(p, q[:1], u, v[:1], kl=0.5), wanted)
    assert "accuracy" not in kto.terms
    lengths = dict(zip(("chosen_length", "rejected_length"), map(torch.tensor, LENGTHS)))
    wanted = preference_loss(p, q, loss_type="simpo", gamma=0.9, **lengths).losses.mean()
    assert torch.equal(PreferenceLoss("simpo", gamma=0.9)(p, q, **lengths), wanted)
    wanted = preference_loss(p, q, loss_type="cpo", nll_weight=0.3).losses.mean()
    assert torch.equal(PreferenceLoss("cpo", nll_weight=0.3)(p, q), wanted)
    wanted = preference_loss(p, q, u, v, "kto", kl=0.0, desirable_weight=0.2).losses.mean()
    assert torch.equal(PreferenceLoss("kto", desirable_weight=0.2)(p, q, u, v, kl=0.0), wanted)
    wanted = preference_loss(p, q, u, v, "discopop", tau=0.2).losses.mean()
    assert torch.equal(PreferenceLoss("discopop", tau=0.2)(p, q, u, v), wanted)


class Careless(LogProbabilityLoss):
    """Breaks one promise at a time."""

    name = "careless"
    fault = ""

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.beta, self.label_smoothing = beta, label_smoothing

    def forward(self, policy: Tensor, rejected: Tensor, ref: Tensor, ref_rejected: Tensor) -> Tensor:
        smoothing = 0.0 if self.fault == "smoothing" else self.label_smoothing
        if self.fault == "gradient":
            return (policy - rejected - ref + ref_rejected).mul(self.beta * (1 - smoothing)).sigmoid().mean()
        if self.fault == "broadcast":
            return (policy - rejected - (ref - ref_rejected).detach()).mul(self.beta * (1 - smoothing)).mean()
        if self.fault == "far":
            ratio = (policy - rejected).mul(-self.beta * (1 - smoothing)).exp()
            return (ratio / (1 + ratio)).mean()
        return preference_loss(
            policy, rejected, ref, ref_rejected, beta=self.beta, label_smoothing=smoothing
        ).losses.mean()  # fmt: skip

    @classmethod
    def samples(cls, generator, dtype=torch.float32, device="cpu"):
        scores = [-torch.rand(3, generator=generator).to(device, dtype) for _ in range(4)]
        return [(cls(), (scores, {}))]


def test_the_suite_passes_what_keeps_its_promises():
    check_preference(Careless)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("smoothing", "hyperparameters", "label_smoothing was taken and does nothing"),
        ("gradient", "reference", "a gradient in argument 2"),
        ("broadcast", "lengths", "must match the size of tensor"),
        ("far", "far", "a gradient that is not finite|NaN at"),
    ],
)
def test_the_suite_finds_faults(fault, check, message):
    with pytest.raises((AssertionError, RuntimeError), match=message):
        dict(preference_checks(type("Broken", (Careless,), {"fault": fault, "__doc__": "x"})))[check]()


def test_no_pair_is_no_loss():
    none = torch.zeros(0, requires_grad=True)
    loss = PreferenceLoss()(none, none, none, none)
    loss.backward()
    assert loss == 0
    assert none.grad.shape == (0,)
