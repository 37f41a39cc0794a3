"""Attention methods that are broken on purpose, each in one way: sound ones of which some parts are exchanged.

`MUTANTS` says which check of the contract must refuse each of them. None is in the methods' room, so none is found.
"""

import math
from collections import Counter

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
)
from services.llm_longctx.methods.knorm import KNorm
from services.llm_longctx.methods.snapkv import SnapKv
from services.llm_longctx.methods.streaming_llm import StreamingLlm
from services.llm_longctx.tests.method_contract.oracle import causal, softmax_under
from services.llm_longctx.tests.mutants_methods.sound import Dotted, Mean, Window

SOUND = (Window, Dotted, Mean)
MUTANTS: dict[str, tuple[str, type[AttentionMethod]]] = {}


def broken(check: str, says: str, base: type[AttentionMethod], **changed) -> type[AttentionMethod]:
    MUTANTS[says] = check, type(base)(says, (base,), {"__module__": __name__, **changed})
    return MUTANTS[says][1]


def see_ahead(self, q, k, v):
    mask = Dotted.reference(self, q, k, v).mask.clone()
    mask[:, :-1] |= mask[:, 1:].clone()
    return Reference(softmax_under(q, k, v, mask), mask)


def halve(self, q, k, v):
    right = Dotted.reference(self, q, k, v)
    return Reference(right.out * 0.5, right.mask)


def all_heads(_self, config, _plan):
    return HeadRoles(calibrated=frozenset((i, h) for i in range(config.layers) for h in range(config.heads)))


broken("reference", "forgets the root of the width", Window,
       reference=lambda self, q, k, v, **_: Window.reference(self, q * q.shape[-1] ** 0.5, k, v))  # fmt: skip
broken("reference", "sees what comes", Dotted, reference=see_ahead)
halving = broken("reference", "halves what all heads say", Dotted, reference=halve, head_plan=all_heads,
                 epilogue=lambda _self, view: (view.out * 0.5, view.memo))  # fmt: skip
broken("reference", "halves openly", halving, actions=frozenset({"visibility", "transform"}))
broken("reference", "lets a sum stand for what is dropped", Mean, _stand_in=lambda _, x, dim: x.sum(dim, keepdim=True))

broken("engine", "lets the mean weigh too much", Mean, _weight=lambda _self, count: math.log(count) + 1)
broken("engine", "never cuts while decoding", KNorm, after_decode=lambda _self, step, _: CacheUpdate(memo=step.memo))


def roll_queries(self, view):
    fields = {name: getattr(view, name) for name in view.__dataclass_fields__}
    return SnapKv.after_prefill(self, type(view)(**{**fields, "q": view.q.roll(2, 0)}))


broken("engine", "is scored by the next group's queries", SnapKv, after_prefill=roll_queries)


def keep_ends(most):
    return lambda self, positions, _: RetentionPolicy.ends(positions, self.sink, most(self.recent), slide=True)


class Turned(KNorm):
    def score(self, view):
        return -super().score(view)


def turn(self):
    return Turned.model_construct(**dict(self))


def keep_older(self, heads, *more):
    orders = StreamingLlm._cut(self, heads, *more)
    return {g: type(order)(heads[g].positions[: len(order.positions)]) for g, order in orders.items()}


def score_alike(self, view):
    return torch.zeros(view.positions.shape).masked_fill(view.positions < self.sink, math.inf)


broken("retention", "keeps 99 entries too few", Window, _order=keep_ends(lambda recent: max(recent - 99, 0)))
broken("retention", "keeps an entry too few", Window, _order=keep_ends(lambda recent: recent - 2))
broken("retention", "says that it evicts, and only looks away", Dotted, actions=frozenset({"eviction"}))
broken("retention", "keeps the lowest scores", KNorm, after_prefill=lambda self, view: turn(self).after_prefill(view))
broken("retention", "evicts sinks", StreamingLlm,
       _cut=lambda self, *given: StreamingLlm._cut(self.with_knobs(sink=0), *given))  # fmt: skip
broken("retention", "keeps an entry more than it foresees", KNorm,
       _cut=lambda self, heads, q, tokens, layer, count, *more:
       KNorm._cut(self, heads, q, tokens, layer, count + 1, *more))  # fmt: skip
broken("retention", "keeps the older of equal entries", StreamingLlm, score=score_alike, _cut=keep_older)

DENSE = {name: getattr(AttentionMethod, name) for name in ("estimate", "head_plan", "fit")}
broken("effect", "says that it acts, and reads and keeps everything", Window, actions=frozenset({"visibility"}),
       prefill_plan=AttentionMethod.prefill_plan, after_prefill=AttentionMethod.after_prefill,
       _mask=lambda _, n: causal(n, n), **DENSE)  # fmt: skip
broken("effect", "reads prompts sparsely in secret", Dotted, phases=frozenset({"decode"}))


def foresee_less(self, *given):
    return Footprint(tuple(tuple(n - 1 for n in row) for row in Window.estimate(self, *given).entries))


broken("estimate", "foresees an entry too few", Window, estimate=foresee_less)
broken("estimate", "foresees dense", Window, estimate=AttentionMethod.estimate)
broken("estimate", "forgets what is appended", KNorm,
       estimate=lambda self, config, heads, prompt, _: KNorm.estimate(self, config, heads, prompt, 0))  # fmt: skip


def refuse(*_):
    detail = "Nothing fits."
    raise InvalidOption(detail)


