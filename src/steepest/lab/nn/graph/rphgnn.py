"""Messages of a graph of several types, collected once, against a relational network that passes them in every step.

Set-up of the claim: 2,000 papers of four classes, 1,000 authors and 40 venues, each of a class; a paper has one to
three authors and a venue, each of its own class with probability .6, else of any. Features: papers have the sign
pattern of their class in 32 numbers under normal noise of standard deviation 2.5; authors and venues have none. 400
papers are for training, 400 choose the epoch (every fifth of 60 is looked at), 1,200 are for the test. Arms: RpHGNN
with two rounds; the same with the labels of training papers passed on too, as published; a relational graph
convolution of two layers, trained in whole, with a matrix for each relation (R-GCN); and mean messages without a split
by relation and parity, one vector a round. Width 64, Adam, dropout .3. The arms without end-to-end messages see
mini-batches of 400, one an epoch.

The publication claims an accuracy above end-to-end and pre-computed models and training that is 230% faster. On a small
graph the first is taken as: not below either by a point or more (threshold -.01). Speed is how many times the seconds
per epoch of R-GCN are those of RpHGNN, claimed to be above 1, with 3.3 expected, thus a size of 2.3; the time of
collecting is in the rows. Two claims of ours: labels that are passed on raise the accuracy by a point; and on a graph
of 20,000 papers with 400 for training the ratio of seconds is above 1 too, because an epoch of RpHGNN sees rows and one
of R-GCN the graph (3.3 times, ten epochs of each).

Each arm has the best of three rates by accuracy on the 400 papers that choose the epoch, over two seeds that are not
reported (:func:`choose_rates`). R-GCN, the baseline, must reach an accuracy of .6.

What was checked, because R-GCN is two points above RpHGNN here and an epoch of it no slower: on five seeds that are not
reported the accuracy of RpHGNN is .877 with 60 epochs and .880 with 150 at the best of the rates, .876 with vectors of
256 numbers for types without features, and about the same with one, three and five rounds; R-GCN is at .895, and
at .900 with random vectors that are not learned. The messages are those of loops in the tests. On 2,000 papers an epoch
of R-GCN costs 7 ms, no more than that of four small perceptrons with dropout.
A first record of ten seeds could not have found a point between the two.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from matplotlib.figure import Figure
from torch import Tensor, nn

from ....core.graphs import sparse_matrix
from ....nn.graph.rphgnn import (
    RandomProjectionPropagator,
    Relation,
    RpHGNNEncoder,
    reverse_relation,
    sparse_random_projection,
)
from ...experiment import Claim, Evidence
from ...figures import bars_figure
from ...settings import UNREPORTED, best_setting, check_sane

SEEDS = 28
SPLIT, LABELS, WHOLE, MEAN = "RpHGNN", "RpHGNN with labels", "R-GCN", "mean messages"
ARMS = (SPLIT, LABELS, WHOLE, MEAN)
GRID = (1e-3, 3e-3, 1e-2)
RATES = {SPLIT: 1e-2, LABELS: 1e-3, WHOLE: 3e-3, MEAN: 3e-3}
"""The rate of each arm: what :func:`choose_rates` gives; the published one is 3e-3."""
CLASSES, NOISE, ALIKE, EPOCHS, WIDTH = 4, 2.5, 0.6, 60, 64
SANITY = 0.6
"""Accuracy that R-GCN must reach."""
CLAIMS = (
    Claim("whole", "accuracy of RpHGNN is less than a point below that of R-GCN", size=0.01, threshold=-0.01),
    Claim("mean", "accuracy of RpHGNN is less than a point below that of mean messages", size=0.01, threshold=-0.01),
    Claim("faster", "an epoch of R-GCN takes longer than one of RpHGNN (3.3 times as long)", size=2.3, threshold=1.0),
    Claim("faster at ten times", "the same with ten times the papers (3.3 times)", size=2.3, threshold=1.0, ours=True),
    Claim("labels", "labels that are passed on raise the accuracy (a point)", size=0.01, ours=True),
)


@dataclass(frozen=True)
class _Graph:
    """Features (numbers of nodes where there are none), edges, classes of papers and their three parts."""

    features: dict[str, Tensor | int]
    edges: dict[Relation, Tensor]
    y: Tensor
    parts: tuple[Tensor, ...]

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(x) if isinstance(x, Tensor) else x for name, x in self.features.items()}


def academic(papers: int, seed: int, dtype: torch.dtype) -> _Graph:
    """Papers, their authors and venues."""
    generator = torch.Generator().manual_seed(seed)
    authors, venues = papers // 2, papers // 50
    y = torch.randint(CLASSES, (papers,), generator=generator)
    kinds = {name: torch.arange(count) % CLASSES for name, count in (("author", authors), ("venue", venues))}

    def linked(rows: Tensor, name: str) -> Tensor:
        count = len(kinds[name])
        own = CLASSES * torch.randint(count // CLASSES, rows.shape, generator=generator) + y[rows]
        of_any = torch.randint(count, rows.shape, generator=generator)
        return torch.where(torch.rand(rows.shape, generator=generator) < ALIKE, own, of_any)

    number = torch.randint(1, 4, (papers,), generator=generator)
    written = torch.repeat_interleave(torch.arange(papers), number)
    every = torch.arange(papers)
    signs = torch.randn(CLASSES, 32, generator=generator, dtype=torch.float64).sign()
    x = signs[y] + NOISE * torch.randn(papers, 32, generator=generator, dtype=torch.float64)
    return _Graph(
        {"paper": x.to(dtype), "author": authors, "venue": venues},
        {
            ("author", "writes", "paper"): torch.stack([linked(written, "author"), written]),
            ("paper", "in", "venue"): torch.stack([every, linked(every, "venue")]),
        },
        y,
        torch.randperm(papers, generator=generator).split([papers // 5, papers // 5, papers - 2 * (papers // 5)]),
    )


class _RelationalConvolution(nn.Module):
    """Two layers, each with a matrix for every relation and one for a node's own vector; types without features have a
    vector of their own."""

    def __init__(self, graph: _Graph, dtype: torch.dtype) -> None:
        super().__init__()
        both = {
            r: e
            for relation, ends in graph.edges.items()
            for r, e in ((relation, ends), (reverse_relation(relation), ends.flip(0)))
        }
        sizes, self.graph, self.means = graph.sizes, graph, {}
        for (source, name, destination), (start, end) in both.items():
            counts = torch.bincount(end, minlength=sizes[destination]).to(dtype)
            self.means[source, name, destination] = sparse_matrix(
                torch.stack([end, start]), 1 / counts[end], (sizes[destination], sizes[source])
            )
        self.given = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(x, 32) / 32**0.5)
                for name, x in graph.features.items()
                if isinstance(x, int)
            }
        )
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                **{name: nn.Linear(inputs, outputs) for name in sizes},
                **{name: nn.Linear(inputs, outputs, bias=False) for _, name, _ in both},
            })
            for inputs, outputs in ((32, WIDTH), (WIDTH, CLASSES))
        )  # fmt: skip

    def forward(self) -> Tensor:
        """Logits of all papers."""
        h = {name: self.given[name] if isinstance(x, int) else x for name, x in self.graph.features.items()}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.ModuleDict)
            if number:
                h = {name: nnf.dropout(rows.relu(), 0.3, self.training) for name, rows in h.items()}
            new = {name: layer[name](rows) for name, rows in h.items()}
            for (source, name, destination), mean in self.means.items():
                new[destination] = new[destination] + layer[name](mean @ h[source])
            h = new
        return h["paper"]


def collected(arm: str, graph: _Graph, seed: int) -> list[Tensor]:
    """The groups of an arm that passes messages once."""
    propagator = RandomProjectionPropagator(2, seed, width=32)
    groups = propagator.collect(graph.features, graph.edges, "paper")
    if arm == LABELS:
        known = torch.zeros(len(graph.y), dtype=torch.bool)
        known[graph.parts[0]] = True
        labels = propagator.collect_labels(graph.y, known, CLASSES, graph.sizes, graph.edges, "paper")
        groups = groups + [group.to(groups[0].dtype) for group in labels]
    if arm == MEAN:
        generator = torch.Generator().manual_seed(seed + 1)
        width, dtype = groups[-1].shape[2], groups[0].dtype
        names = propagator.group_names(graph.edges, "paper")
        rounds = [
            group[:, -2:] if parity == "even"
            else group @ sparse_random_projection(group.shape[2], width, generator=generator, dtype=dtype) / width**0.5
            for group, (_, parity) in zip(groups, names)
        ]  # fmt: skip
        groups = [torch.cat([groups[-1][:, :1], torch.stack(rounds).mean(0)], 1)]
    return groups


class _Trainee:
    """The model of an arm, its logits of rows, and the seconds before training."""

    def __init__(self, arm: str, graph: _Graph, dtype: torch.dtype, seed: int) -> None:
        start = time.process_time()
        torch.manual_seed(seed)
        self.model: nn.Module
        self.groups: list[Tensor] = []
        if arm == WHOLE:
            self.model = _RelationalConvolution(graph, dtype).to(dtype)
        else:
            self.groups = collected(arm, graph, seed)
            self.model = RpHGNNEncoder([group.shape for group in self.groups], WIDTH, CLASSES, dropout=0.3).to(dtype)
        self.before = time.process_time() - start

    def __call__(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.model([group[rows] for group in self.groups]) if self.groups else self.model()[rows]
        return logits

    def epoch(self, optimizer: torch.optim.Optimizer, rows: Tensor, y: Tensor) -> float:
        """One step, and its seconds."""
        start = time.process_time()
        optimizer.zero_grad()
        nnf.cross_entropy(self(rows), y[rows]).backward()
        optimizer.step()
        return time.process_time() - start

    @torch.no_grad()
    def right(self, rows: Tensor, y: Tensor) -> float:
        """Accuracy on rows."""
        self.model.eval()
        share = float((self(rows).argmax(1) == y[rows]).double().mean())
        self.model.train()
        return share


def measure(arm: str, rate: float, scale: str, seed: int) -> dict[str, float]:
    """Accuracy on the test at the epoch that is best on the choosing papers, that one's, and seconds."""
    full = scale == "full"
    dtype = torch.float32 if full else torch.float64
    graph = academic(2000 if full else 200, seed, dtype)
    train, choosing, test = graph.parts
    with torch.random.fork_rng(devices=[]):
        trainee = _Trainee(arm, graph, dtype, seed)
        optimizer = torch.optim.Adam(trainee.model.parameters(), lr=rate)
        best, at_best, seconds = -1.0, 0.0, 0.0
        for epoch in range(1, (EPOCHS if full else 5) + 1):
            seconds += trainee.epoch(optimizer, train, graph.y)
            if not epoch % 5 and (chosen := trainee.right(choosing, graph.y)) > best:
                best, at_best = chosen, trainee.right(test, graph.y)
    return {
        "accuracy": at_best,
        "choosing": best,
        "seconds": seconds if full else 1.0,
        "before": trainee.before if full else 1.0,
    }


