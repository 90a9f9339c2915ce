"""Crosscoders: numbers of the card, the losses by loops in NumPy, least squares by NumPy, what is resumed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from steepest.watch.representations import (
    BatchTopKCrossCoder,
    CrossCoder,
    decoder_norm_difference,
    latent_scaling,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def coder_of(cls, *args, seed=0, **options):
    """With every parameter drawn, so that no bias is 0 and no encoder a transpose."""
    coder = cls(*args, generator=seeded(seed), **options).double()
    with torch.no_grad():
        for number, p in enumerate(coder.parameters()):
            p.copy_(0.7 * normal(*p.shape, seed=seed + number + 1))
    return coder


def arrays(coder):
    """Weights as the equations name them, in NumPy."""
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    return [getattr(coder, name).detach().numpy() for name in names]


def reference(coder, h, scale=(1.0, 1.0)):
    """Codes before any choice, scores and squared error of chosen codes, sample by sample."""
    encoder, bias, decoder, offset = arrays(coder)
    h = np.stack([scale[m] * h[:, m].numpy() for m in range(2)], 1)
    f = np.array([[max(0.0, bias[j] + sum(h[i, m] @ encoder[m, :, j] for m in range(2))) for j in range(len(bias))]
                  for i in range(len(h))])  # fmt: skip
    scores = np.array([[f[i, j] * sum(np.linalg.norm(decoder[m, j]) for m in range(2)) for j in range(len(bias))]
                       for i in range(len(h))])  # fmt: skip

    def error(codes):
        rebuilt = np.array([[codes[i] @ decoder[m] + offset[m] for m in range(2)] for i in range(len(h))])
        return h - rebuilt, np.mean([((h[i] - rebuilt[i]) ** 2).sum() for i in range(len(h))])

    return f, scores, error


@pytest.mark.holds("crosscoder", 1)
def test_the_coefficient_of_the_card():
    # codes 1 and 2 of one latent; reconstructions of the second model are (2, 0) and (4, 0)
    coder = CrossCoder(2, 1).requires_grad_(False)
    coder.encoder.copy_(torch.tensor([[[1.0], [0.0]], [[0.0], [0.0]]]))
    coder.decoder.copy_(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]))
    h = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[2.0, 0.0], [4.0, 0.0]]])
    assert coder.encode(h).tolist() == [[1.0], [2.0]]
    scaling = latent_scaling(coder, h)
    assert float(scaling["beta"][0, 1, 0]) == pytest.approx(2.0, rel=1e-7)
    # its own reconstruction is once the direction, and the first model has (1, 0), (2, 0) there
    assert scaling["beta"].flatten().tolist() == pytest.approx([1.0, 2.0, 0.0, 1.0], abs=1e-7)
    assert float(scaling["nu_eps"]) == pytest.approx(0.5)
    assert float(scaling["nu_r"]) == 0.0
    assert scaling["active"].tolist() == [2]


@pytest.mark.holds("crosscoder", 2)
def test_relative_norms_of_decoders():
    assert decoder_norm_difference(torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])).tolist() == [0.75]
    decoder = normal(2, 9, 4)
    torch.testing.assert_close(decoder_norm_difference(decoder.flip(0)), 1 - decoder_norm_difference(decoder))
    ends = torch.tensor([[[1.0], [0.0], [-3.0], [0.0]], [[0.0], [1.0], [3.0], [0.0]]])
    assert decoder_norm_difference(ends)[:3].tolist() == [0.0, 1.0, 0.5]
    assert decoder_norm_difference(ends).isnan().tolist() == [False, False, False, True]
    assert decoder_norm_difference(decoder.bfloat16()).dtype == torch.float32


@pytest.mark.holds("crosscoder", 3)
def test_a_batch_keeps_as_many_codes_as_it_may():
    coder = coder_of(BatchTopKCrossCoder, 6, 40, k=5)
    h = normal(16, 2, 6, seed=9)
    f = coder.encode(h)
    assert int((f > 0).sum()) == 80
    assert int((f > 0).sum(1).max()) > 5
    active, scores, _ = reference(coder, h)
    wanted = np.where(scores >= np.sort(scores.flatten())[-80], active, 0.0)
    np.testing.assert_allclose(f.detach(), wanted, rtol=1e-12)
    few = coder_of(BatchTopKCrossCoder, 6, 40, k=39)
    few.encoder_bias.data -= 2.0
    assert 0 < int((few.encode(h) > 0).sum()) < 16 * 39
    coder.encoder.data.zero_()
    coder.encoder_bias.data.fill_(1.0)
    coder.decoder.data.fill_(1.0)
    assert int((coder.encode(torch.zeros(3, 2, 6)) > 0).sum()) == 15, "equal scores are no more than others"


@pytest.mark.holds("crosscoder", 4)
@pytest.mark.parametrize("cls", [CrossCoder, BatchTopKCrossCoder])
def test_factors_between_codes_and_decoders_change_nothing(cls):
    coder = coder_of(cls, 5, 12, **({"k": 3} if cls is BatchTopKCrossCoder else {"l1": 0.3}))
    h = normal(20, 2, 5, seed=9)
    moved = copy.deepcopy(coder)
    s = torch.linspace(0.2, 6, 12, dtype=torch.float64)
    with torch.no_grad():
        moved.encoder /= s
        moved.encoder_bias /= s
        moved.decoder *= s[:, None]
    torch.testing.assert_close(moved.encode(h), coder.encode(h) / s)
    torch.testing.assert_close(moved.scores(moved.encode(h)), coder.scores(coder.encode(h)))
    torch.testing.assert_close(moved.loss(h), coder.loss(h))
    for name, term in coder.terms.items():
        torch.testing.assert_close(moved.terms[name], term)


@pytest.mark.holds("crosscoder", 5)
@pytest.mark.parametrize("model", [0, 1])
@pytest.mark.parametrize("cls", [CrossCoder, BatchTopKCrossCoder])
def test_scaling_is_least_squares_on_the_error_without_the_latent(cls, model):
    coder = coder_of(cls, 4, 7, **({"k": 3} if cls is BatchTopKCrossCoder else {}))
    h = normal(30, 2, 4, seed=9)
    if cls is BatchTopKCrossCoder:
        coder.theta.fill_(1.0)
    coder.fit_scale(h * torch.tensor([1.0, 3.0]).double()[:, None])
    scale = coder.scale.numpy()
    coder.eval()
    f = coder.encode(h).detach().numpy()
    coder.train()
    _, _, decoder, offset = arrays(coder)
    latents = [5, 0, 2]
    got = latent_scaling(coder, DataLoader(TensorDataset(h), batch_size=8), latents, model=model)
    assert coder.training
    for place, j in enumerate(latents):
        direction = np.outer(f[:, j], decoder[model, j]).reshape(-1, 1)
        for m in range(2):
            rebuilt = f @ decoder[m] + offset[m]
            without = np.delete(f, j, 1) @ np.delete(decoder[m], j, 0) + offset[m]
            np.testing.assert_allclose(without + np.outer(f[:, j], decoder[m, j]), rebuilt, atol=1e-12)
            for target, y in enumerate((scale[m] * h[:, m].numpy() - without, rebuilt)):
                wanted = np.linalg.lstsq(direction, y.reshape(-1), rcond=None)[0][0]
                assert float(got["beta"][target, m, place]) == pytest.approx(wanted, rel=1e-9)
        assert int(got["active"][place]) == (f[:, j] > 0).sum()
    torch.testing.assert_close(got["nu_eps"], got["beta"][0, 1 - model] / got["beta"][0, model])
    torch.testing.assert_close(got["nu_r"], got["beta"][1, 1 - model] / got["beta"][1, model])
    every = latent_scaling(coder, h, model=model)
    assert every["beta"].shape == (2, 2, 7)
    torch.testing.assert_close(every["beta"][..., latents], got["beta"])


def test_latents_that_never_fire_have_no_scaling():
    coder = coder_of(CrossCoder, 4, 3).float()
    coder.encoder_bias.data[1] = -1e6
    scaling = latent_scaling(coder, [normal(5, 2, 4).float(), normal(9, 2, 4, seed=1).float()])
    assert scaling["beta"].dtype == torch.float32
    assert scaling["nu_eps"].isnan().tolist() == scaling["nu_r"].isnan().tolist() == [False, True, False]
    assert scaling["beta"].isnan().all((0, 1)).tolist() == [False, True, False]
    assert int(scaling["active"][1]) == 0


def test_the_loss_with_a_penalty_by_loops():
    coder = coder_of(CrossCoder, 4, 9, l1=0.37)
    h = normal(11, 2, 4, seed=9)
    coder.scale.copy_(torch.tensor([0.5, 2.0]))
    f, scores, error = reference(coder, h, (0.5, 2.0))
    np.testing.assert_allclose(coder.encode(h).detach(), f, rtol=1e-10)
    np.testing.assert_allclose(coder.scores(coder.encode(h)).detach(), scores, rtol=1e-10)
    squared = error(f)[1]
    assert float(coder.loss(h).detach()) == pytest.approx(squared + 0.37 * scores.sum(1).mean(), rel=1e-10)
    assert {name: float(term) for name, term in coder.terms.items()} == pytest.approx(
        {"squared_error": squared, "sparsity": scores.sum(1).mean()}, rel=1e-10
    )
    rebuilt = coder(h) * coder.scale[:, None]
    np.testing.assert_allclose((coder.normalize(h) - rebuilt).detach(), error(f)[0], rtol=1e-9)
    names = [name for name, _ in coder.named_parameters()]
    assert torch.autograd.gradcheck(
        lambda *weights: torch.func.functional_call(Loss(coder), dict(zip([f"coder.{n}" for n in names], weights)), h),
        tuple(p.detach().clone().requires_grad_() for p in coder.parameters()),
    )


class Loss(torch.nn.Module):
    """A crosscoder called by its loss."""

    def __init__(self, coder):
        super().__init__()
        self.coder = coder

    def forward(self, h):
        return self.coder.loss(h)


def test_the_loss_of_a_batch_and_its_auxiliary_by_loops():
    coder = coder_of(BatchTopKCrossCoder, 4, 12, k=1, auxiliary=0.5, dead_after=100)
    h = normal(10, 2, 4, seed=9)
    coder.idle.fill_(90)  # 100 with this batch, unless they fire in it
    f, scores, error = reference(coder, h)
    chosen = scores >= np.sort(scores.flatten())[-10]
    residual, squared = error(f * chosen)
    idle = np.where((f * chosen > 0).any(0), 0, coder.idle.numpy() + 10)
    dead = idle >= 100
    assert 4 < dead.sum() < 12
    codes = np.zeros_like(f)
    for i in range(10):
        for j in sorted(np.flatnonzero(dead), key=lambda j: -scores[i, j])[:2]:  # d / 2
            codes[i, j] = f[i, j]
    decoder = arrays(coder)[2]
    left = residual - np.stack([codes @ decoder[m] for m in range(2)], 1)
    auxiliary = (left**2).sum() / ((residual - residual.mean(0)) ** 2).sum()
    loss = coder.loss(h)
    assert float(loss.detach()) == pytest.approx(squared + 0.5 * auxiliary, rel=1e-10)
    assert float(coder.terms["auxiliary"]) == pytest.approx(auxiliary, rel=1e-10)
    assert coder.idle.tolist() == idle.tolist()
    assert float(coder.theta) == pytest.approx((scores * chosen)[scores * chosen > 0].min(), rel=1e-6)
    # the residual gives no gradient: offsets get that of the squared error alone
    loss.backward()
    np.testing.assert_allclose(coder.decoder_bias.grad, -2 * residual.mean(0), rtol=1e-9)
    assert bool(coder.encoder.grad[:, :, dead].any()), "dead latents learn"


def test_without_dead_latents_or_variance_the_auxiliary_is_0():
    coder = coder_of(BatchTopKCrossCoder, 4, 12, k=2, auxiliary=0.5, dead_after=100)
    coder.loss(normal(10, 2, 4, seed=9))
    assert float(coder.terms["auxiliary"]) == 0.0
    coder.idle.fill_(1000)
    coder.loss(normal(1, 2, 4, seed=9).expand(3, 2, 4)).backward()
    assert float(coder.terms["auxiliary"]) == 0.0
    assert all(bool(p.grad.isfinite().all()) for p in coder.parameters())
    few = coder_of(BatchTopKCrossCoder, 1, 2, k=1, dead_after=1)
    few.idle.fill_(5)
    assert bool(few.loss(normal(6, 2, 1)).isfinite())


def test_the_threshold_follows_and_serves_without_a_batch():
    coder = coder_of(BatchTopKCrossCoder, 4, 12, k=2, theta_decay=0.9, theta_start=1)
    theta = -1.0
    for step in range(4):
        h = normal(10, 2, 4, seed=20 + step)
        kept = coder.scores(coder.encode(h))
        smallest = float(kept[kept > 0].min())
        coder.loss(h)
        theta = theta if step < 1 else smallest if theta < 0 else 0.9 * theta + 0.1 * smallest
        assert float(coder.theta) == pytest.approx(theta, rel=1e-6)
    assert int(coder.steps) == 4
    silent = normal(10, 2, 4)
    coder.encoder_bias.data -= 100
    coder.loss(silent)
    assert float(coder.theta) == pytest.approx(theta, rel=1e-6), "no score, no move"
    coder.encoder_bias.data += 100

    before = {name: value.clone() for name, value in coder.state_dict().items()}
    coder.eval()
    h = normal(10, 2, 4, seed=9)
    f, scores, error = reference(coder, h)
    wanted = f * (scores > theta)
    np.testing.assert_allclose(coder.encode(h).detach(), wanted, rtol=1e-9)
    assert 0 < (wanted > 0).sum() < (f > 0).sum()
    torch.testing.assert_close(coder.encode(h[:1]), coder.encode(h)[:1])
    assert float(coder.loss(h).detach()) == pytest.approx(error(wanted)[1], rel=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in coder.state_dict().items())


def test_k_moves_to_its_target():
    for start, steps in ((10, 4), (1, 4), (None, 4), (10, 0)):
        coder = coder_of(BatchTopKCrossCoder, 6, 40, k=5, k_start=start, k_steps=steps)
        h = normal(16, 2, 6, seed=9)
        for step in range(6):
            first = 5 if start is None else start
            wanted = round(first + (5 - first) * min(step / 4, 1.0)) if steps else 5
            assert int(coder.current_k) == wanted
            chosen = coder.encode(h) > 0
            assert int(chosen.sum()) == 16 * wanted
            scores = coder.scores(CrossCoder.encode(coder, h))
            assert float(scores[chosen].min()) >= float(scores[~chosen].max())
            coder.loss(h)


@pytest.mark.parametrize("cls", [CrossCoder, BatchTopKCrossCoder])
def test_training_goes_on_from_a_saved_state(cls):
    def make(seed):
        return coder_of(cls, 4, 12, seed=seed, **({"k": 2, "k_start": 6, "k_steps": 9, "dead_after": 30}
                                                  if cls is BatchTopKCrossCoder else {}))  # fmt: skip

    def steps(coder, first, last):
        optimizer = torch.optim.SGD(coder.parameters(), lr=0.01)
        for step in range(first, last):
            optimizer.zero_grad()
            loss = coder.loss(normal(10, 2, 4, seed=step))
            loss.backward()
            optimizer.step()
        return loss

    whole, first, second = make(0), make(0), make(50)
    wanted = steps(whole, 0, 8)
    steps(first, 0, 4)
    second.load_state_dict(first.state_dict())
    assert torch.equal(steps(second, 4, 8), wanted)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    if cls is BatchTopKCrossCoder:
        assert {"theta", "idle", "steps", "scale"} <= set(whole.state_dict())


def test_first_weights_types_and_more_models():
    coder = CrossCoder(5, 8, models=3, init_norm=0.3, generator=seeded(4))
    assert torch.equal(coder.encoder, coder.decoder.mT)
    torch.testing.assert_close(coder.decoder.detach().norm(dim=2), torch.full((3, 8), 0.3))
    assert not bool(coder.encoder_bias.any() or coder.decoder_bias.any())
    assert torch.equal(coder.decoder, CrossCoder(5, 8, models=3, init_norm=0.3, generator=seeded(4)).decoder)
    assert not torch.equal(coder.decoder, CrossCoder(5, 8, models=3, init_norm=0.3, generator=seeded(5)).decoder)
    h = normal(7, 3, 5)
    assert coder(h).shape == (7, 3, 5)
    assert coder.loss(h.bfloat16()).dtype == coder.bfloat16().loss(h.bfloat16()).dtype == torch.float32
    topk = BatchTopKCrossCoder(5, 8, 2, 3)
    assert topk.decoder.shape == (3, 8, 5)
    torch.testing.assert_close(topk.decoder.detach().norm(dim=2), torch.ones(3, 8))
    plain = CrossCoder(5, 8)
    torch.testing.assert_close(plain.decoder.detach().norm(dim=2), torch.ones(2, 8))
    parts = plain.loss(h[:, :2]).detach(), plain.terms["squared_error"] + 0.1 * plain.terms["sparsity"]
    torch.testing.assert_close(*parts)
    assert (topk.auxiliary, topk.dead_after, topk.theta_decay, topk.theta_start) == (1 / 32, 10_000_000, 0.999, 0)
    assert repr(topk) == "BatchTopKCrossCoder(dim=5, dict_size=8, models=3)"


def test_models_are_brought_to_one_size():
    coder = CrossCoder(4, 6).double()
    h = normal(50, 2, 4) * torch.tensor([0.2, 30.0]).double()[:, None]
    for rms in (1.0, 2.5):
        coder.fit_scale(h, rms)
        lengths = coder.normalize(h).square().sum(2).mean(0).sqrt()
        torch.testing.assert_close(lengths, torch.full((2,), rms).double(), rtol=1e-6, atol=0.0)
    rebuilt = coder.decode(coder.encode(h))
    torch.testing.assert_close(coder(h) * coder.scale[:, None], rebuilt)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, h: CrossCoder(0, 4), "dim: expected an integer >= 1"),
        (lambda c, h: CrossCoder(4, 0), "dict_size: expected an integer >= 1"),
        (lambda c, h: CrossCoder(4, 4, 1), "models: expected an integer >= 2"),
        (lambda c, h: CrossCoder(4, 4, l1=-0.1), "l1: expected a number >= 0"),
        (lambda c, h: CrossCoder(4, 4, init_norm=0.0), "init_norm: expected a number > 0"),
        (lambda c, h: BatchTopKCrossCoder(4, 99), "k: expected an integer >= 1 and <= 99, got 100"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 0), "k: expected an integer >= 1 and <= 9"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, k_start=10), "k_start: expected an integer >= 1 and <= 9"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, k_start=0), "k_start: expected an integer >= 1 and <= 9"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, k_steps=-1), "k_steps: expected an integer >= 0"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, auxiliary=-1.0), "auxiliary: expected a number >= 0"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, dead_after=0), "dead_after: expected an integer >= 1"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, theta_decay=1.0), "theta_decay: expected a number >= 0 and < 1"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, theta_decay=-0.1), "theta_decay: expected a number >= 0 and < 1"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, theta_start=-1), "theta_start: expected an integer >= 0"),
        (lambda c, h: BatchTopKCrossCoder(4, 9, 3, 1), "models: expected an integer >= 2"),
        (lambda c, h: c.encode(h[:, 0]), r"h: expected shape \(\*, 2, 4\)"),
        (lambda c, h: c.encode(h.long()), "h: expected a floating tensor"),
        (lambda c, h: c.loss(h[:0]), "h: expected at least one row"),
        (lambda c, h: c.decode(h[:, 0]), r"f: expected shape \(\*, 6\)"),
        (lambda c, h: c.scores(h[:, 0]), r"f: expected shape \(\*, 6\)"),
        (lambda c, h: c.fit_scale(0 * h), "h: expected activations of every model"),
        (lambda c, h: c.fit_scale(h / 0), "h: expected activations of every model"),
        (lambda c, h: c.fit_scale(h, 0.0), "rms: expected a number > 0"),
        (lambda c, h: decoder_norm_difference(h), r"decoder: expected shape \(2, \*, \*\)"),
        (lambda c, h: latent_scaling(c.decoder, h), "cc: expected a CrossCoder"),
        (lambda c, h: latent_scaling(CrossCoder(4, 4, 3), h), "cc: expected a crosscoder of 2 models"),
        (lambda c, h: latent_scaling(c, []), "loader: expected one or more batches"),
        (lambda c, h: latent_scaling(c, [h[:, :1]]), r"h: expected shape \(\*, 2, 4\)"),
        (lambda c, h: latent_scaling(c, h, [6]), r"latents: expected values in 0..5"),
        (lambda c, h: latent_scaling(c, h, [[0]]), "latents: expected 1 dimensions"),
        (lambda c, h: latent_scaling(c, h, [0.5]), "latents: expected an integer tensor"),
        (lambda c, h: latent_scaling(c, h, model=2), "model: expected an integer >= 0 and <= 1"),
    ],
)
def test_what_is_refused(call, message):
    coder = CrossCoder(4, 6)
    with pytest.raises((ValueError, TypeError), match=message):
        call(coder, torch.ones(5, 2, 4))
    assert coder.training


def test_the_mode_comes_back_after_an_exception():
    coder = coder_of(BatchTopKCrossCoder, 4, 6, k=2)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="h: expected shape"):
        latent_scaling(coder, [normal(5, 2, 4), normal(5, 2, 3)])
    assert coder.training
    latent_scaling(coder.eval(), DataLoader(TensorDataset(normal(5, 2, 4)), batch_size=2, shuffle=True))
    assert not coder.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in coder.parameters())