broken("fit", "leaves its knobs as they are", Window, fit=lambda self, *_: self)
broken("fit", "takes the budget of all heads for that of one", Window,
       fit=lambda self, entries, *_: self.with_knobs(recent=max(entries - self.sink, 1)))  # fmt: skip
broken("fit", "refuses budgets that it meets", Window, fit=refuse)


def cut_each_chunk(self, view):
    cut = {g: RetentionPolicy(h.positions[-self.window :]) for g, h in enumerate(view.heads) if not view.full[g]}
    return CacheUpdate(cut)


def dot_chunks(self, chunk):
    rows = []
    for t in range(chunk.offset, chunk.k.shape[1]):
        at = torch.arange(t + 1)
        rows.append(TokenRows(t, t + 1, at[(t - at < self.window) | ((at - chunk.offset) % self.stride == 0)]))
    return TokenLists(tuple(rows))


broken("chunks", "cuts after every chunk", Mean, cut_at_end=property(lambda _: False), after_prefill=cut_each_chunk)
broken("chunks", "counts its dots from the chunk's begin", Dotted, prefill_plan=dot_chunks)
broken("chunks", "scores by where a chunk began", KNorm,
       after_prefill=lambda self, view: KNorm.after_prefill(turn(self) if view.offset else self, view))  # fmt: skip

SEEN: Counter[float] = Counter()


def keep_less_again(self, positions, view):
    prompt = float(view.heads[0].k.sum())
    less = 2 * (SEEN[prompt] > 0)
    SEEN[prompt] += view.layer == 1
    return RetentionPolicy.ends(positions, self.sink, self.recent - 1 - less, slide=True)


broken("preemption", "keeps less of a prompt that it has read before", Window, _order=keep_less_again)


def count_from_prefix(self, view):
    if not view.last or view.length <= self.window:
        return CacheUpdate()
    first = max(view.length - self.window, view.offset)
    cut = [(g, head) for g, head in enumerate(view.heads) if not view.full[g] and first]
    means = {g: Virtual(h.k[:first].mean(0), h.v[:first].mean(0), math.log(first), first) for g, h in cut}
    return CacheUpdate({g: RetentionPolicy(torch.arange(first, view.length), one) for g, one in means.items()})


def trust_queries(self, memo, q, offset, most, summary):
    found = SnapKv._remember(self, None if memo is None else type(memo)(memo.q, offset), q, offset, most, summary)
    missing = max(most - found.q.shape[1], 0)
    return type(found)(torch.cat((found.q[:, :1].expand(-1, missing, -1), found.q), 1), found.end)


broken("prefixes", "counts from a cached prefix", Mean, after_prefill=count_from_prefix)
broken("prefixes", "takes a prefix's queries for its own", SnapKv, _remember=trust_queries,
       min_uncached_tokens=property(lambda _: 1))  # fmt: skip

LAST: dict[int, int] = {}
LARGEST = [0.0]


def remember_position(self, step):
    before = LAST.get(step.layer, step.position)
    LAST[step.layer] = step.position
    seen = [t for t in self._seen(step.position).tolist() if t == step.position or t <= before]
    return DecodePlan(Ranges(tuple((t, t + 1) for t in seen)))


def share_memo(self, step):
    step.memo.append(step.position)
    seen = [t for t in self._seen(step.position).tolist() if t > len(step.memo) - step.number]
    return DecodePlan(Ranges(tuple((t, t + 1) for t in seen)))


def round_by_largest(_self, view):
    LARGEST[0] = max(LARGEST[0], float(view.k.norm(dim=-1).max()))
    return -(view.k.norm(dim=-1) * 3 / LARGEST[0]).round()


def dice(self, position):
    at = torch.arange(position + 1)
    return at[(position - at < self.window) | (torch.rand(position + 1) < 1 / self.stride)]


broken("neighbours", "remembers the last position of any sequence", Dotted, decode_plan=remember_position)
broken("neighbours", "writes into a memo that two answers share", Dotted, decode_plan=share_memo,
       after_prefill=lambda *_: CacheUpdate(memo=[]))  # fmt: skip
broken("neighbours", "remembers the largest key of any sequence", KNorm, score=round_by_largest)
broken("repeats", "draws its dots", Dotted, _seen=dice)


def skip_first(self, q, k, v):
    mask = Dotted.reference(self, q, k, v).mask.clone()
    mask[:, :, : self.skip] &= torch.eye(q.shape[1], dtype=torch.bool)[:, : self.skip]
    return Reference(softmax_under(q, k, v, mask), mask)


broken("knobs", "has a knob that nothing asks for", Dotted, __annotations__={"loudness": int}, loudness=Field(3, ge=1))
broken("knobs", "has a knob that its hooks don't follow", Dotted, __annotations__={"skip": int}, skip=Field(0, ge=0),
       reference=skip_first)  # fmt: skip
broken("knobs", "leaves its knobs out of what cached prefixes depend on", Dotted,
       identity=lambda self: {"method": self.name})  # fmt: skip
broken("plan", "needs a head plan, and ignores it", Mean, needs_plan=True, head_plan=Window.head_plan)
broken("facts", "can be changed while it serves", Window, model_config={"frozen": False})
broken("facts", "does not come back from JSON as it was", Window,
       model_dump_json=lambda self, **_: Window.model_dump_json(self, exclude={"recent"}))  # fmt: skip
