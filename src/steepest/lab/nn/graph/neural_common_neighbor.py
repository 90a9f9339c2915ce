"""Common neighbours by their vectors, seen and probable, against their number and against message passing alone.

Set-up of the claim: a graph of 500 nodes whose edges come from nearness in a square that no feature tells (three
neighbours on average), from five groups (two) and from chance (one); features are the groups with normal noise of
standard deviation 1, in ten numbers. 20% or 40% of the edges are hidden for the test and met with as many pairs
without an edge; the measure is the area under the curve, AUC. Every arm has the same encoder, a graph convolution of
two layers of width 32, and is trained with Adam for 40 epochs
in batches of 256 positives, which are deleted from the
graph before messages pass, and as many negatives, drawn without knowledge of hidden edges. Arms: the number of common
neighbours, which trains nothing; the product of two node vectors (the graph autoencoder); a perceptron on their
elementwise product, which is NCN without its neighbours; NCN; NCN with completion, at the published scale 5, offset 3.

The publication's claim is the order: NCN above message passing alone and above the number of common neighbours,
completion above NCN where edges are missing. Sizes are differences of AUC in an earlier small trial on a graph of this
kind: .014 (.690, .676), .113 (.690, .577), and .033 (.723, .690) for completion with 20% hidden. With 40% hidden that
trial had .004, which no number of seeds here would find: .02 is taken. Two claims of ours: the perceptron as the
arm of messages alone, and a graph of real data, 500 digits and
their four nearest neighbours, whose features are the upper halves of the images alone.

Each arm has on each graph the best of three rates by AUC with 20% hidden on two seeds that are not reported
(:func:`choose_rates`). The autoencoder, the baseline, must reach an AUC of
.55 for every seed (a first run asked for .6 and stopped at a seed that had .592).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....core.graphs import without_edges
from ....core.links import LinkSplit, link_batches, split_links
from ....nn.graph.neural_common_neighbor import (
    NeuralCommonNeighbor,
    NeuralCommonNeighborCompletion,
    common_neighbors,
)
from ...data import digits
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...graphs import GraphEncoder, neighbor_graph, place_graph
from ...settings import UNREPORTED, best_setting, check_sane

SEEDS = 8
NUMBER, PRODUCT, PERCEPTRON, NCN, NCNC = (
    "number of common neighbours", "autoencoder", "perceptron", "NCN", "NCN with completion",
)  # fmt: skip
ARMS = (NUMBER, PRODUCT, PERCEPTRON, NCN, NCNC)
GRID = (1e-3, 3e-3, 1e-2)
RATES = {
    "places": {PRODUCT: 3e-3, PERCEPTRON: 1e-3, NCN: 1e-3, NCNC: 1e-3},
    "digits": {PRODUCT: 3e-3, PERCEPTRON: 3e-3, NCN: 3e-3, NCNC: 3e-3},
}
"""The rate of each arm on each graph: what :func:`choose_rates` gives."""
SANITY = 0.55
"""AUC that the autoencoder must reach."""
CLAIMS = (
    Claim("messages", "AUC of NCN is above that of the autoencoder, 20% hidden (.014)", size=0.014),
    Claim("number", "AUC of NCN is above that of the number of common neighbours, 20% hidden (.113)", size=0.113),
    Claim("completion", "completion raises the AUC of NCN, 20% hidden (.033)", size=0.033),
    Claim("sparser", "completion raises the AUC of NCN, 40% hidden (.02)", size=0.02),
    Claim("perceptron", "AUC of NCN is above that of the perceptron, 20% hidden (.014)", size=0.014, ours=True),
    Claim("digits", "AUC of NCN is above that of the autoencoder, digits (.014)", size=0.014, ours=True),
)


class _Model(nn.Module):
    """An encoder and what scores a pair of its vectors."""

    def __init__(self, arm: str, features: int, width: int) -> None:
        super().__init__()
        self.arm = arm
        self.encoder = GraphEncoder(features, width, width)
        if arm == PERCEPTRON:
            self.scorer: nn.Module = nn.Sequential(
                nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width),
                nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 1),
            )  # fmt: skip
        elif arm in (NCN, NCNC):
            self.scorer = (NeuralCommonNeighbor if arm == NCN else NeuralCommonNeighborCompletion)(width, width)

    def forward(self, x: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        """Logits of pairs ``[E]``."""
        h = self.encoder(x, self.encoder.adjacency(edges, x))
        if self.arm in (NCN, NCNC):
            scores: Tensor = self.scorer(h, edges, pairs)
            return scores.squeeze(1)
        ends = h[pairs[0]] * h[pairs[1]]
        return self.scorer(ends).squeeze(1) if self.arm == PERCEPTRON else ends.sum(1)


def auc(positive: Tensor, negative: Tensor) -> float:
    """The share of pairs of a positive and a negative in the right order; ties count half.

    >>> auc(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]))
    0.875
    """
    difference = positive.unsqueeze(1) - negative
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def data(name: str, hidden: float, scale: str, seed: int) -> tuple[Tensor, LinkSplit]:
    """Features and split of a graph."""
    generator = torch.Generator().manual_seed(seed)
    nodes = 500 if scale == "full" else 60
    if name == "digits":
        images, _, _, _ = digits(seed, train=nodes)
        edges, x = neighbor_graph(images, 4), torch.from_numpy(images[:, :32]).float()
    else:
        edges, groups = place_graph(nodes, 5, (3.0, 2.0, 1.0), generator)
        x = torch.randn(nodes, 10, generator=generator, dtype=torch.float64).float()
        x[torch.arange(nodes), groups] += 1.0
    split = split_links(edges, nodes, validation=0.0, test=hidden, generator=generator)
    return (x if scale == "full" else x.double()), split


def measure(arm: str, rate: float | None, name: str, hidden: float, scale: str, seed: int) -> float:
    """AUC of an arm on hidden edges."""
    x, split = data(name, hidden, scale, seed)
    pairs = torch.cat([split.test, split.test_negatives], 1)
    count = split.test.shape[1]
    if rate is None:
        numbers = torch.sparse.sum(common_neighbors(split.edges, pairs, split.nodes).common, 1).to_dense()
        return auc(numbers[:count], numbers[count:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Model(arm, x.shape[1], 32).to(x.dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(40 if scale == "full" else 1):
            for batch in link_batches(split.train, 256, generator):
                edges = without_edges(split.edges, batch, split.nodes)
                negatives = split.training_negatives(batch.shape[1], generator)
                scores = model(x, edges, torch.cat([batch, negatives], 1))
                positive, negative = scores.chunk(2)
                optimizer.zero_grad()
                (nnf.softplus(-positive).mean() + nnf.softplus(negative).mean()).backward()
                optimizer.step()
    with torch.no_grad():
        scores = model.eval()(x, split.edges, pairs)
    return auc(scores[:count], scores[count:])


def run(scale: str, seed: int) -> Evidence:
    """AUC of each arm on the drawn graph with 20% and 40% hidden, and on the real one."""
    rows: list[dict[str, Any]] = []
    by_arm: dict[tuple[str, str], float] = {}
    for graph, name, hidden in (
        ("20% hidden", "places", 0.2),
        ("40% hidden", "places", 0.4),
        ("digits", "digits", 0.2),
    ):
        for arm in ARMS:
            by_arm[graph, arm] = measure(arm, RATES[name].get(arm), name, hidden, scale, seed)
            rows.append({"graph": graph, "arm": arm, "AUC": by_arm[graph, arm]})
    if scale == "full":
        check_sane("AUC of the autoencoder", by_arm["20% hidden", PRODUCT], SANITY)
    drawn = {arm: by_arm["20% hidden", arm] for arm in ARMS}
    return Evidence(
        rows,
        {
            "messages": drawn[NCN] - drawn[PRODUCT],
            "number": drawn[NCN] - drawn[NUMBER],
            "completion": drawn[NCNC] - drawn[NCN],
            "sparser": by_arm["40% hidden", NCNC] - by_arm["40% hidden", NCN],
            "perceptron": drawn[NCN] - drawn[PERCEPTRON],
            "digits": by_arm["digits", NCN] - by_arm["digits", PRODUCT],
        },
    )


def choose_rates() -> dict[str, dict[str, float]]:
    """The rate of each arm with the best mean AUC over two pilot seeds, 20% hidden."""
    pilots = (UNREPORTED, UNREPORTED + 1)

    def best(name: str, arm: str) -> float:
        return best_setting(GRID, lambda rate, seed: measure(arm, rate, name, 0.2, "full", seed), pilots)

    return {name: {arm: best(name, arm) for arm in ARMS[1:]} for name in RATES}


def figure(evidence: Sequence[Evidence]) -> Figure:
    """AUC by arm, 20% hidden."""
    return bars_figure(
        [Evidence([row for row in e.rows if row["graph"] == "20% hidden"], e.effects) for e in evidence], y="AUC"
    )
