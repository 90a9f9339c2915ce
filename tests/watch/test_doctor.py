"""Each check of the doctor on a model with its fault, by numbers known beforehand, and on one without."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import steepest
from steepest.core.probe import Moment
from steepest.core.stability import stability_of, stability_threshold
from steepest.testing._steps import same_bits, snapshot
from steepest.watch import Diagnosis, diagnose
from steepest.watch.doctor import BELOW, CHECKS, THRESHOLDS
from steepest.watch.vital_signs import LogitSpread

CLASSES = 10
LABELS = torch.arange(200) % CLASSES


class Fixed(nn.Module):
    """Gives logits that are the inputs times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def look(model: nn.Module, inputs: Any, targets: Any, check: str, objective: Any = None, **more: Any) -> Any:
    diagnosis = diagnose(model, objective or nn.CrossEntropyLoss(), (inputs, targets), checks=[check], **more)
    assert len(diagnosis.findings) == 1, diagnosis.left_out
    return diagnosis.findings[0]


def sure(probability: float, labels: Tensor = LABELS) -> Tensor:
    """Log-probabilities that give a label so much, and the others the rest alike."""
    p = torch.full((len(labels), CLASSES), (1 - probability) / (CLASSES - 1))
    return p.scatter(1, labels[:, None], probability).log()


def test_dead_units():
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data = torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]])
    finding = look(model, torch.ones(6, 1), torch.arange(6) % 2, "dead_units")
    assert finding.number == 0.75
    assert finding.wrong
    assert "75%" in finding.sentence
    model[0].weight.data = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert not look(model, torch.ones(6, 1), torch.arange(6) % 2, "dead_units").wrong


@pytest.mark.parametrize("places", [(7,), (7, 7)])
def test_dead_channels_of_a_convolution(places):
    """One of four channels lives, at all places."""
    layer = (nn.Conv1d if len(places) == 1 else nn.Conv2d)(1, 4, 1, bias=False)
    layer.weight.data = torch.tensor([1.0, -1.0, -1.0, -1.0]).view(layer.weight.shape)
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(4 * math.prod(places), 2))
    assert look(model, torch.ones(6, 1, *places), torch.arange(6) % 2, "dead_units").number == 0.75


