"""Methods in which chunks, neighbours or earlier sequences show."""

import math
from collections import Counter
from typing import ClassVar

import torch

from services.llm_longctx.methods.core.hook_results import (
    CacheUpdate,
    DecodePlan,
    Ranges,
    RetentionPolicy,
    TokenLists,
    TokenRows,
    Virtual,
)
from services.llm_longctx.tests.mutants_methods.sound import Dotted, Mean, Window


class Chunky(Mean):
    """Cuts after every chunk, and says that chunks change nothing."""

    @property
    def cut_at_end(self):
        return False

    def after_prefill(self, view):
        cut = {g: RetentionPolicy(h.positions[-self.window :]) for g, h in enumerate(view.heads) if not view.full[g]}
        return CacheUpdate(cut)


class Local(Dotted):
    """Counts its dots from the chunk's begin, and says that chunks change nothing."""

    def prefill_plan(self, chunk):
        rows = []
        for t in range(chunk.offset, chunk.k.shape[1]):
            at = torch.arange(t + 1)
            rows.append(TokenRows(t, t + 1, at[(t - at < self.window) | ((at - chunk.offset) % self.stride == 0)]))
        return TokenLists(tuple(rows))


class Learning(Window):
    """Keeps less of a prompt that it has read before, as after a preemption."""

    seen: ClassVar[Counter] = Counter()

    def _order(self, positions, view):
        again = self.seen[float(view.heads[0].k.sum())] > 0
        if view.layer == 1:
            self.seen[float(view.heads[0].k.sum())] += 1
        return RetentionPolicy.ends(positions, self.sink, self.recent - 1 - 2 * again, slide=True)


class Hasty(Mean):
    """Behind a cached prefix it counts from there."""

    def after_prefill(self, view):
        if not view.last or view.length <= self.window:
            return CacheUpdate()
        first = max(view.length - self.window, view.offset)
        kept = torch.arange(first, view.length)
        cut = [(g, head) for g, head in enumerate(view.heads) if not view.full[g] and first]
        means = {g: Virtual(h.k[:first].mean(0), h.v[:first].mean(0), math.log(first), first) for g, h in cut}
        return CacheUpdate({g: RetentionPolicy(kept, one) for g, one in means.items()})


class Leaking(Dotted):
    """Remembers the last position on the class: sequences of a batch read each other's."""

    last: ClassVar[dict] = {}

    def decode_plan(self, step):
        before = self.last.get(step.layer, step.position)
        self.last[step.layer] = step.position
        seen = [t for t in self._seen(step.position).tolist() if t == step.position or t <= before]
        return DecodePlan(Ranges(tuple((t, t + 1) for t in seen)))


class Shared(Dotted):
    """Writes into its memo, which two answers to a prompt share."""

    def after_prefill(self, view):
        return CacheUpdate(memo=[])

    def decode_plan(self, step):
        step.memo.append(step.position)
        seen = self._seen(step.position).tolist()
        return DecodePlan(Ranges(tuple((t, t + 1) for t in seen if t > len(step.memo) - step.number)))


class Dicing(Dotted):
    """Draws its dots."""

    def _seen(self, position):
        at = torch.arange(position + 1)
        return at[(position - at < self.window) | (torch.rand(position + 1) < 1 / self.stride)]
