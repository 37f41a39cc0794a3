"""KVzap (2026): a small map from the attention input to the logarithm of what KVzip+ would score."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from fovea.errors import InvalidOption
from services.llm_longctx.methods.core.attention_method import AttentionMethod
from services.llm_longctx.methods.core.eviction.method import EvictionMethod
from services.llm_longctx.methods.core.hook_inputs import ReadTokens, ScoringView
from services.llm_longctx.methods.core.hook_results import Footprint, HeadRoles
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan
from shared.lm.host_transfer import take_rows, to_device

Matrix = tuple[tuple[float, ...], ...]


class Surrogate(BaseModel):
    """A layer's map from the attention input [D] to a score per key/value head: linear, or with one hidden layer.

    Attributes:
        weight: [G,D], or [G,F] behind a hidden layer.
        bias: [G].
        weight_in: [F,D], or none.
        bias_in: [F].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Matrix
    bias: tuple[float, ...]
    weight_in: Matrix | None = None
    bias_in: tuple[float, ...] | None = None


_EXAMPLE = tuple(
    {"weight": [[float(column == layer + 3 * row) for column in range(32)] for row in range(2)], "bias": [0.0, 0.1]}
    for layer in range(2)
)
"""Maps for a decoder of 2 layers, 2 key/value heads and width 32: each reads one number."""


class KvZap(EvictionMethod):
    """Keeps what a trained map of each token's attention input says that it is worth; no attention is looked at.

    `surrogates` holds a map per layer. With `threshold` there is no share: every entry behind the last `window` whose
    score is below it goes, so that lengths follow the text. Without maps all entries count alike, and the newest stay.
    """

    name: ClassVar[str] = "kvzap"
    evidence = "attention input"
    optional_knobs: ClassVar = frozenset(
        {"safeguard", "safeguard_rule", "beta", "recent", "critical", "first_stage", "critical_epsilon", "prefill"}
    )

    window: int = Field(128, ge=0, le=1 << 16, description="Last entries, which always stay.")
    threshold: float | None = Field(None, description="Keep what scores this or more, instead of a share; -7 … -3.")
    surrogates: tuple[Surrogate, ...] = Field((), max_length=512, description="A map per layer.")

    contract_knobs: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.4, "window": 3, "surrogates": _EXAMPLE},
        {"budget": 13, "window": 2, "every": 3, "allocation": "layer", "surrogates": _EXAMPLE},
        {"threshold": 0.1, "window": 4, "every": 2, "surrogates": _EXAMPLE},
    )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"hidden"}

    @property
    def pyramid_window(self) -> int:
        return self.window

    def head_plan(self, config: DecoderConfig, plan: HeadPlan | None) -> HeadRoles:
        shapes = {(len(one.bias), len((one.weight_in or one.weight)[0])) for one in self.surrogates}
        if self.surrogates and (len(self.surrogates) != config.layers or shapes != {(config.kv_heads, config.width)}):
            detail = f"surrogates must be {config.layers} maps from {config.width} numbers to {config.kv_heads}."
            raise InvalidOption(detail, field="longctx.surrogates")
        return super().head_plan(config, plan)

    def summarize(self, summary: object, tokens: ReadTokens) -> object:
        if tokens.hidden is None or not self.surrogates:
            return None
        wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
        weights = _tensors(self.surrogates[tokens.layer], wide, tokens.q.device)
        return _append(summary, take_rows(_worth(tokens.hidden.to(wide), weights), tokens.kv_heads))

    def summarize_inputs(self, k: Tensor, v: Tensor, inputs: Mapping[str, Any]) -> object:
        hidden, maps = inputs.get("hidden"), inputs.get("surrogate")
        return None if hidden is None or maps is None else _worth(hidden, maps)

    def score(self, view: ScoringView) -> Tensor:
        scores = torch.zeros_like(view.positions, dtype=view.k.dtype)
        if isinstance(view.summary, Tensor):
            scores = take_rows(view.summary, view.kv_heads).to(view.k.dtype).gather(1, view.positions)
        return scores.masked_fill(view.positions >= view.tokens - self.window, math.inf)

    # Under a threshold.

    def counts(self, tokens: int, layers: int) -> list[int]:
        return super().counts(tokens, layers) if self.threshold is None else [tokens] * layers

    def is_cut(self, held: Sequence[int], count: int) -> bool:
        return self.threshold is not None or super().is_cut(held, count)

    def keep_entries(
        self,
        scores: Sequence[Tensor],
        positions: Sequence[Tensor],
        count: int,
        norms: Sequence[Tensor] | None = None,
        tokens: int | None = None,
    ) -> list[Tensor]:
        if self.threshold is None:
            return super().keep_entries(scores, positions, count, norms, tokens)
        return [row >= self.threshold for row in scores]

    def estimate(self, config: DecoderConfig, heads: HeadRoles, prompt: int, new: int) -> Footprint:
        if self.threshold is None:
            return super().estimate(config, heads, prompt, new)
        return Footprint(((prompt + new,) * config.kv_heads,) * config.layers, is_bound=True)

    def fit(self, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int) -> AttentionMethod:
        if self.threshold is not None and entries >= config.layers * config.kv_heads * (prompt + new):
            return self
        return EvictionMethod.fit(self.with_knobs(threshold=None), entries, config, plan, prompt, new)


@lru_cache(maxsize=1024)
def _tensors(surrogate: Surrogate, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    facts = surrogate.model_dump(exclude_none=True)
    return {
        name: to_device(torch.tensor(numbers, dtype=dtype, device="cpu"), device) for name, numbers in facts.items()
    }


def _worth(hidden: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
    """Scores [G,n] of attention inputs [n,D]."""
    x = hidden
    if "weight_in" in maps:
        x = functional.gelu(functional.linear(x, maps["weight_in"].to(x.dtype), maps["bias_in"].to(x.dtype)))
    return functional.linear(x, maps["weight"].to(x.dtype), maps["bias"].to(x.dtype)).T


def _append(summary: object, scores: Tensor) -> Tensor:
    return torch.cat((summary, scores), 1) if isinstance(summary, Tensor) else scores