def test_exploding_logits():
    logits = sure(0.5)
    spread = math.log(0.5) - math.log(0.5 / 9)
    for factor in (1.0, 39.0, 41.0):
        finding = look(Fixed(factor), logits, LABELS, "exploding_logits")
        assert finding.number == pytest.approx(factor * spread, rel=1e-5)
        assert finding.wrong == (factor * spread > 88.7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_edge_of_stability_is_that_of_a_quadratic(momentum):
    """L = 3 w^2 has the curvature 6."""
    w = nn.Linear(1, 1, bias=False)
    for ratio in (0.5, 3.0):
        rate = ratio * (2 + 2 * momentum) / 6
        optimizer = torch.optim.SGD(w.parameters(), lr=rate, momentum=momentum)
        finding = look(
            w, torch.ones(4, 1), torch.zeros(4, 1), "edge_of_stability",
            objective=lambda outputs, _: 3 * outputs.square().mean(), optimizer=optimizer,
        )  # fmt: skip
        assert finding.number == pytest.approx(ratio, rel=1e-4)
        assert finding.wrong == (ratio > 2)


def test_stability_of_optimizers():
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.tensor([3.0, 4.0])
    adam = torch.optim.AdamW([w], lr=0.1, weight_decay=0.0)
    assert stability_of(adam, [w]) is None, "it has no second moment yet"
    adam.step()
    limit, diagonal = stability_of(adam, [w])
    assert limit == pytest.approx(380.0)
    assert diagonal[0].tolist() == pytest.approx([3.0, 4.0])
    assert stability_of(steepest.optim.SAM([w], torch.optim.SGD, lr=0.1), [w]) == (20.0, None)
    assert stability_of(torch.optim.SGD([w], lr=0.1, momentum=0.9), [w])[0] == pytest.approx(38.0)
    assert stability_of(torch.optim.Rprop([w]), [w]) is None
    assert stability_threshold(0.1, 0.9, ema=True) == pytest.approx(380.0)
    for bad in ({"lr": 0.0}, {"lr": 0.1, "momentum": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            stability_threshold(**bad)


def test_a_quadratic_converges_below_the_threshold_and_not_above():
    for options in ({"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9, "ema": True}):
        for share in (0.99, 1.01):
            h = share * stability_threshold(0.1, **options)
            w, v = 1.0, 0.0
            for _ in range(4000):
                gain = 1 - options["momentum"] if options.get("ema") else 1.0
                v = options["momentum"] * v + gain * h * w
                w -= 0.1 * v
                if abs(w) > 1e6:
                    break
            assert (abs(w) < 1) == (share < 1), (options, share)


def test_collapsed_rank():
    """Features that lie on a line: 1 of the 9 directions that ten classes need."""
    generator = torch.Generator().manual_seed(0)
    for directions in (1, 9):
        basis = torch.linalg.qr(torch.randn(16, directions, generator=generator))[0]
        features = torch.randn(200, directions, generator=generator) @ basis.T
        finding = look(nn.Linear(16, CLASSES), features, LABELS, "collapsed_rank")
        assert finding.number == pytest.approx(directions / 9, rel=0.05)
        assert finding.wrong == (directions == 1)


def test_miscalibration():
    """Nine of ten right at a confidence of 0.9, and at 0.99."""
    right = torch.arange(200) % 10 != 9
    guess = torch.where(right, LABELS, (LABELS + 1) % CLASSES)
    for confidence, gap in ((0.9, 0.0), (0.99, 0.09), (0.7, 0.2)):
        finding = look(Fixed(), sure(confidence, guess), LABELS, "miscalibration")
        assert finding.number == pytest.approx(gap, abs=1e-6)
        assert finding.wrong == (gap > 0.1)
    assert "less sure" in finding.sentence


def test_gradient_conflict():
    """Gradients (1, 0) and (cos a, sin a)."""
    for cosine in (0.5, -0.2, -0.8):
        model = nn.Linear(2, 1, bias=False)
        rows = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])
        finding = look(model, rows, torch.zeros(2, 1), "gradient_conflict", objective=lambda z, _: list(z))
        assert finding.number == pytest.approx(cosine, abs=1e-6)
        assert finding.wrong == (cosine < -0.3)


def test_losses_of_samples_are_no_tasks_and_mean_what_their_mean_does():
    torch.manual_seed(0)
    model, pair = nn.Linear(5, CLASSES), (torch.randn(60, 5), LABELS[:60])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mean, single = (
        diagnose(model, nn.CrossEntropyLoss(reduction=reduction), pair, optimizer=optimizer,
                 checks=["edge_of_stability", "gradient_conflict"])
        for reduction in ("mean", "none")
    )  # fmt: skip
    assert set(single.left_out) == {"gradient_conflict"}
    assert single.findings[0].number == pytest.approx(mean.findings[0].number, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_label_noise_that_was_memorised_and_that_was_learned(share):
    """A fifth of the labels at random: against a model that is sure, and one that expects them."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(20000) % CLASSES
    drawn = torch.rand(20000, generator=generator) < share
    noisy = torch.where(drawn, torch.randint(CLASSES, (20000,), generator=generator), labels)
    finding = look(Fixed(), sure(1 - 1e-5, labels), noisy, "label_noise")
    assert finding.number == pytest.approx(share, abs=0.01)
    assert finding.wrong == (share > 0)
    p = 1 - share * 9 / 10 - 1e-7
    finding = look(Fixed(), sure(p, labels), noisy, "label_noise")
    assert finding.number == pytest.approx(share, abs=0.01)


def test_a_language_with_entropy_has_no_noise():
    """Two likely tokens of ten at each place, drawn as the model says."""
    p = torch.full((4000, CLASSES), 1e-5)
    p[:, 0], p[:, 1] = 0.6, 0.4 - 8e-5
    labels = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    assert look(Fixed(), p.log(), labels, "label_noise").number < 0.01


def test_untrained_tokens():
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 20))
    ids = torch.arange(160).view(8, 20) % 16
    finding = look(model, ids, ids, "untrained_tokens", objective=lambda z, y: z.mean())
    assert finding.number == 0.2
    assert finding.wrong
    assert finding.sentence == "4 of 20 tokens never occur in these data."


def test_rare_tokens_are_no_untrained_ones():
    """Five tokens occur once and one twice: by Chao's estimate another 5 of the 6 that are missing would come too."""
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 20))
    ids = torch.cat([torch.arange(8).repeat(20), torch.arange(8, 13), torch.tensor([13, 13])])[None]
    finding = look(model, ids, ids, "untrained_tokens", objective=lambda z, y: z.mean())
    assert finding.number == pytest.approx((6 - 5 * 4 / (2 * 2)) / 20)
    assert finding.sentence == "6 of 20 tokens never occur in these data; about 5 of them would in more data."


def test_what_cannot_be_looked_at_is_said():
    model = nn.Linear(3, 1)
    diagnosis = diagnose(model, nn.MSELoss(), (torch.randn(8, 3), torch.randn(8, 1)))
    assert set(diagnosis.left_out) == set(CHECKS)
    assert "Nothing looks wrong" in str(diagnosis)
    assert str(diagnosis).count("not looked at") == len(CHECKS)


def test_few_classes_few_tokens_and_a_dead_layer_of_small_outputs():
    torch.manual_seed(0)
    four = diagnose(nn.Linear(5, 4), nn.CrossEntropyLoss(), (torch.randn(40, 5), torch.arange(40) % 4))
    assert four.left_out["collapsed_rank"] == "fewer than five classes"
    words = diagnose(nn.Embedding(10, 3), nn.CrossEntropyLoss(), (torch.arange(49) % 5, torch.arange(49) % 3))
    assert words.left_out["untrained_tokens"] == "49 tokens are too few for a vocabulary of 10"
    layer = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([[1.0], [1e-4]]))
    assert look(layer, torch.ones(3, 1), torch.zeros(3, dtype=torch.long), "dead_units").number == 0.5


def test_it_leaves_no_trace_and_takes_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(200, 5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = snapshot(model, [p.grad for p in model.parameters()], torch.get_rng_state())
    whole = diagnose(model, nn.CrossEntropyLoss(), (x, LABELS), optimizer=optimizer)
    parts = diagnose(model, nn.CrossEntropyLoss(), [(x[:100], LABELS[:100]), (x[100:], LABELS[100:])],
                     optimizer=optimizer)  # fmt: skip
    same_bits(before, snapshot(model, [p.grad for p in model.parameters()], torch.get_rng_state()), "a trace")
    assert all(module.training for module in model.modules())
    assert [(f.name, f.number) for f in whole.findings] == [(f.name, f.number) for f in parts.findings]
    assert {"edge_of_stability", "collapsed_rank", "miscalibration"} <= {f.name for f in whole.findings}


@pytest.mark.parametrize("own", [False, True])
def test_a_loader_that_shuffles_leaves_random_states(own):
    generator = torch.Generator().manual_seed(1) if own else None
    pairs = TensorDataset(torch.randn(20, 5), LABELS[:20])
    loader, model = DataLoader(pairs, batch_size=8, shuffle=True, generator=generator), nn.Linear(5, CLASSES)
    before = torch.get_rng_state(), torch.Generator().manual_seed(1).get_state()
    diagnose(model, nn.CrossEntropyLoss(), loader, checks=["miscalibration"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert generator is None or torch.equal(generator.get_state(), before[1])


class Both(nn.Module):
    """Takes two tensors."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


def test_a_pair_may_have_several_arguments():
    x = 2 * sure(0.5).sub(1.0)
    one, two = look(Fixed(), x, LABELS, "miscalibration"), look(Both(), (x / 2, x / 2), LABELS, "miscalibration")
    assert two.number == one.number


def test_pixels_have_their_classes_in_the_second_dimension():
    """As many classes as columns: rows of an image are no logits."""
    labels = torch.arange(4 * CLASSES * CLASSES).view(4, CLASSES, CLASSES) % CLASSES
    logits = sure(0.6, labels.flatten()).view(4, CLASSES, CLASSES, CLASSES)
    finding = look(Fixed(), logits.movedim(-1, 1).contiguous(), labels, "miscalibration")
    assert finding.number == pytest.approx(0.4, abs=1e-6)
    moment = Moment(1, "gradients", Fixed(), inputs=logits.movedim(-1, 1), targets=labels)
    numbers = LogitSpread().measure(moment).numbers
    assert float(numbers["accuracy"]) == 1.0
    assert float(numbers["confidence"]) == pytest.approx(0.6, abs=1e-6)


def test_weights_that_are_not_finite_look_wrong():
    model, x = nn.Linear(5, CLASSES), torch.randn(200, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    diagnosis = diagnose(model, nn.CrossEntropyLoss(), (x, LABELS), optimizer=optimizer)
    assert [finding.name for finding in diagnosis.wrong] == ["exploding_logits"]
    assert "logits of 200 of 200 samples are not finite" in str(diagnosis)
    assert all(math.isfinite(finding.number) for finding in diagnosis.findings if not finding.wrong)


def test_what_cannot_be_measured_is_left_out():
    model, x = nn.Sequential(nn.Linear(5, CLASSES), nn.ReLU()), torch.randn(200, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def left_out(targets: Tensor, inputs: Tensor = x, objective: Any = lambda z, _: z.sum()) -> dict[str, str]:
        return diagnose(model, objective, (inputs, targets), optimizer=optimizer).left_out

    assert left_out(LABELS + 1)["miscalibration"] == "10 logits have no place for the label 10"
    assert left_out(LABELS[:0], x[:0])["dead_units"] == "there are no samples"
    model.requires_grad_(False)
    assert left_out(LABELS)["edge_of_stability"] == "the model has no parameter that is trained"


def test_parameters_without_a_gradient_have_no_part_in_the_curvature_of_adam():
    torch.manual_seed(0)
    used, x = nn.Linear(5, CLASSES), torch.randn(200, 5)
    model = nn.ModuleDict({"used": used, "spare": nn.Linear(2, 2)})
    model.forward = lambda x: used(x)  # type: ignore[method-assign]
    numbers = []
    for parameters in (model.parameters(), used.parameters()):
        adam = torch.optim.Adam(parameters, lr=0.0)
        nn.functional.cross_entropy(used(x), LABELS).backward()
        adam.step()
        used.zero_grad()
        for group in adam.param_groups:
            group["lr"] = 0.01
        numbers.append(look(model, x, LABELS, "edge_of_stability", optimizer=adam).number)
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)


def test_bad_arguments_are_named():
    model, pair = nn.Linear(2, 2), (torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    loss = nn.CrossEntropyLoss()
    for bad, said in (
        (lambda: diagnose(3, loss, pair), "model: expected a module"),  # type: ignore[arg-type]
        (lambda: diagnose(model, 3, pair), "objective: expected"),  # type: ignore[arg-type]
        (lambda: diagnose(model, loss, torch.ones(3)), "data: expected"),  # type: ignore[arg-type]
        (lambda: diagnose(model, loss, [torch.ones(3)]), "data: expected"),  # type: ignore[list-item]
        (lambda: diagnose(model, loss, []), "data: expected at least one batch"),
        (lambda: diagnose(model, loss, [(torch.ones(2, n), pair[1]) for n in (2, 3)]), "data: expected batches whose"),
        (lambda: diagnose(model, loss, pair, checks=["nothing"]), "checks: expected names of"),
        (lambda: diagnose(model, loss, pair, samples=0), "samples: expected"),
        (lambda: diagnose(model, loss, pair, optimizer=torch.optim), "optimizer: expected"),  # type: ignore[arg-type]
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            bad()


def test_every_threshold_names_a_part_that_is_there():
    assert set(THRESHOLDS) == set(CHECKS)
    assert set(BELOW) <= set(CHECKS)
    for name, threshold in THRESHOLDS.items():
        named = re.findall(r"\b([a-z]+)\.([A-Z]\w+)", threshold.advice)
        assert named or "steepest " in threshold.advice or name in ("collapsed_rank", "untrained_tokens"), name
        for room, part in named:
            assert hasattr(getattr(steepest, room), part), f"{name}: {room}.{part}"


def test_an_empty_diagnosis():
    assert str(Diagnosis([])) == "Nothing looks wrong."
