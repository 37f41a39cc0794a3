"""Edge graph of a decoder: heads, MLPs and the embedding as nodes, and one edge from each to every input above it.

The input of a query, key or value head, of an MLP or of the answer is the sum of what all nodes below it write; an edge
is one term of that sum ("Towards Automated Circuit Discovery", 2023). Knows shapes and names; runs nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shared.lm.config import DecoderConfig


@dataclass(frozen=True, slots=True, order=True)
class EdgeSource:
    """A node that writes into the residual stream: `embed`, an `mlp`, or one `head`."""

    layer: int
    kind: str
    head: int = 0

    def __str__(self) -> str:
        """`embed`, `3-1` or `mlp 3`."""
        if self.kind == "embed":
            return "embed"
        return f"{self.layer}-{self.head}" if self.kind == "head" else f"mlp {self.layer}"


@dataclass(frozen=True, slots=True, order=True)
class EdgeTarget:
    """An input that reads the residual stream: `q` of a head, `k` or `v` of a group, an `mlp`, or the `answer`."""

    layer: int
    kind: str
    head: int = 0

    def __str__(self) -> str:
        """`3-1 q`, `3-0 k`, `mlp 3` or `answer`."""
        if self.kind == "answer":
            return "answer"
        return f"mlp {self.layer}" if self.kind == "mlp" else f"{self.layer}-{self.head} {self.kind}"


@dataclass(frozen=True)
class EdgeGraph:
    """The graph of one decoder. Edges are a bool or float matrix [R,S] of targets by sources.

    Attributes:
        config: Sizes of the decoder: L layers, H query heads, G groups of keys and values.
    """

    config: DecoderConfig

    @property
    def parts(self) -> int:
        """P: inputs of one attention layer, H queries, then G keys, then G values."""
        return self.config.heads + 2 * self.config.kv_heads

    @property
    def written(self) -> int:
        """Sources of one layer: its heads, then its MLP."""
        return self.config.heads + 1

    @cached_property
    def sources(self) -> list[EdgeSource]:
        """All S sources, in the order in which they are computed."""
        found = [EdgeSource(-1, "embed")]
        for layer in range(self.config.layers):
            found += [EdgeSource(layer, "head", head) for head in range(self.config.heads)]
            found.append(EdgeSource(layer, "mlp"))
        return found

    @cached_property
    def targets(self) -> list[EdgeTarget]:
        """All R targets, in the order in which they are computed; the answer is the last."""
        found = []
        for layer in range(self.config.layers):
            found += [EdgeTarget(layer, "q", head) for head in range(self.config.heads)]
            found += [EdgeTarget(layer, part, group) for part in "kv" for group in range(self.config.kv_heads)]
            found.append(EdgeTarget(layer, "mlp"))
        return [*found, EdgeTarget(self.config.layers, "answer")]

    def sources_below(self, target: EdgeTarget) -> int:
        """Return how many sources a target reads: all before this index."""
        if target.kind == "mlp":
            return 1 + target.layer * self.written + self.config.heads
        return 1 + target.layer * self.written

    def attention_rows(self, layer: int) -> slice:
        """Rows of a layer's queries, keys and values."""
        start = layer * (self.parts + 1)
        return slice(start, start + self.parts)

    def mlp_row(self, layer: int) -> int:
        """Row of a layer's MLP."""
        return layer * (self.parts + 1) + self.parts

    @cached_property
    def exists(self) -> np.ndarray:
        """Which edges there are: bool [R,S]."""
        limits = np.array([self.sources_below(target) for target in self.targets])
        mask: np.ndarray = np.arange(len(self.sources)) < limits[:, None]
        return mask

    @property
    def edges(self) -> int:
        """How many edges there are."""
        return int(self.exists.sum())

    def readers(self, source: EdgeSource) -> list[int]:
        """Rows that belong to a source: what it computes comes from their inputs; none for the embedding."""
        if source.kind == "embed":
            return []
        if source.kind == "mlp":
            return [self.mlp_row(source.layer)]
        start, H, G = self.attention_rows(source.layer).start, self.config.heads, self.config.kv_heads
        group = source.head // (H // G)
        return [start + source.head, start + H + group, start + H + G + group]

    def name(self, edge: tuple[int, int]) -> str:
        """`1-0 → 2-3 k`, of an edge (row, column)."""
        return f"{self.sources[edge[1]]} → {self.targets[edge[0]]}"

    def mask_of(self, edges: Iterable[tuple[int, int]]) -> np.ndarray:
        """Return the circuit of some edges (row, column): bool [R,S]."""
        mask = np.zeros(self.exists.shape, bool)
        for edge in edges:
            mask[edge] = True
        return mask

    def edges_of(self, mask: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield the edges (row, column) of a circuit, in the order in which they are computed."""
        for row, column in zip(*np.nonzero(mask & self.exists), strict=True):
            yield int(row), int(column)
