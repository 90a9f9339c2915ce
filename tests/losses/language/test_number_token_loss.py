"""Numeric distances against loops, the authors' package and closed forms; counts, masks and vocabularies."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from steepest.losses.language import NTLoss, NumberTokenLoss, ntl_mse, ntl_was, number_token_values
from steepest.losses.language.number_token_loss import KINDS

DIGITS = torch.arange(10.0)


def by_definition(logits, labels, values, kind, renormalize=True, squash=None):
    """A token after the other, as it is written."""
    numbers = [j for j, v in enumerate(values.tolist()) if not math.isnan(v)]
    gaps = [abs(float(values[a] - values[b])) for a in numbers for b in numbers]
    largest, least = max(gaps), min(g for g in gaps if g > 0)
    terms = []
    for z, y in zip(logits.flatten(0, -2).double(), labels.flatten().tolist()):
        if y not in numbers:
            continue
        over = numbers if renormalize else range(len(z))
        total = sum(math.exp(z[j]) for j in over)
        p = {j: math.exp(z[j]) / total for j in numbers}
        own = float(values[y])
        if kind == "was":
            term = 0.0
            for j in numbers:
                gap = abs(own - float(values[j]))
                if squash and gap:
                    gap = 1 + (gap - least) * (squash - 1) / (largest - least)
                term += p[j] * gap
        else:
            gap = own - sum(p[j] * float(values[j]) for j in numbers)
            small = 0.5 * gap**2 if abs(gap) < 1 else abs(gap) - 0.5
            term = {"mse": gap**2, "mae": abs(gap), "huber": small}[kind]
        terms.append(term)
    return sum(terms) / len(terms) if terms else 0.0


def drawn(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([math.nan, 0.0, 1.0, 2.0, math.nan, 5.0, 10.0, 1.0])
    logits = scale * torch.randn(4, 6, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(8, (4, 6), generator=generator)
    labels[0, 0] = labels[2, 3] = -100
    return logits, labels, values


@pytest.mark.holds("number-token-loss", 1)
def test_numbers_of_the_card():
    z = torch.zeros(1, 1, 10)
    z[..., 3], z[..., 4], z[..., 9] = 2.0, 1.0, 1.0
    label = torch.tensor([[4]])
    assert ntl_mse(z, label, DIGITS).item() == pytest.approx(0.1320, abs=5e-5)
    assert ntl_was(z, label, DIGITS).item() == pytest.approx(2.0166, abs=5e-5)
    assert 4 + ntl_mse(z, label, DIGITS).sqrt().item() == pytest.approx(4.3633, abs=5e-5)


@pytest.mark.holds("number-token-loss", 2)
def test_two_wrong_numbers_with_the_right_mean():
    z = torch.full((1, 1, 10), -200.0)
    z[..., 3] = z[..., 5] = 0.0
    assert ntl_mse(z, torch.tensor([[4]]), DIGITS) == 0
    assert ntl_was(z, torch.tensor([[4]]), DIGITS) == 1


@pytest.mark.holds("number-token-loss", 3)
def test_zero_only_where_all_mass_has_the_value():
    values = torch.tensor([math.nan, 3.0, 3.0, 7.0])
    z = torch.tensor([[[5.0, 0.0, 1.0, -500.0]]])
    assert ntl_was(z, torch.tensor([[1]]), values) == 0
    z[..., 3] = -20.0
    assert ntl_was(z, torch.tensor([[1]]), values) > 0


@pytest.mark.holds("number-token-loss", 4)
def test_no_number_among_labels():
    logits, _, values = drawn()
    logits.requires_grad_()
    term = ntl_was(logits, torch.zeros(4, 6, dtype=torch.long), values)
    term.backward()
    assert term == 0
    assert not logits.grad.any()
    assert torch.isfinite(NumberTokenLoss(values)(logits, torch.zeros(4, 6, dtype=torch.long)))


@pytest.mark.holds("number-token-loss", 5)
@pytest.mark.parametrize("kind", KINDS)
def test_other_tokens_get_no_gradient_from_the_term(kind):
    logits, labels, values = drawn()
    logits.requires_grad_()
    loss = NumberTokenLoss(values, kind)
    distances, numbers = loss.parts(logits, labels, None)[2:]
    (slope,) = torch.autograd.grad(distances[numbers].sum(), logits)
    assert not slope[..., values.isnan()].any()
    assert slope[..., ~values.isnan()].any()
    assert not slope[~numbers].any()
    distances = NumberTokenLoss(values, kind, renormalize=False).parts(logits, labels, None)[2]
    (slope,) = torch.autograd.grad(distances[numbers].sum(), logits)
    assert slope[..., values.isnan()].any()


@pytest.mark.holds("number-token-loss", 6)
def test_against_the_authors_package():
    ntloss = pytest.importorskip("ntloss")

    class Tokenizer:
        """The words of a vocabulary of digits and two others, as the package asks for them."""

        words = ("a", "7", "2", "0", "1", "3", "4", "5", "6", "8", "9", "+")

        def __len__(self):
            return len(self.words)

        def get_vocab(self):
            return {word: number for number, word in enumerate(self.words)}

        def add_tokens(self, tokens):
            return 0

    values = number_token_values(Tokenizer.words)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 12, generator=generator)
    labels = torch.randint(12, (3, 5), generator=generator)
    labels[0, 0] = -100
    theirs = ntloss.NTLoss(Tokenizer(), reweigh=False)(logits, labels)
    assert ntl_was(logits, labels, values).item() == pytest.approx(theirs.item(), rel=1e-5)
    theirs = ntloss.NTLossDotProduct(Tokenizer(), reweigh=False)(logits, labels)
    assert ntl_mse(logits, labels, values).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_against_a_loop(kind, renormalize, scale):
    logits, labels, values = drawn(scale)
    loss = NumberTokenLoss(values, kind, weight=0.7, renormalize=renormalize)
    wanted = by_definition(logits, labels, values, kind, renormalize)
    entropy = cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert loss(logits, labels).item() == pytest.approx(entropy.item() + 0.7 * wanted, rel=1e-12)
    assert loss.terms["number_distance"].item() == pytest.approx(wanted, rel=1e-12)


def test_squashed_distances():
    logits, labels, values = drawn()
    loss = NumberTokenLoss(values, squash=3.0)
    loss(logits, labels)
    assert loss.terms["number_distance"].item() == pytest.approx(
        by_definition(logits, labels, values, "was", squash=3.0), rel=1e-12
    )
    two = NumberTokenLoss(torch.tensor([0.0, 1000.0]), squash=4.0)
    assert two.distances.tolist() == [[0, 1], [1, 0]]


def test_ignored_labels_are_no_digits():
    """Ignored labels once became id 0, which is a digit here."""
    for kind in KINDS:
        z = torch.zeros(1, 2, 10, requires_grad=True)
        loss = NumberTokenLoss(DIGITS, kind)(z, torch.full((1, 2), -100))
        loss.backward()
        assert loss == 0
        assert not z.grad.any()


def test_numbers_of_other_micro_batches_count():
    logits, labels, values = drawn()
    loss = NumberTokenLoss(values)
    items = loss.count_items(labels)
    assert items.tolist() == [22, int(((labels > 0) & (labels != 4)).sum())]
    parts = [loss(z[None], y[None], num_items=items) for z, y in zip(logits, labels)]
    assert sum(parts).item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)
    with pytest.raises(ValueError, match="num_items: expected the sum of count_items"):
        loss(logits, labels, num_items=22)


def test_labels_that_do_not_exist_are_not_counted():
    loss = NumberTokenLoss(DIGITS)
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match="labels: expected values in"):
            loss.count_items(torch.tensor([[wrong]]))
    logits, labels, values = drawn()
    small = torch.where(labels == -100, 0, labels)
    own = NumberTokenLoss(values)
    assert own(logits, small.to(torch.uint8)).item() == own(logits, small).item()


def test_the_values_of_tokens():
    tokens = [
        "7",
        " 12",
        "\u0120" + "3",
        "\u2581" + "4",
        "-5",
        "+6",
        "3.5",
        "1e5",
        "\u0663",
        "nan",
        "inf",
        "x1",
        "",
        "1.",
        "1,000",
    ]
    values = number_token_values(tokens)
    assert values[:7].tolist() == [7, 12, 3, 4, -5, 6, 3.5]
    assert values[7:].isnan().all()
    for wrong in ("123", {"7": 0}, iter(["7"])):
        with pytest.raises(TypeError, match="vocab: expected a sequence of tokens"):
            number_token_values(wrong)
    with pytest.raises(TypeError, match="vocab: expected texts, got None"):
        number_token_values(["7", None])


def test_refusals():
    with pytest.raises(ValueError, match="values: expected two number tokens or more"):
        NumberTokenLoss(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="values: expected finite numbers"):
        NumberTokenLoss(torch.tensor([1.0, 2.0, math.inf]))
    with pytest.raises(ValueError, match="squash: expected None"):
        NumberTokenLoss(DIGITS, "mse", squash=2.0)
    with pytest.raises(ValueError, match="squash: expected a number > 1"):
        NumberTokenLoss(DIGITS, squash=1.0)
    with pytest.raises(ValueError, match="kind: expected one of"):
        NumberTokenLoss(DIGITS, "l3")
    with pytest.raises(ValueError, match="weight: expected a number >= 0"):
        NumberTokenLoss(DIGITS, weight=-1.0)
    with pytest.raises(ValueError, match="source: expected 10 classes"):
        NumberTokenLoss(DIGITS)(torch.zeros(1, 2, 9), torch.zeros(1, 2, dtype=torch.long))
    assert NTLoss is NumberTokenLoss
