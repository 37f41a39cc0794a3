"""Attention methods that are broken on purpose, each in one way, and the sound ones that they are made of.

`MUTANTS` says which check of the contract must refuse each of them. None is in the methods' room, so none is found.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import ClassVar

import torch
from pydantic import Field

from services.llm_longctx.methods import AttentionMethod, Reference
from services.llm_longctx.methods.plans import (
    DecodePlan,
    Footprint,
    Heads,
    Outcome,
    Ranges,
    Retain,
    TokenLists,
    TokenRows,
    Virtual,
    WindowSink,
)
from services.llm_longctx.tests.method_oracle import causal, softmax_under
from shared.errors import InvalidOption

# Sound ones.


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
        """Softmax under the window."""
        mask = self._mask(q.shape[1])
        return Reference(softmax_under(q, k, v, mask), mask.expand(len(q), -1, -1))

    def _mask(self, n):
        at = torch.arange(n)
        return causal(n, n) & ((at < self.sink) | (at[:, None] - at < self.recent))

    def head_plan(self, config, plan):
        """No head is full."""
        return Heads(((False,) * config.kv_heads,) * config.layers)

    def estimate(self, config, heads, prompt, new):
        """Both ends."""
        return Footprint(((min(prompt + new, self.sink + self.recent),) * config.kv_heads,) * config.layers)

    def fit(self, entries, config, plan, prompt, new):
        """A shorter window."""
        room = entries // (config.layers * config.kv_heads) - self.sink
        if room < 1:
            detail = "Too little for a window."
            raise InvalidOption(detail)
        return self.changed(recent=min(room, max(self.recent, prompt + new)))

    def prefill_plan(self, chunk):
        """By true positions."""
        return WindowSink(self.sink, self.recent)

    def after_prefill(self, view):
        """Cut every head, and slide from now on."""
        return Outcome(dict(enumerate(self._order(head.positions, view) for head in view.heads)))

    def _order(self, positions, view):
        return Retain.ends(positions, self.sink, self.recent - 1, slide=True)


class Dotted(AttentionMethod):
    """Reads a window and every few tokens before it."""

    name = "dotted"
    phases = frozenset({"prefill", "decode"})
    actions = frozenset({"visibility"})
    contract_knobs: ClassVar = {"stride": 3, "window": 5}
    stride: int = Field(4, ge=1)
    window: int = Field(64, ge=1)

    def reference(self, q, k, v):
        """Softmax under the dots."""
        mask = torch.zeros(q.shape[1], q.shape[1], dtype=torch.bool)
        for t in range(len(mask)):
            mask[t, self._seen(t)] = True
        return Reference(softmax_under(q, k, v, mask), mask.expand(len(q), -1, -1))

    def prefill_plan(self, chunk):
        """A list per token."""
        rows = range(chunk.offset, chunk.k.shape[1])
        return TokenLists(tuple(TokenRows(t, t + 1, self._seen(t)) for t in rows))

    def decode_plan(self, step):
        """The same list."""
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
        """Roles as the plan says; none are full without one."""
        roles = plan.roles if plan is not None and plan.roles else [[0] * config.kv_heads] * config.layers
        return Heads(tuple(tuple(bool(x) for x in row) for row in roles))

    def estimate(self, config, heads, prompt, new):
        """Window, mean and what is appended."""
        held = prompt if prompt <= self.window else self.window + 1
        return Footprint(tuple(tuple(prompt + new if full else held + new for full in row) for row in heads.full))

    def fit(self, entries, config, plan, prompt, new):
        """A shorter window."""
        heads = self.head_plan(config, plan)
        for window in range(max(self.window, prompt), 0, -1):
            fitted = self.changed(window=window)
            if sum(map(sum, fitted.estimate(config, heads, prompt, new).entries)) <= entries:
                return fitted
        detail = "Too little for a window."
        raise InvalidOption(detail)

    def reference(self, q, k, v, q_new, k_new, v_new, **inputs):
        """Steps over the window, the mean and themselves."""
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
        """Once, at the end."""
        first = view.length - self.window
        if not view.last or first <= 0:
            return Outcome(memo=view.memo)
        kept = torch.arange(first, view.length)
        return Outcome({
            g: Retain(kept, Virtual(
                self._stand_in(head.k[:first], 0)[0], self._stand_in(head.v[:first], 0)[0], self._weight(first), first
            ))
            for g, head in enumerate(view.heads) if not view.full[g]
        })  # fmt: skip

    def _stand_in(self, x, dim):
        return x.mean(dim, keepdim=True)

    def _weight(self, count):
        return math.log(count)


SOUND = (Window, Dotted, Mean)

# What is computed.


class Zeros(Window):
    """Its reference says nothing."""

    def reference(self, q, k, v, **inputs):
        """Zeros under the right mask."""
        right = super().reference(q, k, v)
        return Reference(torch.zeros_like(right.out), right.mask)


class Scaled(Window):
    """Its reference forgets the root of the width."""

    def reference(self, q, k, v, **inputs):
        """Logits too large."""
        return super().reference(q * q.shape[-1] ** 0.5, k, v)


class Regrouped(Window):
    """Its reference lets query heads read the next group's keys."""

    def reference(self, q, k, v, **inputs):
        """Groups turned by one."""
        return super().reference(q, k.roll(1, 0), v.roll(1, 0))


