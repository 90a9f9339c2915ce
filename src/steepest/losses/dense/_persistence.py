"""Persistence of stacks of images by merge trees, and the matching that a third image induces between two.

Images are read from the brightest pixel down (superlevel sets); pixels are the vertices of a cubical complex, an edge
or a square appears with its last pixel. Components merge along edges; holes are components of the dual graph, whose
nodes are the squares and one outside, read backwards. In both graphs a node whose first edge leads to an older node
dies there without a bar, for its value is that of the edge. These nodes, nearly all, join their elders by operations on
whole arrays; only the remaining extremes are merged one by one.

Order: by value; of equal pixels the later one in reading order comes first; of edges of one last pixel that to the
right, below, to the left, above; of squares those on the corresponding corners. The published implementation orders
them so.
"""

from __future__ import annotations

from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import numpy as np

Sides = tuple[tuple[np.ndarray, tuple[slice, ...], tuple[slice, ...]], ...]

# stacks of about this many pixels stay in the processor's cache
CHUNK = 16000
FIRST_ROWS, LAST_ROWS = np.s_[:, :-1], np.s_[:, 1:]
FIRST_COLUMNS, LAST_COLUMNS = np.s_[:, :, :-1], np.s_[:, :, 1:]


class Bars(NamedTuple):
    """Bars of positive length of one dimension over a stack; the component that never dies is not among them.

    ``image`` is the number of the image, ``birth`` and ``death`` the pixels within it that set the values; ``of_node``
    gives the bar of a node of the merge tree, numbered through the stack, or -1.
    """

    image: np.ndarray
    birth: np.ndarray
    death: np.ndarray
    of_node: np.ndarray


class Matching(NamedTuple):
    """Features of one dimension of two stacks of maps; pixels are numbered through the stack.

    ``matched`` holds the pixels that set births and deaths of matched features, in each of the two: a pixel of the one
    and a pixel of the other at the same place. ``unmatched`` holds birth and death of the others, ``[bars, 2]`` each.
    """

    matched: tuple[np.ndarray, np.ndarray]
    unmatched: tuple[np.ndarray, np.ndarray]


