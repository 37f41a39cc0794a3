"""Small methods that exercise every hook of the contract, so that the engine is tested without the real ones."""

# ruff: noqa: D102  # hooks and checks, whose protocols say what they are for

import math
from typing import ClassVar

import torch

from services.llm_longctx.kernels import BlockCsr
from services.llm_longctx.methods import AttentionMethod
from services.llm_longctx.methods.core.hook_inputs import CacheView
from services.llm_longctx.methods.core.hook_results import (
    Blocks,
    CacheUpdate,
    Compact,
    DecodePlan,
    Footprint,
    Heads,
    Pages,
    Ranges,
    RetentionPolicy,
    Virtual,
    WindowSink,
)


def _roles(config, plan, default=0):
    if plan is not None and plan.roles is not None:
        return tuple(tuple(bool(x) for x in row) for row in plan.roles)
    return ((bool(default),) * config.kv_heads,) * config.layers


class Streaming(AttentionMethod):
    """Keeps the first and the last entries of each head that is not full, cut after every chunk."""

    name = "toy-streaming"
    phases = frozenset({"prefill", "decode"})
    chunk_invariant = False
    sink: int = 2
    recent: int = 5
    exact: bool = False

    def head_plan(self, config, plan):
        return Heads(_roles(config, plan))

    def estimate(self, config, heads, prompt, new):
        n = prompt + new
        held = min(n, self.sink + self.recent + 1)
        return Footprint(tuple(tuple(n if full else held for full in row) for row in heads.full))

    def prefill_plan(self, chunk):
        if chunk.evicting and self.exact:
            return WindowSink(self.sink, self.recent)
        return super().prefill_plan(chunk)

    def after_prefill(self, view):
        recent = self.recent - 1 if self.exact else self.recent
        return CacheUpdate(
            {
                g: RetentionPolicy.ends(head.positions, self.sink, recent, slide=True)
                for g, head in enumerate(view.heads)
                if not view.full[g]
            }
        )


class Averaging(AttentionMethod):
    """Replaces the middle by its weighted mean at the end of the prompt; with `slide` what leaves joins it."""

    name = "toy-averaging"
    phases = frozenset({"decode"})
    sink: int = 2
    window: int = 6
    slide: bool = False

    def head_plan(self, config, plan):
        return Heads(_roles(config, plan))

    def estimate(self, config, heads, prompt, new):
        n, kept = prompt + new, self.sink + self.window + 1
        held = min(n + 1, kept + 1) if self.slide else (n if prompt <= self.sink + self.window else kept + new)
        return Footprint(tuple(tuple(n if full else held for full in row) for row in heads.full))

    def after_prefill(self, view):
        if not view.last:
            return CacheUpdate(memo=view.memo)
        return CacheUpdate({g: self._order(head) for g, head in enumerate(view.heads) if not view.full[g]})

    def _order(self, head: CacheView):
        n, slide = len(head.positions), self.window if self.slide else None
        dropped = slice(self.sink, n - self.window)
        count = n - self.window - self.sink
        if count <= 0:
            return RetentionPolicy(sink=self.sink, slide=slide, absorb=self.slide)
        mean = Virtual(head.k[dropped].mean(0), head.v[dropped].mean(0), math.log(count), count)
        kept = torch.cat((head.positions[: self.sink], head.positions[n - self.window :]))
        return RetentionPolicy(kept, mean, self.sink, slide, absorb=self.slide)


class Copying(AttentionMethod):
    """Decodes from a compact copy of the likeliest entries, re-selected every `stride` steps."""

    name = "toy-copying"
    phases = frozenset({"decode"})
    budget: int = 4
    stride: int = 3

    def estimate(self, config, heads, prompt, new):
        rows = lambda n: ((n,) * config.kv_heads,) * config.layers  # noqa: E731
        return Footprint(rows(prompt + new), rows(min(prompt + new, self.budget) + self.stride))

    def _top(self, scores):
        likely = scores.amax(0)
        order = torch.sort(likely, descending=True, stable=True).indices
        return order[: self.budget].sort().values

    def after_prefill(self, view):
        if not view.last:
            return CacheUpdate()
        G = len(view.heads)
        R, d = view.q.shape[0] // G, view.q.shape[2]
        scores = [(view.q[g * R : (g + 1) * R, -1] @ view.heads[g].k.mT * d**-0.5).softmax(-1) for g in range(G)]
        return CacheUpdate(compact={g: self._top(s) for g, s in enumerate(scores)})

    def decode_plan(self, step):
        return DecodePlan(Pages(), want_scores=True) if step.number % self.stride == 0 else DecodePlan(Compact())

    def after_decode(self, step, scores):
        return CacheUpdate(compact={g: self._top(s) for g, s in enumerate(scores)})


class Striding(AttentionMethod):
    """Reads the first and the latest blocks, in prefill and decode."""

    name = "toy-striding"
    phases = frozenset({"prefill", "decode"})
    block: int = 4
    window: int = 2

    def _mask(self, n):
        rows = torch.arange(n)
        gap = rows[:, None] - rows
        return (gap >= 0) & ((gap < self.window) | (rows[None] == 0))

    def prefill_plan(self, chunk):
        first, end = chunk.offset // self.block, -(-chunk.k.shape[1] // self.block)
        mask = self._mask(end)[first:].expand(chunk.k.shape[0], -1, -1)
        return Blocks(BlockCsr.from_mask(mask, self.block, first=first))

    def decode_plan(self, step):
        row = step.position // self.block
        begin = max(row - self.window + 1, 0) * self.block
        return DecodePlan(Ranges(((0, min(self.block, begin)), (begin, step.position + 1))))


class Halving(AttentionMethod):
    """Halves what some query heads say, and counts how often it was asked."""

    name = "toy-halving"
    phases = frozenset({"prefill", "decode"})
    seen: ClassVar[str] = "memo"

    def head_plan(self, config, plan):
        return Heads(calibrated=frozenset(plan.heads))

    def epilogue(self, view):
        out, R = view.out.clone(), view.q.shape[0] // len(view.heads)
        for h in view.calibrated:
            held = view.heads[h // R]
            logits = view.q[h, -1] @ held.k.mT * held.k.shape[1] ** -0.5
            torch.testing.assert_close(logits.logsumexp(-1), view.lse[h, -1], rtol=1e-5, atol=1e-5, check_dtype=False)
            out[h] *= 0.5
        return out, (view.memo or 0) + 1