class Foresighted(Dotted):
    """Its reference sees what comes."""

    def reference(self, q, k, v):
        """One token too far."""
        mask = super().reference(q, k, v).mask.clone()
        mask[:, :-1] |= mask[:, 1:].clone()
        return Reference(softmax_under(q, k, v, mask), mask)


class Faded(Dotted):
    """Hooks and reference halve what all heads say, and nobody said that it transforms."""

    def head_plan(self, config, plan):
        """All heads are changed."""
        return Heads(calibrated=frozenset((i, h) for i in range(config.layers) for h in range(config.heads)))

    def epilogue(self, view):
        """Half."""
        return view.out * 0.5, view.memo

    def reference(self, q, k, v):
        """Half, too."""
        right = super().reference(q, k, v)
        return Reference(right.out * 0.5, right.mask)


class FadedOpenly(Faded):
    """The same, and it says so: rows still don't add up."""

    actions = frozenset({"visibility", "transform"})


class Summed(Mean):
    """Hooks and reference let a sum stand for what is dropped."""

    def _stand_in(self, x, dim):
        return x.sum(dim, keepdim=True)


class Heavy(Mean):
    """Hooks and reference let the mean weigh more than what it stands for."""

    def _weight(self, count):
        return math.log(count) + 1


# What is held.


class Forgetful(Window):
    """Keeps `recent` - 99 entries instead of `recent` - 1, and `reference` says nothing, as a method once did."""

    def _order(self, positions, view):
        return Retain.ends(positions, self.sink, max(self.recent - 99, 0), slide=True)


class OneLess(Window):
    """Keeps an entry too few."""

    def _order(self, positions, view):
        return Retain.ends(positions, self.sink, self.recent - 2, slide=True)


class WrongEnd(Window):
    """Keeps as many entries as it should, and the oldest ones."""

    def _order(self, positions, view):
        cut = len(positions) > self.sink + self.recent - 1
        return Retain(positions[: self.sink + self.recent - 1] if cut else None, sink=self.sink, slide=self.recent - 1)


class Masked(Dotted):
    """Says that it evicts, and only looks away."""

    actions = frozenset({"eviction"})


class Idle(Window):
    """Says that it acts, and reads and keeps everything."""

    actions = frozenset({"visibility"})
    prefill_plan = AttentionMethod.prefill_plan
    after_prefill = AttentionMethod.after_prefill
    estimate = AttentionMethod.estimate
    head_plan = AttentionMethod.head_plan
    fit = AttentionMethod.fit

    def _mask(self, n):
        return causal(n, n)


class Secret(Dotted):
    """Reads prompts sparsely, and says that it acts in the answer only: its prefixes would be shared with dense."""

    phases = frozenset({"decode"})


# What is foreseen.


