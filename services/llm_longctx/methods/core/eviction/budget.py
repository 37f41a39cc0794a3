"""Memory of eviction methods: how many entries a cut leaves, and which budget meets a number of entries.

Knows counts; knows no score.
"""

from functools import lru_cache
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.head_roles import count_full, entries_by_role
from services.llm_longctx.methods.core.hook_results import Footprint, HeadRoles
from shared.lm.config import DecoderConfig


class Budgeted(Protocol):
    """A method with a budget, as eviction methods have."""

    name: ClassVar[str]

    def __hash__(self) -> int:
        """Counts are remembered by it."""

    @property
    def every(self) -> int | None:
        """Decode steps from cut to cut."""

    @property
    def prefill(self) -> str:
        """When the prompt is cut."""

    @property
    def allocation(self) -> str:
        """Which entries compete."""

    @property
    def query_window(self) -> int:
        """Queries that scores need."""

    @property
    def shares_model_budget(self) -> bool:
        """Whether all heads of the model compete."""

    def counts(self, tokens: int, layers: int) -> list[int]:
        """Entries per head and layer after a cut."""

    def count_model(self, tokens: int, heads: int) -> int:
        """Entries of all heads together after a cut."""

    def scores(self, q: Tensor, k: Tensor, v: Tensor, layer: int = 0, **inputs: Any) -> Tensor:
        """Scores of a whole prompt."""

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        """Entries that are held."""

    def with_knobs(self, **knobs: Any) -> Self:
        """A copy with other knobs."""


M = TypeVar("M", bound=Budgeted)


def estimate_footprint(method: Budgeted, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
    """Entries that a cut leaves, and those appended; with `every` at its most, which is just before a cut."""
    tokens = prompt if method.every is None else prompt + new
    protected = count_protected(method, config.heads, config.kv_heads, config.head_dim, tokens)
    begin = [
        prompt if method.prefill == "none" else min(prompt, max(n, protected))
        for n in method.counts(prompt, config.layers)
    ]
    if method.shares_model_budget and prompt:
        cut = config.layers * config.kv_heads - count_full(heads, config)
        even = -(-method.count_model(prompt, cut) // max(cut, 1))
        begin = [min(prompt, max(n, even)) for n in begin]
    most = [n + new for n in begin]
    if method.every is not None and new >= method.every:
        ends = range(prompt + method.every, prompt + new + 1, method.every)
        targets = [method.counts(end, config.layers) for end in (ends if method.allocation == "pyramid" else ends[-1:])]
        tops = [max(first, protected, *column) for first, column in zip(begin, zip(*targets, strict=True), strict=True)]
        most = [min(n, top + method.every) for n, top in zip(most, tops, strict=True)]
    tables = {n: entries_by_role(heads, config, prompt + new, min(n, prompt + new)) for n in set(most)}
    rows = [tables[n][i] for i, n in enumerate(most)]
    return Footprint(tuple(rows), is_bound=method.every is not None)


def fit_budget(method: M, entries: int, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> M:
    """The method with the largest `budget` under which all heads together hold at most so many entries.

    Raises InvalidOption: the protected entries do not fit.
    """
    cut = config.layers * config.kv_heads - count_full(heads, config)

    def holds(one: M) -> int:
        return sum(map(sum, one.estimate(config, heads, prompt, new).entries))

    if holds(whole := method.with_knobs(ratio=1.0, budget=None)) <= entries:
        return whole
    full = (config.layers * config.kv_heads - cut) * (prompt + new)
    appended = new if method.every is None else min(method.every, new)
    least = count_protected(method, config.heads, config.kv_heads, config.head_dim, prompt + new) + 1
    if holds(method.with_knobs(budget=least)) <= entries:
        # Rounding in a pyramid may take a few entries more than its average.
        for budget in range((entries - full) // max(cut, 1) - appended, least - 1, -1):
            if holds(fitted := method.with_knobs(budget=budget)) <= entries:
                return fitted
    if holds(method) <= entries:
        return method
    detail = f"{method.name} can't hold {prompt + new:,} tokens in {entries:,} entries."
    raise InvalidOption(detail, hint="Ask for more, or for fewer new tokens.", field="longctx")


def count_protected(method: Budgeted, heads: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    """How many entries a head's scores protect of a prompt, whatever the budget."""
    return _try_protected(method.with_knobs(ratio=1.0, budget=None), heads, kv_heads, head_dim, tokens) if tokens else 0


@lru_cache(maxsize=1024)
def _try_protected(method: Budgeted, heads: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    """Scores of numbers that mean nothing: infinite ones protect."""
    draw = torch.Generator().manual_seed(0)
    shapes = (heads, min(tokens, max(method.query_window, 1))), (kv_heads, tokens), (kv_heads, tokens)
    q, k, v = (torch.randn(*shape, head_dim, generator=draw) for shape in shapes)
    return int(method.scores(q, k, v).isposinf().sum(1).max())
