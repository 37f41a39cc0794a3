"""Method variants of a RULER-form evaluation: methods fitted to a share of dense's bytes, and baselines next to them.

Knobs follow from the budget by rules that are written here, never from the samples that are judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fovea.api.longctx import LongctxOptions
from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.serving.cache_dtype import read_cache_dtype
from services.llm_longctx.serving.method_selection import build_method, find_plan, fit_policy
from shared.lm.head_plan import HeadPlan

BASELINES = ("truncate", "empty")
"""Dense on the context's two ends, and on nothing."""


@dataclass(frozen=True)
class MethodVariant:
    """A method, or a baseline, as it is measured at one share of dense's bytes; None: as its knobs say."""

    name: str
    budget: float | None
    options: LongctxOptions

    def policy(self, engine: Engine, plans: Mapping[str, HeadPlan], tokens: int) -> Policy:
        """The method, fitted to what dense would hold of so many tokens; FoveaError if it can't be met."""
        if self.name in BASELINES or self.name == "dense":
            return engine.dense
        # Without a plan of their own evicting methods cut all heads; the default plan is for those that work by one.
        wanted = build_method(self.options)
        plan = find_plan(self.options.plan, plans) if self.options.plan is not None or wanted.needs_plan else None
        dtype = self.options.kv_cache_dtype
        bits = None if dtype is None else read_cache_dtype(dtype)
        if self.budget is None:
            return engine.policy_of(wanted, plan, bits)
        return fit_policy(engine, wanted, plan, int(self.budget * engine.dense_bytes(tokens)), tokens, 0, bits)

    def trim(self, context_ids: Sequence[int], seen: int) -> list[int]:
        """The context as the variant reads it, of `seen` tokens that methods compress."""
        if self.name == "empty":
            return list(context_ids[:1])
        if self.name == "truncate" and self.budget is not None:
            beside = seen - len(context_ids)
            half = max((int(seen * self.budget) - beside) // 2, 1)
            return [*context_ids[:half], *context_ids[-half:]]
        return list(context_ids)


def list_variants(methods: Sequence[LongctxOptions], budgets: Sequence[float]) -> list[MethodVariant]:
    """Dense first, then baselines, then each method at each budget; once if it frees nothing or none is given.

    Raises InvalidOption: two methods have one name, and their answers would be taken for those of one.
    """
    dense, budgets = LongctxOptions(), list(dict.fromkeys(budgets))
    found = [MethodVariant("dense", None, dense), MethodVariant("empty", None, dense)]
    found += [MethodVariant("truncate", budget, dense) for budget in budgets]
    for options in methods:
        facts = options.model_dump(exclude_unset=True)
        label = facts.pop("label", None)
        plain = LongctxOptions.model_validate(facts)
        wanted = build_method(plain)
        shares, name = (budgets if "eviction" in wanted.actions else ()) or (None,), str(label or wanted.name)
        if name in {one.name for one in found}:
            detail = f"Two methods are called {name!r}; dense, {' and '.join(BASELINES)} are always measured."
            raise InvalidOption(detail, hint="Give each a `label` of its own.", field="methods")
        found += [MethodVariant(name, budget, plain) for budget in shares]
    return found
