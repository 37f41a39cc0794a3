"""Eviction methods that are broken in one way, above and below the hook that scores."""

import math
from typing import ClassVar

import torch

from services.llm_longctx.methods.core.hook_results import CacheUpdate
from services.llm_longctx.methods.knorm import KNorm
from services.llm_longctx.methods.snapkv import SnapKv
from services.llm_longctx.methods.streaming_llm import StreamingLlm


class KeepsLowest(KNorm):
    """The engine keeps what scores lowest; the reference does not."""

    def after_prefill(self, view):
        turned = _Turned.model_construct(**dict(self))
        return turned.after_prefill(view)


class _Turned(KNorm):
    def score(self, view):
        return -super().score(view)


class ForgetsProtection(StreamingLlm):
    """The engine evicts sinks; the reference keeps them."""

    def _cut(self, *given):
        return super(ForgetsProtection, self.with_knobs(sink=0))._cut(*given)


class CountsOneMore(KNorm):
    """Keeps an entry more than it foresees, and than its reference does."""

    def _cut(self, heads, q, tokens, layer, count, *more):
        return super()._cut(heads, q, tokens, layer, count + 1, *more)


class KeepsOlderOfEqual(StreamingLlm):
    """All entries score the same, and the engine keeps the older ones."""

    def score(self, view):
        return torch.zeros(view.positions.shape).masked_fill(view.positions < self.sink, math.inf)

    def _cut(self, heads, *more):
        orders = super()._cut(heads, *more)
        return {g: type(order)(heads[g].positions[: len(order.positions)]) for g, order in orders.items()}


class NeverCutsAgain(KNorm):
    """Cuts the prompt only, and says that it cuts while decoding, too."""

    def after_decode(self, step, scores):
        return CacheUpdate(memo=step.memo)


class ScoresInChunks(KNorm):
    """Its scores depend on where a chunk began."""

    def after_prefill(self, view):
        if view.offset:
            return _Turned.model_construct(**dict(self)).after_prefill(view)
        return super().after_prefill(view)


class ScoresByNeighbours(KNorm):
    """Remembers the largest key of any sequence."""

    largest: ClassVar[list[float]] = [0.0]

    def score(self, view):
        self.largest[0] = max(self.largest[0], float(view.k.norm(dim=-1).max()))
        return -(view.k.norm(dim=-1) * 3 / self.largest[0]).round()


class TrustsCachedQueries(SnapKv):
    """Takes the queries that come with a cached prefix for its own, wherever they end."""

    @property
    def min_uncached_tokens(self):
        return 1

    def _remember(self, memo, q, offset, most, summary):
        found = super()._remember(None if memo is None else type(memo)(memo.q, offset), q, offset, most, summary)
        missing = max(most - found.q.shape[1], 0)
        return type(found)(torch.cat((found.q[:, :1].expand(-1, missing, -1), found.q), 1), found.end)


class ScoresForeignQueries(SnapKv):
    """Lets a group of heads be scored by the next group's queries."""

    def after_prefill(self, view):
        return super().after_prefill(type(view)(**{**_fields(view), "q": view.q.roll(2, 0)}))


def _fields(view):
    return {name: getattr(view, name) for name in view.__dataclass_fields__}


class CountsCutPrompt(KNorm):
    """Foresees what is kept of the prompt, and forgets what is appended."""

    def estimate(self, config, heads, prompt, new):
        return super().estimate(config, heads, prompt, 0)
