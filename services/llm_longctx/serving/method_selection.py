"""Method selection: from the protocol's `longctx` field to a policy, and from request statistics to `usage`.

Memory budgets become knobs here. Knows methods by their contract and engines by their sizes; knows nothing about text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fovea.api.longctx import LongctxOptions, LongctxUsage
from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine, GenerationRequest
from services.llm_longctx.engine.attention.method_policy import Policy, windows_of
from services.llm_longctx.kv_cache import CacheBits
from services.llm_longctx.methods import AttentionMethod, compose, method
from services.llm_longctx.serving.cache_dtype import name_cache_dtype, read_cache_dtype
from shared.lm.config import DecoderConfig
from shared.lm.head_plan import HeadPlan


class BudgetNotMet(InvalidOption):
    """A method that frees memory can't free enough for this prompt.

    Attributes:
        nearest: The method with the knobs under which its pages take the fewest bytes; None where none fit at all.
    """

    nearest: Policy | None = None


DEFAULT_PLAN = "default"
"""Name of the plan that a request gets which names none."""


def select_policy(
    engine: Engine, options: LongctxOptions | None, plans: Mapping[str, HeadPlan], prompt: int, new: int
) -> Policy:
    """Select the method that a request asks for, fitted to its budget.

    Args:
        engine: The engine that will serve it.
        options: The `longctx` field; None is dense.
        plans: Head plans by name.
        prompt: Tokens of the prompt.
        new: Tokens that may be produced.

    Raises:
        InvalidOption: No such method, knob or plan; methods that can't be composed; a budget that can't be met.
        BadInput: A plan for another model.
    """
    if options is None:
        return engine.policy
    plan = find_plan(options.plan, plans)
    requested = build_method(options)
    bits = None if options.kv_cache_dtype is None else read_cache_dtype(options.kv_cache_dtype)
    if options.kv_bytes is None and options.kv_ratio is None:
        return engine.policy_of(requested, plan, bits)
    _check_budget(options, requested)
    budget = options.kv_bytes or int((options.kv_ratio or 1) * engine.dense_bytes(prompt + new))
    given = options.model_dump(include={"kv_bytes", "kv_ratio"}, exclude_none=True)
    try:
        return fit_policy(engine, requested, plan, budget, prompt, new, bits).with_budget(requested, given)
    except BudgetNotMet as error:
        if error.nearest is not None:
            error.nearest = error.nearest.with_budget(requested, given)
        raise


def select_served_policy(
    engine: Engine, options: LongctxOptions | None, plans: Mapping[str, HeadPlan], prompt: int, new: int
) -> tuple[Policy, str | None, str | None]:
    """As `select_policy`, but what serves where a budget can't be met is as the request's `on_miss` says.

    Returns:
        The policy; why dense serves, or None; how the budget is missed, or None.
    """
    try:
        return select_policy(engine, options, plans, prompt, new), None, None
    except BudgetNotMet as error:
        if options is None or options.on_miss == "error":
            raise
        if options.on_miss == "nearest" and error.nearest is not None:
            return error.nearest, None, error.detail
        dtype = options.kv_cache_dtype
        bits = engine.policy.cache_bits if dtype is None else read_cache_dtype(dtype)
        return engine.dense.with_cache(bits), f"The budget can't be met, dense serves it. {error.detail}", None


def _check_budget(options: LongctxOptions, requested: AttentionMethod) -> None:
    """Refuse two budgets in one request. Raises InvalidOption: There are two."""
    named = [name for name in ("kv_bytes", "kv_ratio") if getattr(options, name) is not None]
    if requested.frees_memory:
        named += sorted({"budget", "ratio"} & {**(options.model_extra or {}), **options.knobs}.keys())
    if len(named) > 1:
        detail = f"Give either {named[0]} or {named[1]}: both say how much is kept."
        raise InvalidOption(detail, field=f"longctx.{named[1]}")


def build_method_usage(requests: Sequence[GenerationRequest], backend: str, default: Policy) -> LongctxUsage:
    """Joint cost of the prompts of one HTTP request."""
    policy = requests[0].policy or default
    stats = [request.stats for request in requests]
    held, dense = sum(s.kv_bytes for s in stats), sum(s.kv_bytes_dense for s in stats)
    return LongctxUsage(
        method=policy.method.name, knobs=policy.method.model_dump(mode="json"), kv_bytes=held, kv_bytes_dense=dense,
        kv_ratio=held / dense if dense else 1.0, kv_cache_dtype=name_cache_dtype(policy.cache_bits),
        prefill_density=sum(s.prefill_density for s in stats) / len(stats), full_steps=max(s.full_steps for s in stats),
        backend=backend, cached_tokens=sum(s.cached_tokens for s in stats), preempted=sum(s.preempted for s in stats),
        fallback=next((s.fallback for s in stats if s.fallback), None),
        budget_missed=next((s.budget_missed for s in stats if s.budget_missed), None),
    )  # fmt: skip


def build_method(options: LongctxOptions) -> AttentionMethod:
    """The method, or the composition, with its knobs."""
    beside, knobs = options.model_extra or {}, options.knobs
    if twice := sorted(beside.keys() & knobs.keys()):
        raise InvalidOption(f"The knob {twice[0]} is given twice.", field=f"longctx.{twice[0]}")
    single = method(options.method, **beside, **knobs)
    if options.prefill is None and options.decode is None:
        return single
    heads = None if single.name == "dense" else single
    return compose(prefill=_part(options.prefill), decode=_part(options.decode), plan=heads)


def _part(given: str | dict[str, Any] | None) -> AttentionMethod:
    """One part of a composition: a name, or `{"method": name, knobs…}`."""
    if isinstance(given, dict):
        return method(str(given.get("method", "dense")), **{k: v for k, v in given.items() if k != "method"})
    return method(given or "dense")


def find_plan(given: str | dict[str, Any] | None, plans: Mapping[str, HeadPlan]) -> HeadPlan | None:
    """A head plan by name, or given; None is the default one.

    Raises InvalidOption: there is none of that name; Malformed: it is not a plan.
    """
    if given is None:
        return plans.get(DEFAULT_PLAN)
    if isinstance(given, dict):
        return HeadPlan.parse(given)
    if (found := plans.get(given)) is None:
        detail = f"There is no head plan {given!r} for this model; known are {', '.join(plans) or 'none'}."
        raise InvalidOption(detail, hint="Make one with `fovea probe head-plans`.", field="longctx.plan")
    return found


def fit_policy(
    engine: Engine,
    method: AttentionMethod,
    plan: HeadPlan | None,
    budget: int,
    prompt: int,
    new: int,
    cache_bits: CacheBits | Literal[16] | None = None,
) -> Policy:
    """Knobs under which pages, rounded up head by head, stay within the budget.

    A budget is met in entries, and pages round up: so the entries are searched by bisection. Raises BudgetNotMet: none
    do; InvalidOption: the method frees no memory.
    """
    bits = engine.policy.cache_bits if cache_bits is None else cache_bits
    config, page = engine.model.config, engine.pool.page
    # In few bits a budget may hold more than there is, and layers next to sliding ones more than an even share.
    too_few, too_many = -1, config.layers * config.kv_heads * -(-(prompt + new) // page) * page + 1
    pages = engine.pool if bits == 16 else engine.pool.open_packed(bits)
    entries = start = min(budget // (pages.page_bytes // page), too_many - 1)
    found: dict[int, Policy] = {}
    reason: InvalidOption | None = None
    while too_many - too_few > config.layers * config.kv_heads or not found:
        try:
            policy = engine.policy_of(_fit_knobs(method, entries, config, plan, prompt, new), plan, bits)
        except BudgetNotMet as error:
            reason, too_few = error, entries
        else:
            held = policy.nbytes(prompt, new, engine.pool)
            if held <= budget and entries == start and not any(windows_of(config)):
                return policy
            found[held] = policy
            too_few, too_many = (entries, too_many) if held <= budget else (too_few, entries)
        if too_many - too_few < 2:
            break
        entries = (too_few + too_many) // 2
    if met := [held for held in found if held <= budget]:
        return found[max(met)]
    detail = f"{method.name} can't keep within {budget:,} bytes"
    told = reason.detail if reason else ""
    missed = BudgetNotMet(f"{detail}; its pages take at least {min(found):,}." if found else told, field="longctx")
    missed.hint = 'Ask for more, for another method, or for what is nearest with on_miss "nearest".'
    missed.nearest = found[min(found)] if found else None
    raise missed


def _fit_knobs(
    method: AttentionMethod, entries: int, config: DecoderConfig, plan: HeadPlan | None, prompt: int, new: int
) -> AttentionMethod:
    """The fitted method; a method that frees memory, but not enough here, raises `BudgetNotMet`."""
    try:
        return method.fit(entries, config, plan, prompt, new)
    except InvalidOption as error:
        if method.frees_memory:
            raise BudgetNotMet(error.detail, hint=error.hint, field=error.field) from error
        raise
