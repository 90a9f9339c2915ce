"""Edges, encodings and embeddings of numbers: by hand, and against the package rtdl-num-embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import rtdl_num_embeddings as rtdl
import torch

from steepest.nn.piecewise_linear import PiecewiseLinearEmbedding, PiecewiseLinearEncoding, quantile_edges

EDGES = [torch.tensor([0.0, 1.0, 3.0]), torch.tensor([-2.0, 5.0]), torch.tensor([0.0, 0.5, 1.0, 8.0])]


def test_shares_of_bins_by_hand():
    x = torch.tensor([[2.0, 1.5, 0.75], [5.0, -9.0, -1.0], [0.0, 12.0, 15.0]])
    encoding = PiecewiseLinearEncoding(EDGES)(x)
    assert encoding.shape == (3, 3, 3)
    wanted = [
        [[1.0, 0.5, 0.0], [0.5, 0.0, 0.0], [1.0, 0.5, 0.0]],
        [[1.0, 2.0, 0.0], [-1.0, 0.0, 0.0], [-2.0, 0.0, 0.0]],
        [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, 2.0]],
    ]
    torch.testing.assert_close(encoding, torch.tensor(wanted))


def test_the_encoding_is_linear_outside_and_continuous_at_the_edges():
    encoding = PiecewiseLinearEncoding([torch.tensor([0.0, 1.0, 3.0])])
    for edge in (0.0, 1.0, 3.0):
        below, above = (encoding(torch.tensor([[edge + shift]])) for shift in (-1e-4, 1e-4))
        torch.testing.assert_close(below, above, atol=3e-4, rtol=0.0)
    far = encoding(torch.tensor([[-1e4], [1e4]])).squeeze(1)
    torch.testing.assert_close(far, torch.tensor([[-1e4, 0.0], [1.0, (1e4 - 1) / 2]]))


def test_quantiles_are_those_of_numpy_where_they_lie_apart():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    for edges, column in zip(quantile_edges(x, 7), x.double().T):
        np.testing.assert_allclose(edges, np.quantile(column.numpy(), np.linspace(0, 1, 8)), rtol=1e-12)


def test_columns_of_few_values_have_few_bins_and_constant_ones_one_of_width_one():
    x = torch.tensor([[0.0, 7.0, 1e6], [0.0, 7.0, 1e6 + 0.0625], [1.0, 7.0, 1e6], [1.0, 7.0, 1e6]])
    two, constant, nearly = quantile_edges(x, 48)
    assert two[[0, -1]].tolist() == [0.0, 1.0]
    assert constant.tolist() == [6.5, 7.5]
    assert nearly.diff().tolist() == [1.0], "what float32 hardly tells apart"
    encoding = PiecewiseLinearEncoding([two, constant, nearly])
    assert encoding(x).abs().max() <= 1.5


def test_narrow_bins_are_joined_and_the_ends_stay():
    values = torch.cat([torch.zeros(40), 1e-9 * torch.arange(40), torch.ones(40), torch.tensor([2.0, 2.0 + 1e-9])])
    (edges,) = quantile_edges(values.double().unsqueeze(1), 20)
    assert edges.diff().min() > 1e-6
    assert edges[[0, -1]].tolist() == [float(values.min()), float(values.double().max())]


@pytest.mark.filterwarnings("ignore:The 4-th feature:UserWarning")
@pytest.mark.parametrize("rows", [3, 60])
def test_the_embedding_is_that_of_the_package(rows):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=g) * torch.tensor([1.0, 30.0, 1e-2])
    edges = [e.float() for e in quantile_edges(x, 8)] + [torch.tensor([-1.0, 0.0, 4.0]), torch.tensor([0.0, 2.0])]
    x = torch.cat([x, torch.randn(rows, 2, generator=g)], 1)
    ours = PiecewiseLinearEmbedding(edges, 6)
    theirs = rtdl.PiecewiseLinearEmbeddings(edges, 6, activation=False, version="B")
    with torch.no_grad():
        ours.bends.normal_(generator=g)
        theirs.linear0.weight.copy_(ours.weight)
        theirs.linear0.bias.copy_(ours.bias)
        for f, column in enumerate(edges):  # there a column's last bin stands at the end
            count = len(column) - 1
            theirs.linear.weight[f, : count - 1] = ours.bends[f, : count - 1]
            theirs.linear.weight[f, -1] = ours.bends[f, count - 1]
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_an_embedding_begins_linear_and_learns_its_bends():
    embedding = PiecewiseLinearEmbedding([torch.tensor([0.0, 1.0, 3.0])], 2)
    x = torch.tensor([[0.0], [1.0], [2.0]])
    out = embedding(x).squeeze(1)
    torch.testing.assert_close(out[2] - out[1], out[1] - out[0])
    embedding(x)[..., 0].sum().backward()
    assert embedding.bends.grad[0, :, 0].tolist() == [2.0, 0.5]
    assert embedding.weight.grad[0].tolist() == [3.0, 0.0]
    assert embedding.bias.grad[0].tolist() == [3.0, 0.0]


@pytest.mark.parametrize(
    ("edges", "says"),
    [
        ([], "at least one column"),
        ([torch.tensor([1.0])], "two edges or more"),
        ([torch.tensor([1.0, 1.0])], "edges that rise"),
        ([torch.tensor([0.0, torch.inf])], "finite edges"),
    ],
)
def test_edges_that_are_refused(edges, says):
    with pytest.raises(ValueError, match=says):
        PiecewiseLinearEncoding(edges)


def test_inputs_that_are_refused():
    with pytest.raises(ValueError, match="bins: expected"):
        quantile_edges(torch.zeros(3, 1), 0)
    with pytest.raises(ValueError, match="x: expected at least one row"):
        quantile_edges(torch.zeros(0, 1))
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        quantile_edges(torch.tensor([[torch.nan]]))
    with pytest.raises(ValueError, match="width: expected"):
        PiecewiseLinearEmbedding(EDGES, 0)