def seconds_at_ten_times(arm: str, seed: int) -> float:
    """Seconds of ten epochs with 400 of 20,000 papers for training."""
    graph = academic(20_000, seed, torch.float32)
    with torch.random.fork_rng(devices=[]):
        trainee = _Trainee(arm, graph, torch.float32, seed)
        optimizer = torch.optim.Adam(trainee.model.parameters(), lr=RATES[arm])
        return sum(trainee.epoch(optimizer, graph.parts[0][:400], graph.y) for _ in range(10))


def run(scale: str, seed: int) -> Evidence:
    """Accuracy, milliseconds an epoch and milliseconds before training of each arm."""
    by_arm = {arm: measure(arm, RATES[arm], scale, seed) for arm in ARMS}
    epochs = EPOCHS if scale == "full" else 1
    rows: list[dict[str, Any]] = [
        {
            "arm": arm,
            "accuracy": of_arm["accuracy"],
            "ms an epoch": 1000 * of_arm["seconds"] / epochs,
            "ms before": 1000 * of_arm["before"],
        }
        for arm, of_arm in by_arm.items()
    ]
    if scale == "full":
        check_sane("accuracy of R-GCN", by_arm[WHOLE]["accuracy"], SANITY)
    ratio = 1.0
    if scale == "full":
        ratio = seconds_at_ten_times(WHOLE, seed) / seconds_at_ten_times(SPLIT, seed)
    base = by_arm[SPLIT]["accuracy"]
    return Evidence(
        rows,
        {
            "whole": base - by_arm[WHOLE]["accuracy"],
            "mean": base - by_arm[MEAN]["accuracy"],
            "faster": by_arm[WHOLE]["seconds"] / by_arm[SPLIT]["seconds"],
            "faster at ten times": ratio,
            "labels": by_arm[LABELS]["accuracy"] - base,
        },
    )


def choose_rates() -> dict[str, float]:
    """The rate of each arm with the best mean accuracy on the choosing papers over two pilot seeds."""
    pilots = (UNREPORTED, UNREPORTED + 1)
    return {
        arm: best_setting(GRID, lambda rate, seed, arm=arm: measure(arm, rate, "full", seed)["choosing"], pilots)
        for arm in ARMS
    }


def figure(evidence: Sequence[Evidence]) -> Figure:
    """Accuracy by arm."""
    return bars_figure(evidence, y="accuracy")
