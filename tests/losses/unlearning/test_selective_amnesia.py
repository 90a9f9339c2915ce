"""The weight of what is kept, frozen parameters, and tracing against patches made by hand."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steepest.losses.unlearning import (
    SelectiveAmnesiaLoss,
    adaptive_retain_weight,
    causal_trace,
    freeze_except,
)


def drawn(rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (rows, 5), generator=generator)
    labels[:, 0] = labels[-1, -1] = -100
    return logits, labels


def ce(logits, labels):
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def with_reference(value, **options):
    """A loss in its second epoch, against a mean of the first."""
    loss = SelectiveAmnesiaLoss(**options)
    loss.reference_sum.fill_(10 * value)
    loss.reference_tokens.fill_(10)
    loss.end_epoch()
    return loss


@pytest.mark.holds("selective-amnesia", 1)
def test_numbers_of_the_card():
    for excess, weight in ((0.5, 1.5), (1.0, 2.6), (-1.0, 1.2), (0.0, 1.2), (1.5, 2.8)):
        assert adaptive_retain_weight(excess).item() == pytest.approx(weight, abs=1e-6)
    assert adaptive_retain_weight(1.0, m_max=2.3).item() == pytest.approx(2.3, abs=1e-6)
    assert adaptive_retain_weight(0.2, a=1.0, b=2.0, c=0.0, m_min=0.5).item() == pytest.approx(1.1, abs=1e-6)
    logits, labels = drawn()
    value = ce(logits, labels).item()
    for excess, weight in ((0.5, 1.5), (1.0, 2.6), (-1.0, 1.2), (1.5, 2.8)):
        loss = with_reference(value - excess).eval()
        loss(*drawn(seed=1), logits, labels)
        assert loss.terms["weight"].item() == pytest.approx(weight, abs=1e-6)
    first = SelectiveAmnesiaLoss()
    first(*drawn(seed=1), 5 * logits, labels)
    assert first.terms["weight"].item() == pytest.approx(1.2, abs=1e-6)


@pytest.mark.holds("selective-amnesia", 2)
def test_its_slopes():
    forget, y = drawn()
    retain, yr = drawn(seed=1)
    forget.requires_grad_()
    retain.requires_grad_()
    loss = with_reference(ce(retain, yr).item() - 1.0)
    value = loss(forget, y, retain, yr)
    assert value.item() == pytest.approx(2.6 * ce(retain, yr).item() - ce(forget, y).item(), rel=1e-7)
    slopes = torch.autograd.grad(value, (forget, retain))
    wanted = torch.autograd.grad(2.6 * ce(retain, yr) - ce(forget, y), (forget, retain))
    for a, b in zip(slopes, wanted):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.holds("selective-amnesia", 3)
def test_frozen_parameters_keep_their_bits():
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 7))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert freeze_except(model, r"^1\.") == ["1.weight", "1.bias"]
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    tokens, labels = torch.randint(7, (2, 5)), torch.randint(7, (2, 5))
    SelectiveAmnesiaLoss()(model(tokens), labels, model(tokens.flip(0)), labels).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, before[name])
        assert same == (not name.startswith("1.")), name
        assert (parameter.grad is None) == (not name.startswith("1.")), name
    with pytest.raises(ValueError, match="pattern: expected one that some name holds"):
        freeze_except(model, "mlp")


@pytest.mark.holds("selective-amnesia", 4)
def test_one_kind_of_rows():
    forget, y = drawn()
    retain, yr = drawn(seed=1)
    loss = SelectiveAmnesiaLoss()
    assert loss(forget, y).item() == pytest.approx(-ce(forget, y).item(), rel=1e-12)
    assert loss(forget[:0], y[:0], retain, yr).item() == pytest.approx(1.2 * ce(retain, yr).item(), rel=1e-7)
    none = torch.full_like(yr, -100)
    assert loss(forget, y, retain, none).item() == pytest.approx(-ce(forget, y).item(), rel=1e-12)


def test_the_reference_is_the_mean_over_tokens_of_the_first_epoch():
    loss = SelectiveAmnesiaLoss()
    loss.start_epoch(1, 3)
    batches = [drawn(rows, seed) for rows, seed in ((1, 3), (4, 4))]
    for batch in batches:
        loss(*drawn(), *batch)
    tokens = [int((y != -100).sum()) for _, y in batches]
    mean = sum(n * ce(*batch).item() for n, batch in zip(tokens, batches)) / sum(tokens)
    assert (loss.reference_sum / loss.reference_tokens).item() == pytest.approx(mean, rel=1e-12)
    loss.start_epoch(2, 3)
    loss(*drawn(), *batches[0])
    assert loss.reference_tokens == sum(tokens), "the first epoch alone"
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    twin = SelectiveAmnesiaLoss()
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(
        twin(*drawn(), 3 * batches[1][0], batches[1][1]), loss(*drawn(), 3 * batches[1][0], batches[1][1])
    )


class Model(nn.Module):
    """Two blocks, of which each token sees those before it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 6)

    def after(self, h, first=0):
        for block in self.blocks[first:]:
            h = block(torch.tanh(h.cumsum(1)))
        return self.head(h)[:, -1].softmax(-1)

    def forward(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = block(torch.tanh(h.cumsum(1)))
        return self.head(h)


def drawn_model():
    torch.manual_seed(0)
    return Model().double()


@pytest.mark.holds("selective-amnesia", 5)
def test_all_states_of_a_layer_bring_the_answer_back():
    model = drawn_model()
    prompt, subject = torch.tensor([1, 4, 2, 3]), torch.tensor([False, True, True, False])
    options = {"draws": 3, "together": True, "generator": torch.Generator().manual_seed(1)}
    effects = causal_trace(model, list(model.blocks), prompt, subject, 5, **options)
    with torch.no_grad():
        clean = model(prompt[None])[0, -1].softmax(-1)[5]
    draws, corrupted = torch.Generator().manual_seed(1), []
    for _ in range(3):
        noise = 3 * model.embed.weight.std() * torch.randn(4, 4, generator=draws).double()
        with torch.no_grad():
            h = model.embed(prompt[None]) + torch.where(subject[:, None], noise, 0.0)
            corrupted.append(model.after(h)[0, 5])
    wanted = clean - torch.stack(corrupted).mean()
    torch.testing.assert_close(effects, wanted.expand(2, 4), rtol=0, atol=1e-14)


def test_traced_places_against_patches_made_by_hand():
    model = drawn_model().train()
    prompt, subject = torch.tensor([1, 4, 2, 3]), torch.tensor([False, True, False, False])
    state = torch.get_rng_state()
    effects = causal_trace(
        model, list(model.blocks), prompt, subject, 2, draws=2, generator=torch.Generator().manual_seed(4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    draws, wanted = torch.Generator().manual_seed(4), torch.zeros(2, 4, dtype=torch.float64)
    with torch.no_grad():
        clean = [model.embed(prompt[None])]
        for block in model.blocks:
            clean.append(block(torch.tanh(clean[-1].cumsum(1))))
        for _ in range(2):
            noise = 3 * model.embed.weight.std() * torch.randn(4, 4, generator=draws).double()
            h = clean[0] + torch.where(subject[:, None], noise, 0.0)
            without = model.after(h)[0, 2]
            for layer in range(2):
                h = model.blocks[layer](torch.tanh(h.cumsum(1)))
                for place in range(4):
                    patched = h.clone()
                    patched[:, place] = clean[layer + 1][:, place]
                    wanted[layer, place] += (model.after(patched, layer + 1)[0, 2] - without) / 2
    torch.testing.assert_close(effects, wanted, rtol=0, atol=1e-14)
    assert not effects[:, 0].any(), "before the subject nothing changed"


def test_refusals():
    model = drawn_model()
    prompt = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="subject_mask: expected a token of the subject"):
        causal_trace(model, list(model.blocks), prompt, torch.tensor([False, False]), 1)
    with pytest.raises(ValueError, match="layers: expected modules that the model runs"):
        causal_trace(model, [nn.Linear(4, 4)], prompt, torch.tensor([True, False]), 1)
    with pytest.raises(ValueError, match="embedding: expected the module that embeds tokens"):
        causal_trace(nn.Linear(2, 2), [], prompt, torch.tensor([True, False]), 1)
    with pytest.raises(ValueError, match=r"m_max: expected a number >= 1\.2"):
        SelectiveAmnesiaLoss(m_max=1.0)
    with pytest.raises(ValueError, match="retain and retain_labels: expected both"):
        SelectiveAmnesiaLoss()(*drawn(), drawn()[0])
    with pytest.raises(ValueError, match="retain_labels: expected shape"):
        SelectiveAmnesiaLoss()(*drawn(), drawn()[0], drawn()[1][:1])