class Humble(Window):
    """Foresees half of what it holds."""

    def estimate(self, config, heads, prompt, new):
        """Half."""
        right = super().estimate(config, heads, prompt, new).entries
        return Footprint(tuple(tuple(n // 2 for n in row) for row in right))


class Short(Window):
    """Foresees one entry too few."""

    def estimate(self, config, heads, prompt, new):
        """Forgets the step's own."""
        right = super().estimate(config, heads, prompt, new).entries
        return Footprint(tuple(tuple(n - 1 for n in row) for row in right))


class Boastful(Window):
    """Foresees dense."""

    estimate = AttentionMethod.estimate


class Frozen(Mean):
    """Foresees the prompt only."""

    def estimate(self, config, heads, prompt, new):
        """As if nothing came."""
        return super().estimate(config, heads, prompt, 0)


class Unfitted(Window):
    """Leaves its knobs as they are, whatever the budget."""

    def fit(self, entries, config, plan, prompt, new):
        """Itself."""
        return self


class Overshooting(Window):
    """Takes the budget of all heads for that of one."""

    def fit(self, entries, config, plan, prompt, new):
        """Too long a window."""
        return self.changed(recent=max(entries - self.sink, 1))


class Refusing(Window):
    """Refuses budgets that it meets."""

    fit = AttentionMethod.fit


# What happens around a sequence.


class Chunky(Mean):
    """Cuts after every chunk, and says that chunks change nothing."""

    @property
    def cut_at_end(self):
        """Never mind."""
        return False

    def after_prefill(self, view):
        """What is held, whatever comes."""
        cut = {g: Retain(h.positions[-self.window :]) for g, h in enumerate(view.heads) if not view.full[g]}
        return Outcome(cut)


class Local(Dotted):
    """Counts its dots from the chunk's begin, and says that chunks change nothing."""

    def prefill_plan(self, chunk):
        """Dots behind the offset."""
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
        return Retain.ends(positions, self.sink, self.recent - 1 - 2 * again, slide=True)


class Hasty(Mean):
    """Behind a cached prefix it counts from there."""

    def after_prefill(self, view):
        """The chunk's own tokens instead of the prompt's."""
        if not view.last or view.length <= self.window:
            return Outcome()
        first = max(view.length - self.window, view.offset)
        kept = torch.arange(first, view.length)
        return Outcome({
            g: Retain(kept, Virtual(h.k[:first].mean(0), h.v[:first].mean(0), math.log(first), first))
            for g, h in enumerate(view.heads) if not view.full[g] and first
        })  # fmt: skip


class Leaking(Dotted):
    """Remembers the last position on the class: sequences of a batch read each other's."""

    last: ClassVar[dict] = {}

    def decode_plan(self, step):
        """Up to the longest neighbour's middle."""
        before = self.last.get(step.layer, step.position)
        self.last[step.layer] = step.position
        seen = [t for t in self._seen(step.position).tolist() if t == step.position or t <= before]
        return DecodePlan(Ranges(tuple((t, t + 1) for t in seen)))


class Shared(Dotted):
    """Writes into its memo, which two answers to a prompt share."""

    def after_prefill(self, view):
        """A list that grows."""
        return Outcome(memo=[])

    def decode_plan(self, step):
        """One dot fewer with every step of anybody."""
        step.memo.append(step.position)
        seen = self._seen(step.position).tolist()
        return DecodePlan(Ranges(tuple((t, t + 1) for t in seen if t > len(step.memo) - step.number)))


class Dicing(Dotted):
    """Draws its dots."""

    def _seen(self, position):
        at = torch.arange(position + 1)
        return at[(position - at < self.window) | (torch.rand(position + 1) < 1 / self.stride)]


# Knobs and plans.


class Deaf(Dotted):
    """Has a knob that nothing asks for."""

    loudness: int = Field(3, ge=1)


class HalfDeaf(Dotted):
    """Has a knob that its reference follows and its hooks don't; the contract's setting hides that."""

    skip: int = Field(0, ge=0)

    def reference(self, q, k, v):
        """Without the first tokens."""
        right = super().reference(q, k, v)
        mask = right.mask.clone()
        mask[:, :, : self.skip] &= torch.eye(q.shape[1], dtype=torch.bool)[:, : self.skip]
        return Reference(softmax_under(q, k, v, mask), mask)


class Anonymous(Dotted):
    """Leaves its knobs out of what cached prefixes depend on."""

    def identity(self):
        """The name only."""
        return {"method": self.name}


class Planless(Mean):
    """Says that it needs a head plan, and ignores it."""

    needs_plan = True

    def head_plan(self, config, plan):
        """None are full."""
        return Heads(((False,) * config.kv_heads,) * config.layers)


class Molten(Window):
    """Can be changed while it serves."""

    model_config: ClassVar = {"frozen": False}


class Twisted(Window):
    """Does not come back from JSON as what it was."""

    def model_dump_json(self, **options):
        """Without the window."""
        return super().model_dump_json(exclude={"recent"})


MUTANTS = {
    Zeros: "reference", Scaled: "reference", Regrouped: "reference", Foresighted: "reference", Faded: "reference",
    FadedOpenly: "reference", Summed: "reference", Heavy: "engine", Forgetful: "retention", OneLess: "retention",
    WrongEnd: "retention", Masked: "retention", Idle: "effect", Secret: "effect", Humble: "estimate",
    Short: "estimate", Boastful: "estimate", Frozen: "estimate", Unfitted: "fit", Overshooting: "fit", Refusing: "fit",
    Chunky: "chunks", Local: "chunks", Learning: "preemption", Hasty: "prefixes", Leaking: "neighbours",
    Shared: "neighbours", Dicing: "repeats", Deaf: "knobs", HalfDeaf: "knobs", Anonymous: "knobs", Planless: "plan",
    Molten: "facts", Twisted: "facts",
}  # fmt: skip
"""Broken methods, and the check that must refuse each."""
