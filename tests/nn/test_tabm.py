"""TabM-mini: member by member, and against the package tabm with the same weights."""

from __future__ import annotations

import pytest
import rtdl_num_embeddings as rtdl
import tabm
import torch

from steepest.nn.piecewise_linear import quantile_edges
from steepest.nn.tabm import TabM

ROWS, COLUMNS, NUMERIC = 20, 5, [0, 3]


def rows():
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def model(**changed):
    torch.manual_seed(0)
    x = rows()
    options = {"numeric": NUMERIC, "edges": quantile_edges(x[:, NUMERIC], 4), "members": 3, "width": 8, "embedding": 2}
    network = TabM(COLUMNS, **options | changed).eval()
    if network.embed is not None:
        torch.nn.init.normal_(network.embed.bends)
    return network


def test_each_member_is_a_network_on_inputs_of_its_own_scale():
    network, x = model(), rows()
    out = network(x)
    embedded = torch.cat([network.embed(x[:, NUMERIC]).flatten(1), x[:, [1, 2, 4]]], 1)
    for m in range(3):
        h = embedded * network.scale[m]
        for layer in network.layers:
            h = (h @ layer[0].weight.T + layer[0].bias).relu()
        torch.testing.assert_close(out[:, m], h)
    assert (out[:, 0] - out[:, 1]).abs().max() > 0.1


def test_scales_begin_equal_within_a_column_and_as_signs_without_embeddings():
    scale = model().scale
    assert torch.equal(scale[:, 0], scale[:, 1]), "two numbers of one column"
    assert len(set(scale[0].tolist())) == COLUMNS
    signs = model(numeric=(), edges=()).scale
    assert signs.shape == (3, COLUMNS)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}


def test_dropout_is_each_member_s_own_and_off_in_evaluation():
    network, x = model(dropout=0.5), rows()
    assert torch.equal(network(x), network(x))
    network.train()
    dropped = network(x) == 0
    assert float((network(x) == 0).float().mean()) > 0.3
    assert not torch.equal(dropped[:, 0], dropped[:, 1])
    still = model(dropout=0.0).train()
    assert torch.equal(still(x), still(x))


def test_depth_and_width():
    network = model(depth=3, width=6)
    assert network(rows()).shape == (ROWS, 3, 6)
    assert [layer[0].in_features for layer in network.layers] == [2 * 2 + 3, 6, 6]
    assert network.members == 3


def test_the_features_are_those_of_the_package():
    x = rows()
    edges = [e.float() for e in quantile_edges(x[:, NUMERIC], 4)]
    ours = model(edges=edges)
    theirs = tabm.TabM(
        n_num_features=2,
        cat_cardinalities=None,
        d_out=1,
        num_embeddings=rtdl.PiecewiseLinearEmbeddings(edges, 2, activation=False, version="B"),
        n_blocks=2,
        d_block=8,
        dropout=0.1,
        activation="ReLU",
        k=3,
        arch_type="tabm-mini",
        start_scaling_init="normal",
    ).eval()
    plain = tabm.MLPBackboneMiniEnsemble(
        d_in=ours.scale.shape[1],
        n_blocks=2,
        d_block=8,
        dropout=0.1,
        k=3,
        affine_bias=False,
        affine_scaling_init="normal",
    ).eval()
    assert theirs.backbone.affine.weight.shape == (3, 4)
    assert torch.equal(theirs.backbone.affine.weight[:, 0], theirs.backbone.affine.weight[:, 1])
    with torch.no_grad():
        plain.affine.weight.copy_(ours.scale)
        for block, layer in zip(plain.blocks, ours.layers):
            block[0].weight.copy_(layer[0].weight)
            block[0].bias.copy_(layer[0].bias)
        wanted = plain(ours.embedded(x)[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(ours(x), wanted, rtol=1e-5, atol=1e-5)


def test_refusals():
    for changed, says in (
        ({"numeric": [0, 0]}, "numeric: expected distinct columns"),
        ({"numeric": [0, 9]}, "numeric: expected distinct columns in 0..4"),
        ({"numeric": [0]}, "edges: expected those of 1 columns"),
        ({"members": 0}, "members: expected"),
        ({"dropout": 1.0}, "dropout: expected"),
    ):
        with pytest.raises(ValueError, match=says):
            model(**changed)
