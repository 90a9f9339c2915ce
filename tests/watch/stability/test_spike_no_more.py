"""Small initial weights and large shortcuts: the card's numbers, moments of draws, gradients by a Jacobian."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.watch.stability import EmbedLayerNorm, ScaledEmbedding, shortcut_ratio, small_init_
from steepest.watch.stability.spike_no_more import feed_forward_bound, feed_forward_constant, small_init_sd


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Block(nn.Module):
    def __init__(self, d, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, width), nn.Linear(width, d)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


def network(d=8, depth=3):
    torch.manual_seed(0)
    return nn.Sequential(ScaledEmbedding(20, d), *(Block(d, 4 * d) for _ in range(depth)), nn.Linear(d, 20))


@pytest.mark.holds("spike-no-more", 1)
def test_standard_deviations_of_draws():
    assert small_init_sd(512) == pytest.approx(0.0279508, abs=5e-8)
    assert small_init_sd(512) / math.sqrt(24) == pytest.approx(0.00570544, abs=5e-9)
    model = nn.ModuleDict({"up": nn.Linear(512, 600), "down": nn.Linear(600, 512), "head": nn.Linear(512, 300)})
    assert small_init_(model, 512, 12, generator=seeded()) is model
    # of 150,000 draws and more: a relative error of at most 4 / sqrt(2 * 150,000) = .0073
    assert float(model["up"].weight.detach().std()) == pytest.approx(0.0279508, rel=0.0073)
    assert float(model["head"].weight.detach().std()) == pytest.approx(0.0279508, rel=0.0073)
    assert float(model["down"].weight.detach().std()) == pytest.approx(0.00570544, rel=0.0073)
    assert not any(bool(layer.bias.any()) for layer in model.values())
    for d in (4, 100, 1024):
        layer = ScaledEmbedding(200_000 // d, d)
        with torch.no_grad():
            layer.weight.normal_(0.0, small_init_sd(d), generator=seeded(d))
        assert float(layer(torch.arange(200_000 // d)).detach().std()) == pytest.approx(0.632456, rel=0.0073)
        assert small_init_sd(d) * math.sqrt(d) == pytest.approx(0.632456, abs=5e-7)


@pytest.mark.holds("spike-no-more", 2)
def test_the_bound_of_the_perceptron():
    s = small_init_sd(512)
    assert feed_forward_constant(512, 2048) == pytest.approx(4608.0)
    assert feed_forward_bound(s, s, s, 512, 2048) == pytest.approx(129.80, abs=5e-3)
    assert feed_forward_bound(s, s, math.sqrt(0.4), 512, 2048) == pytest.approx(6.692, abs=5e-4)


@pytest.mark.holds("spike-no-more", 3)
def test_a_tied_head_uses_the_matrix_that_is_not_scaled():
    embedding, head = ScaledEmbedding(30, 16), nn.Linear(16, 30, bias=False)
    head.weight = embedding.weight
    tokens = torch.tensor([[1, 2], [3, 4]])
    vectors = embedding(tokens)
    torch.testing.assert_close(vectors, 4 * embedding.weight[tokens])
    torch.testing.assert_close(head(vectors), 4 * embedding.weight[tokens] @ embedding.weight.T)
    model = nn.ModuleDict({"embedding": embedding, "head": head, "out": nn.Linear(16, 16)})
    before = torch.empty(30, 16).normal_(0.0, small_init_sd(16), generator=seeded(3))
    small_init_(model, 16, 2, generator=seeded(3))
    torch.testing.assert_close(embedding.weight.detach(), before, msg="the shared matrix is drawn once")
    assert head.weight is embedding.weight


@pytest.mark.holds("spike-no-more", 4)
@pytest.mark.parametrize("positions", [0, 50])
def test_normalised_embeddings(positions):
    layer = EmbedLayerNorm(50, 64, positions=positions)
    out = layer(torch.arange(50)[None]).double()
    # eps is 1e-8 beside a variance of about .006 (.012 with positions)
    torch.testing.assert_close(out.mean(-1), torch.zeros(1, 50).double(), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(out.std(-1, correction=0), torch.ones(1, 50).double(), rtol=0.0, atol=1e-5)
    if positions:
        assert not torch.allclose(layer(torch.tensor([3, 3]))[0], layer(torch.tensor([3, 3]))[1])
        vectors = layer.tokens.weight[:5] + layer.places.weight[:5]
        torch.testing.assert_close(layer(torch.arange(5)), nn.functional.layer_norm(vectors, (64,), eps=1e-8))
        with pytest.raises(ValueError, match="tokens: expected at most 50 positions"):
            layer(torch.zeros(51, dtype=torch.long))


@pytest.mark.holds("spike-no-more", 5)
def test_sublayers_of_zeros_pass_gradients_on():
    model = network()
    for block in model[1:4]:
        nn.init.zeros_(block.down.weight)
        nn.init.zeros_(block.down.bias)
    got = shortcut_ratio(model, torch.arange(20)[None], ["1", "2", "3"], lambda out: out.square().sum())
    for row in got.values():
        assert row["jacobian_ratio"] == pytest.approx(1.0, rel=1e-6)
        assert row["bound"] == 1.0


def test_gradients_by_a_jacobian_and_norms_in_numpy():
    model = network().double()
    tokens = torch.arange(6)
    got = shortcut_ratio(model, tokens, ["1", "2", "3"], lambda out: out.square().sum())
    x = model[0](tokens).detach()
    for place, name in enumerate(("1", "2", "3")):
        after = model[place + 1 : 4]
        end = after(x)
        slope = torch.autograd.functional.jacobian(lambda y: model[4](y).square().sum(), end.detach())
        through = torch.autograd.functional.jacobian(after, x)
        wanted = torch.einsum("ij,ijkl->kl", slope, through).norm() / slope.norm()
        assert got[name]["jacobian_ratio"] == pytest.approx(float(wanted), rel=1e-9)
        assert got[name]["shortcut_sd"] == pytest.approx(x.numpy().std(1).mean(), rel=1e-9)
        norms = [
            np.linalg.norm(layer.weight.detach().numpy(), 2) for layer in (model[place + 1].up, model[place + 1].down)
        ]
        # of 8 singular values Lanczos's method finds all
        assert got[name]["sublayer_norm"] == pytest.approx(norms[0] * norms[1], rel=1e-6)
        assert got[name]["bound"] == pytest.approx(1 + norms[0] * norms[1] / got[name]["shortcut_sd"], rel=1e-6)
        x = model[place + 1](x).detach()


def test_the_bound_holds_for_a_perceptron_of_normal_weights():
    d, width = 64, 256
    s = small_init_sd(d)
    block = Block(d, width).double()
    for layer in (block.up, block.down):
        nn.init.normal_(layer.weight, std=s, generator=seeded(1))
        nn.init.zeros_(layer.bias)
    for sd in (s, 0.632, 1.0):
        x = sd * torch.randn(d, generator=seeded(2), dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(block, x)
        assert float(torch.linalg.matrix_norm(jacobian, 2)) < feed_forward_bound(s, s, sd, d, width)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(network(), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for loss in (lambda out: out.sum(), lambda out: 1 / 0):
        with contextlib.suppress(ZeroDivisionError):
            shortcut_ratio(model, torch.arange(5), ["0.1", "0.2"], loss)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_attention_of_torch_padding_and_what_is_refused():
    layer = nn.TransformerEncoderLayer(512, 4, 300, batch_first=True)
    small_init_(layer, 512, 3, generator=seeded())
    assert float(layer.self_attn.in_proj_weight.detach().std()) == pytest.approx(0.0279508, rel=0.01)
    assert float(layer.self_attn.out_proj.weight.detach().std()) == pytest.approx(0.0279508 / 6**0.5, rel=0.01)
    assert float(layer.linear2.weight.detach().std()) == pytest.approx(0.0279508 / 6**0.5, rel=0.01)
    assert not bool(ScaledEmbedding(5, 3, padding_idx=2).weight[2].any())
    assert not bool(EmbedLayerNorm(5, 3, padding_idx=2).weight[2].any())
    by_name = small_init_(network(), 8, 1, outputs=lambda name: name.endswith("up"), generator=seeded())
    assert float(by_name[1].up.weight.detach().std()) < float(by_name[1].down.weight.detach().std())
    with pytest.raises(ValueError, match="outputs: expected the last words"):
        small_init_(nn.Linear(3, 3), 3, 1)
    with pytest.raises(TypeError, match="model: expected a module"):
        small_init_(None, 3, 1)
    with pytest.raises(ValueError, match="n_layers: expected an integer >= 1"):
        small_init_(network(), 8, 0)
    with pytest.raises(ValueError, match="num_embeddings: expected an integer >= 1"):
        ScaledEmbedding(0, 3)
    with pytest.raises(ValueError, match="embedding_dim: expected an integer >= 2"):
        EmbedLayerNorm(3, 1)
    with pytest.raises(ValueError, match="shortcut_sd: expected a number > 0"):
        feed_forward_bound(1.0, 1.0, 0.0, 4, 4)
    with pytest.raises(ValueError, match="blocks: expected names of modules"):
        shortcut_ratio(network(), torch.arange(3), ["9"], torch.sum)


def test_biases_of_attention_and_rows_of_padding_are_zero():
    model = nn.ModuleDict(
        {"words": nn.Embedding(5, 8, padding_idx=2), "attention": nn.MultiheadAttention(8, 2), "down": nn.Linear(16, 8)}
    )
    with torch.no_grad():
        model["attention"].in_proj_bias.fill_(1.0)
        model["words"].weight.fill_(1.0)
    small_init_(model, 8, n_layers=2)
    assert not bool(model["attention"].in_proj_bias.any())
    assert not bool(model["words"].weight[2].any())
    assert bool(model["words"].weight[1].any())