class MergeTree:
    """How the components of a graph with ages merge, for a stack of graphs of one shape.

    Args:
        age: of each node, ``[K, ...]``: distinct within a graph, apart from nodes that are one from the start; smaller
            is older.
        elder: the node that a node joins with its first edge, numbered through the stack, or the node itself.
        joined: when it does.
        sides: of each kind of edge: when the edges appear in [0, span), and the slices of their ends.
        span: of times and ages.
    """

    def __init__(self, age: np.ndarray, elder: np.ndarray, joined: np.ndarray, sides: Sides, span: int) -> None:
        self.nodes, self.span = age[0].size, span
        self.age, self.joined = age.reshape(-1), joined.reshape(-1)
        root = elder.reshape(-1)
        roots = np.flatnonzero(root == np.arange(root.size))
        while not np.array_equal(step := root[root], root):
            root = step
        # extremes are numbered by age within each graph, so that of two numbers the smaller is the older
        self.roots = roots[np.argsort(self.age[roots] + (span + 1) * (roots // self.nodes))]
        number = np.empty(root.size, dtype=np.int64)
        number[self.roots] = np.arange(len(roots))
        self.group = number[root]
        grid = self.group.reshape(age.shape)
        ends = [(grid[a].reshape(-1), grid[b].reshape(-1), time.reshape(-1)) for time, a, b in sides]
        apart = [np.flatnonzero(a != b) for a, b, _ in ends]
        a, b, time = (np.concatenate([edges_of[i][own] for edges_of, own in zip(ends, apart)]) for i in range(3))
        when = time + span * (self.roots[a] // self.nodes)
        self._merge(a, b, when)

    def _merge(self, a: np.ndarray, b: np.ndarray, when: np.ndarray) -> None:
        """Kruskal's algorithm; the smaller component takes the name of the larger one."""
        order = np.argsort(when)
        oldest = list(range(len(self.roots)))
        # members of a component form a ring, without a list for each that the garbage collector would visit
        name, following, size = oldest.copy(), oldest.copy(), [1] * len(oldest)
        edges, dead, into, absorbed = [], [], [], []
        for edge, x, y in zip(order.tolist(), a[order].tolist(), b[order].tolist()):
            x, y = name[x], name[y]
            if x == y:
                continue
            if size[x] < size[y]:
                x, y = y, x
            size[x] += size[y]
            member = y
            while name[member] != x:
                name[member] = x
                member = following[member]
            following[x], following[y] = following[y], following[x]
            first, second = oldest[x], oldest[y]
            if first < second:
                dead.append(second)
            else:
                dead.append(first)
                oldest[x] = second
            edges.append(edge)
            into.append(x)
            absorbed.append(y)
        #: of each merge: its time with the image's number times the span added, and the node that dies
        self.when = when[edges]
        self.dead = self.roots[dead]
        self._into, self._absorbed = into, absorbed

    def merges(self, first: int, count: int) -> slice:
        """The merges of some images of the stack."""
        low, high = np.searchsorted(self.when, [first * self.span, (first + count) * self.span])
        return slice(int(low), int(high))

    def younger(self, first: int, count: int, other: int) -> np.ndarray:
        """For each merge of ``count`` images from ``first``: which node dies by the ages of the images from ``other``.

        A component's oldest node by foreign ages is the oldest of those that it has by the time of the merge.
        """
        start, stop = first * self.nodes, (first + count) * self.nodes
        foreign = self.age[other * self.nodes : (other + count) * self.nodes]
        shift = (other - first) * self.nodes
        oldest = np.zeros(len(self.roots), dtype=np.int64)
        own = self.roots[(self.roots >= start) & (self.roots < stop)]
        oldest[self.group[own]] = self.age[own + shift]
        group = self.group[start:stop]
        # nodes that are older than all that joined their extreme before them
        late = np.flatnonzero(foreign < oldest[group])
        late = late[np.argsort(group[late] * self.span + self.joined[start:stop][late])]
        ages = foreign[late] - group[late] * (self.span + 1)
        late = late[ages < np.concatenate([[self.span], np.minimum.accumulate(ages)])[:-1]]
        late_when = self.joined[start:stop][late] + (first + late // self.nodes) * self.span
        late, late_when = (of_merges[np.argsort(late_when)] for of_merges in (late, late_when))
        own_merges = self.merges(first, count)
        died = self._replay(own_merges, oldest.tolist(), late_when, group[late], foreign[late])
        image = self.when[own_merges] // self.span + other - first
        return self._node_of_age[image, died]

    def _replay(
        self, own: slice, oldest: list[int], late_when: np.ndarray, late_group: np.ndarray, late_age: np.ndarray
    ) -> list[int]:
        into = list(repeat(-1, len(oldest)))
        late = iter([*zip(late_when.tolist(), late_group.tolist(), late_age.tolist()), (2**62, 0, 0)])
        at, group, age = next(late)
        died = []
        for when, x, y in zip(self.when[own].tolist(), self._into[own], self._absorbed[own]):
            while at < when:
                while into[group] >= 0:
                    group = into[group]
                if age < oldest[group]:
                    oldest[group] = age
                at, group, age = next(late)
            first, second = oldest[x], oldest[y]
            if first < second:
                died.append(second)
            else:
                died.append(first)
                oldest[x] = second
            into[y] = x
        return died

    @cached_property
    def _node_of_age(self) -> np.ndarray:
        """``[K, span + 1]``, numbered through the stack; the last is for the age -1."""
        table = np.zeros((self.age.size // self.nodes, self.span + 1), dtype=np.int64)
        nodes = np.arange(self.age.size)
        table[nodes // self.nodes, self.age] = nodes
        return table


class Stack:
    """Images ``[K, H, W]`` of at least one pixel, their total orders and merge trees."""

    def __init__(self, values: np.ndarray) -> None:
        self.count, self.height, self.width = values.shape
        self.pixels = self.height * self.width
        self.values = values.reshape(self.count, -1)
        #: pixels of each image from the first to the last
        self.order = self.pixels - 1 - np.argsort(-self.values[:, ::-1], axis=1, kind="stable")
        rank = np.empty_like(self.order)
        np.put_along_axis(rank, self.order, np.broadcast_to(np.arange(self.pixels), rank.shape), 1)
        self.rank = rank.reshape(values.shape)

    @cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """When the vertical ``[K, H - 1, W]`` and the horizontal ``[K, H, W - 1]`` edges appear: 4 rank + direction."""
        above, below = 4 * self.rank[FIRST_ROWS], 4 * self.rank[LAST_ROWS]
        left, right = 4 * self.rank[FIRST_COLUMNS], 4 * self.rank[LAST_COLUMNS]
        return np.maximum(above + 1, below + 3), np.maximum(left, right + 2)

    @cached_property
    def components(self) -> MergeTree:
        """Nodes ``[K, H, W]`` are the pixels."""
        vertical, horizontal = self.edges
        ids = np.arange(self.rank.size).reshape(self.rank.shape)
        elder, joined = ids.copy(), np.zeros_like(ids)
        # of the edges that a pixel brings the first joins it to an older one: what is assigned last stands
        for code, own, across in (
            (3, LAST_ROWS, FIRST_ROWS),
            (2, LAST_COLUMNS, FIRST_COLUMNS),
            (1, FIRST_ROWS, LAST_ROWS),
            (0, FIRST_COLUMNS, LAST_COLUMNS),
        ):
            older = self.rank[across] < self.rank[own]
            np.copyto(elder[own], ids[across], where=older)
            np.copyto(joined[own], 4 * self.rank[own] + code, where=older)
        sides = (vertical, FIRST_ROWS, LAST_ROWS), (horizontal, FIRST_COLUMNS, LAST_COLUMNS)
        return MergeTree(self.rank, elder, joined, sides, 4 * self.pixels)

    @cached_property
    def holes(self) -> MergeTree:
        """Nodes ``[K, H + 1, W + 1]`` are the squares, within a rim whose first node stands for the outside."""
        vertical, horizontal = (4 * self.pixels - 1 - edges for edges in self.edges)
        shape, inner = (self.count, self.height + 1, self.width + 1), np.s_[:, 1:-1, 1:-1]
        last = np.maximum(4 * self.rank[FIRST_ROWS], 4 * self.rank[LAST_ROWS] + 2)
        age = np.full(shape, -1)
        age[inner] = 4 * self.pixels - 1 - np.maximum(last[FIRST_COLUMNS], last[LAST_COLUMNS] + 1)
        ids = np.arange(age.size).reshape(shape)
        elder = np.empty_like(ids)
        elder[:] = ids[:, :1, :1]
        around = horizontal[FIRST_ROWS], horizontal[LAST_ROWS], vertical[FIRST_COLUMNS], vertical[LAST_COLUMNS]
        first = np.minimum(np.minimum(around[0], around[1]), np.minimum(around[2], around[3]))
        across = ids[inner] + np.select([edges == first for edges in around], [-shape[2], shape[2], -1, 1])
        elder[inner] = np.where(age.reshape(-1)[across] < age[inner], across, ids[inner])
        joined = np.zeros_like(ids)
        joined[inner] = first
        sides = (
            (vertical, np.s_[:, 1:-1, :-1], np.s_[:, 1:-1, 1:]),
            (horizontal, np.s_[:, :-1, 1:-1], np.s_[:, 1:, 1:-1]),
        )
        return MergeTree(age, elder, joined, sides, 4 * self.pixels)

    def tree(self, dim: int) -> MergeTree:
        """Of components (0) or holes (1)."""
        return self.holes if dim else self.components

    def bars(self, dim: int) -> Bars:
        """Bars of components (0) or holes (1)."""
        tree = self.tree(dim)
        image, time = np.divmod(tree.when, tree.span)
        if dim:
            birth = self.order[image, (tree.span - 1 - time) // 4]
            death = self.order[image, (tree.span - 1 - tree.age[tree.dead]) // 4]
        else:
            birth, death = tree.dead % tree.nodes, self.order[image, time // 4]
        lasting = self.values[image, birth] > self.values[image, death]
        of_node = np.full(tree.age.size, -1)
        of_node[tree.dead[lasting]] = np.arange(np.count_nonzero(lasting))
        return Bars(image[lasting], birth[lasting], death[lasting], of_node)


def induced_matching(stack: Stack, dim: int, union: bool) -> tuple[Bars, np.ndarray, np.ndarray]:
    """Which bars of the first and second third of a stack are one feature in the last third, their maximum or minimum.

    Image persistence of X in Y counts features of X that live on in Y: birth by X, death by Y. A bar of X and one of Y
    match where an image bar has the birth cell of the one and the death cell of the other.

    Args:
        stack: P, G and their common images, ``[3 B, H, W]``.
        dim: 0 or 1.
        union: whether the common image is the maximum (P and G map into it) or the minimum (it maps into both).

    Returns:
        All bars of the stack, and the numbers of the bars of P and of G that are matched.
    """
    tree, bars, count = stack.tree(dim), stack.bars(dim), stack.count // 3
    if union == (dim == 0):
        # merges of the common image give the deaths (components) or births (holes) of both kinds of image bars
        own = bars.of_node[tree.dead[tree.merges(2 * count, count)]]
        pairs = [bars.of_node[tree.younger(2 * count, count, other_image)] for other_image in (0, count)]
        matched = (own >= 0) & (pairs[0] >= 0) & (pairs[1] >= 0)
        return bars, pairs[0][matched], pairs[1][matched]
    partners = []
    for first in (0, count):
        own = bars.of_node[tree.dead[tree.merges(first, count)]]
        common = bars.of_node[tree.younger(first, count, 2 * count)]
        matched = (own >= 0) & (common >= 0)
        partner = np.full(len(bars.image), -1)
        partner[common[matched]] = own[matched]
        partners.append(partner)
    matched = (partners[0] >= 0) & (partners[1] >= 0)
    return bars, partners[0][matched], partners[1][matched]


def matchings(p: np.ndarray, g: np.ndarray, *, union: bool, dims: tuple[int, ...]) -> list[Matching]:
    """The matching of two stacks of maps ``[N, H, W]``, brightest first, for each dimension.

    The components that never die are matched; what they add to ``matched`` is their birth. Without a map the list is
    empty.
    """
    if not len(p):
        return []
    maps, pixels = len(p), p[0].size
    matched: dict[int, list[list[np.ndarray]]] = {dim: [] for dim in dims}
    step = max(1, CHUNK // (3 * pixels))
    for start in range(0, maps, step):
        own, other_images = p[start : start + step], g[start : start + step]
        count = len(own)
        stack = Stack(np.concatenate([own, other_images, (np.maximum if union else np.minimum)(own, other_images)]))
        for dim in dims:
            bars, *pairs = induced_matching(stack, dim, union)
            parts: list[list[np.ndarray]] = [[], []]
            for side, chosen in enumerate(pairs):
                first = side * count
                free = (bars.image >= first) & (bars.image < first + count)
                free[chosen] = False
                place = (start + bars.image - first) * pixels
                birth, death = place + bars.birth, place + bars.death
                essential = stack.order[first : first + count, 0] + pixels * np.arange(start, start + count)
                parts[0].append(np.concatenate([birth[chosen], death[chosen], *([essential] if dim == 0 else [])]))
                parts[1].append(np.stack([birth[free], death[free]], 1))
            matched[dim].append([*parts[0], *parts[1]])
    joined = [[np.concatenate(columns) for columns in zip(*matched[dim])] for dim in dims]
    return [Matching((columns[0], columns[1]), (columns[2], columns[3])) for columns in joined]


def betti_numbers(masks: np.ndarray) -> np.ndarray:
    """Numbers of components and of holes of masks ``[..., H, W]``: ``[2, maps]``."""
    from scipy.ndimage import label

    masks = masks.reshape(-1, *masks.shape[-2:])
    joined = np.zeros((2, 3, 3, 3), dtype=bool)
    joined[0, 1, 1, :] = joined[0, 1, :, 1] = joined[1, 1] = True
    # with a frame of background the outside is one component that is no hole
    parts = [masks, np.pad(~masks, ((0, 0), (1, 1), (1, 1)), constant_values=True)]
    numbers = []
    for cells, structure in zip(parts, joined):
        names, count = label(cells, structure)
        of_map = np.zeros(count + 1, dtype=np.int64)
        at = np.nonzero(names)
        of_map[names[at]] = at[0]
        numbers.append(np.bincount(of_map[1:], minlength=len(masks)))
    return np.stack([numbers[0], numbers[1] - 1])
