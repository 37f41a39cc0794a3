"""Attention methods that are broken on purpose, each in one way, with the check of the contract that refuses it."""

from collections import Counter

import torch
from pydantic import Field

from fovea.errors import InvalidOption
from services.llm_longctx.methods import AttentionMethod, Reference
from services.llm_longctx.methods.core.hook_results import CacheUpdate, Footprint
from services.llm_longctx.methods.knorm import KNorm
from services.llm_longctx.methods.power import Power
from services.llm_longctx.methods.razor import Razor
from services.llm_longctx.methods.snapkv import SnapKv
from services.llm_longctx.methods.streaming_llm import StreamingLlm
from services.llm_longctx.tests.method_contract.oracle import PLAN, parse, softmax_under

BROKEN: dict[str, tuple[str, type[AttentionMethod]]] = {}


def broken(check: str, says: str, base: type[AttentionMethod], **changed) -> type[AttentionMethod]:
    BROKEN[says] = check, type(base)(says, (base,), {"__module__": __name__, **changed})
    return BROKEN[says][1]


def see_ahead(self, q, k, v, **inputs):
    mask = Power.reference(self, q, k, v, **inputs).mask.clone()
    mask[:, :-1] |= mask[:, 1:].clone()
    return Reference(softmax_under(q, k, v, mask), mask)


def halve(self, q, k, v, **inputs):
    right = Power.reference(self, q, k, v, **inputs)
    return Reference(right.out * 0.5, right.mask)


broken("reference", "forgets the root of the width", Power,
       reference=lambda self, q, k, v, **_: Power.reference(self, q * q.shape[-1] ** 0.5, k, v))  # fmt: skip
broken("reference", "sees what comes", Power, reference=see_ahead)
halving = broken("reference", "halves what all heads say", Power, reference=halve)
broken("reference", "halves openly", halving, actions=frozenset({"visibility", "transform"}))


def roll_queries(self, view):
    fields = {name: getattr(view, name) for name in view.__dataclass_fields__}
    return SnapKv.after_prefill(self, type(view)(**{**fields, "q": view.q.roll(2, 0)}))


broken("engine", "leaves an entry out of the mean", Razor,
       _mean=lambda self, head, begin, end: Razor._mean(self, head, begin, end - 1))  # fmt: skip
broken("engine", "never cuts while decoding", KNorm, after_decode=lambda _self, step, _: CacheUpdate(memo=step.memo))
broken("engine", "is scored by the next group's queries", SnapKv, after_prefill=roll_queries)


class Turned(KNorm):
    def score(self, view):
        return -super().score(view)


def turn(self):
    return Turned.model_construct(**dict(self))


def keep_more(extra):
    return lambda self, *given: KNorm._cut(self, *given[:4], given[4] + extra, *given[5:])


broken("retention", "keeps an entry too few", KNorm, _cut=keep_more(-1))
broken("retention", "keeps an entry more than it foresees", KNorm, _cut=keep_more(1))
broken("retention", "says that it evicts, and only looks away", Power, actions=frozenset({"eviction"}))
broken("retention", "keeps the lowest scores", KNorm, after_prefill=lambda self, view: turn(self).after_prefill(view))
broken("retention", "evicts sinks", StreamingLlm,
       _cut=lambda self, *given: StreamingLlm._cut(self.with_knobs(sink=0), *given))  # fmt: skip

broken("effect", "says that it acts, and reads and keeps everything", KNorm, contract_knobs={"ratio": 1.0})
broken("effect", "reads prompts sparsely in secret", Power, phases=frozenset({"decode"}))


def foresee_less(self, *given):
    return Footprint(tuple(tuple(n - 1 for n in row) for row in KNorm.estimate(self, *given).entries))


broken("estimate", "foresees an entry too few", KNorm, estimate=foresee_less)
broken("estimate", "foresees dense", KNorm, estimate=AttentionMethod.estimate)
broken("estimate", "forgets what is appended", KNorm,
       estimate=lambda self, config, heads, prompt, _: KNorm.estimate(self, config, heads, prompt, 0))  # fmt: skip


def refuse(*_):
    raise InvalidOption("Nothing fits.")


broken("fit", "leaves its knobs as they are", KNorm, fit=lambda self, *_: self)
broken("fit", "takes the budget of all heads for that of one", KNorm,
       fit=lambda self, entries, *_: self.with_knobs(budget=entries))  # fmt: skip
broken("fit", "refuses budgets that it meets", KNorm, fit=refuse)

broken("chunks", "scores by where a chunk began", KNorm,
       after_prefill=lambda self, view: KNorm.after_prefill(turn(self) if view.offset else self, view))  # fmt: skip

SEEN: Counter[float] = Counter()


def keep_less_again(self, heads, q, tokens, layer, *more):
    prompt = float(next(iter(heads.values())).k.sum())
    less = -2 * (SEEN[prompt] > 0)
    SEEN[prompt] += layer == 1
    return keep_more(less)(self, heads, q, tokens, layer, *more)


broken("preemption", "keeps less of a prompt that it has read before", KNorm, _cut=keep_less_again)


def trust_queries(self, memo, q, offset, most, summary):
    found = SnapKv._remember(self, None if memo is None else type(memo)(memo.q, offset), q, offset, most, summary)
    missing = max(most - found.q.shape[1], 0)
    return type(found)(torch.cat((found.q[:, :1].expand(-1, missing, -1), found.q), 1), found.end)


broken("prefixes", "takes a prefix's queries for its own", SnapKv, _remember=trust_queries,
       min_uncached_tokens=property(lambda _: 1))  # fmt: skip

LARGEST = [0.0]


def round_by_largest(_self, view):
    LARGEST[0] = max(LARGEST[0], float(view.k.norm(dim=-1).max()))
    return -(view.k.norm(dim=-1) * 3 / LARGEST[0]).round()


broken("neighbours", "remembers the largest key of any sequence", KNorm, score=round_by_largest)
broken("facts", "draws its scores", KNorm, score=lambda _self, view: torch.rand(view.positions.shape))
broken("knobs", "has a knob that nothing asks for", KNorm, __annotations__={"loudness": int}, loudness=Field(3, ge=1))
broken("knobs", "leaves its knobs out of what cached prefixes depend on", Power,
       identity=lambda self: {"method": self.name})  # fmt: skip
broken("plan", "needs a head plan, and works by another", Razor,
       head_plan=lambda self, config, plan: Razor.head_plan(self, config, plan and parse(PLAN)))  # fmt: skip
broken("facts", "can be changed while it serves", KNorm, model_config={"frozen": False})
broken("facts", "does not come back from JSON as it was", KNorm,
       model_dump_json=lambda self, **_: KNorm.model_dump_json(self, exclude={"ratio"}))  # fmt: skip
