"""Sound methods that the broken ones are made of."""

import math
from typing import ClassVar

import torch
from pydantic import Field

from fovea.errors import InvalidOption
from services.llm_longctx.methods import AttentionMethod, Reference
from services.llm_longctx.methods.core.hook_results import (
    CacheUpdate,
    DecodePlan,
    Footprint,
    HeadRoles,
    Ranges,
    RetentionPolicy,
    TokenLists,
    TokenRows,
    Virtual,
    WindowSink,
)
from services.llm_longctx.tests.method_contract.oracle import causal, softmax_under


class Window(AttentionMethod):
    """Keeps the first and the last entries, in prompt and answer, token by token."""

    name = "window"
    phases = frozenset({"prefill", "decode"})
    actions = frozenset({"eviction"})
    chunk_invariant = False
    contract_knobs: ClassVar = {"sink": 2, "recent": 5}
    sink: int = Field(2, ge=0)
    recent: int = Field(64, ge=1)

    def reference(self, q, k, v, **inputs):
        mask = self._mask(q.shape[1])
        return Reference(softmax_under(q, k, v, mask), mask.expand(len(q), -1, -1))

    def _mask(self, n):
        at = torch.arange(n)
        return causal(n, n) & ((at < self.sink) | (at[:, None] - at < self.recent))

    def head_plan(self, config, plan):
        return HeadRoles(((False,) * config.kv_heads,) * config.layers)

    def estimate(self, config, heads, prompt, new):
        return Footprint(((min(prompt + new, self.sink + self.recent),) * config.kv_heads,) * config.layers)

    def fit(self, entries, config, plan, prompt, new):
        room = entries // (config.layers * config.kv_heads) - self.sink
        if room < 1:
            detail = "Too little for a window."
            raise InvalidOption(detail)
        return self.with_knobs(recent=min(room, max(self.recent, prompt + new)))

    def prefill_plan(self, chunk):
        return WindowSink(self.sink, self.recent)

    def after_prefill(self, view):
        return CacheUpdate(dict(enumerate(self._order(head.positions, view) for head in view.heads)))

    def _order(self, positions, view):
        return RetentionPolicy.ends(positions, self.sink, self.recent - 1, slide=True)


class Dotted(AttentionMethod):
    """Reads a window and every few tokens before it."""

    name = "dotted"
    phases = frozenset({"prefill", "decode"})
    actions = frozenset({"visibility"})
    contract_knobs: ClassVar = {"stride": 3, "window": 5}
    stride: int = Field(4, ge=1)
    window: int = Field(64, ge=1)

    def reference(self, q, k, v):
        mask = torch.zeros(q.shape[1], q.shape[1], dtype=torch.bool)
        for t in range(len(mask)):
            mask[t, self._seen(t)] = True
        return Reference(softmax_under(q, k, v, mask), mask.expand(len(q), -1, -1))

    def prefill_plan(self, chunk):
        rows = range(chunk.offset, chunk.k.shape[1])
        return TokenLists(tuple(TokenRows(t, t + 1, self._seen(t)) for t in rows))

    def decode_plan(self, step):
        return DecodePlan(Ranges(tuple((int(t), int(t) + 1) for t in self._seen(step.position))))

    def _seen(self, position):
        at = torch.arange(position + 1)
        return at[(position - at < self.window) | (at % self.stride == 0)]


class Mean(AttentionMethod):
    """Cuts the prompt's middle when it ends; one entry stands for what is dropped, with its number as weight."""

    name = "mean"
    phases = frozenset({"decode"})
    actions = frozenset({"eviction"})
    contract_knobs: ClassVar = {"window": 6}
    window: int = Field(64, ge=1)

    def head_plan(self, config, plan):
        roles = plan.roles if plan is not None and plan.roles else [[0] * config.kv_heads] * config.layers
        return HeadRoles(tuple(tuple(bool(x) for x in row) for row in roles))

    def estimate(self, config, heads, prompt, new):
        held = prompt if prompt <= self.window else self.window + 1
        return Footprint(tuple(tuple(prompt + new if full else held + new for full in row) for row in heads.full))

    def fit(self, entries, config, plan, prompt, new):
        heads = self.head_plan(config, plan)
        for window in range(max(self.window, prompt), 0, -1):
            fitted = self.with_knobs(window=window)
            if sum(map(sum, fitted.estimate(config, heads, prompt, new).entries)) <= entries:
                return fitted
        detail = "Too little for a window."
        raise InvalidOption(detail)

    def reference(self, q, k, v, q_new, k_new, v_new, **inputs):
        N, (H, T, _), rows = k.shape[1], q_new.shape, []
        first = max(N - self.window, 0)
        mask = causal(T, N + T).clone()
        mask[:, :first] = False
        for t in range(T):
            keys, values = (torch.cat(x, 1)[:, first : N + t + 1] for x in ((k, k_new), (v, v_new)))
            weight = torch.zeros(keys.shape[1], dtype=torch.float64)
            if first:
                keys = torch.cat((keys, self._stand_in(k[:, :first], 1)), 1)
                values = torch.cat((values, self._stand_in(v[:, :first], 1)), 1)
                weight = torch.cat((weight, torch.tensor([self._weight(first)], dtype=torch.float64)))
            seen = torch.ones(1, len(weight), dtype=torch.bool)
            rows.append(softmax_under(q_new[:, t : t + 1], keys, values, seen, weight))
        return Reference(torch.cat(rows, 1), mask.expand(H, T, N + T))

    def after_prefill(self, view):
        first = view.length - self.window
        if not view.last or first <= 0:
            return CacheUpdate(memo=view.memo)
        kept = torch.arange(first, view.length)

        def mean(head):
            return Virtual(*(self._stand_in(x[:first], 0)[0] for x in (head.k, head.v)), self._weight(first), first)

        heads = enumerate(view.heads)
        return CacheUpdate({g: RetentionPolicy(kept, mean(head)) for g, head in heads if not view.full[g]})

    def _stand_in(self, x, dim):
        return x.mean(dim, keepdim=True)

    def _weight(self, count):
        return math.log(count)
