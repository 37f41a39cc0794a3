"""Bytes that a method holds, against its forecast and its budget."""

from fovea.errors import InvalidOption
from services.llm_longctx.methods import AttentionMethod
from services.llm_longctx.tests.method_contract import oracle


def check_estimate(cls: type[AttentionMethod]) -> None:
    """The forecast is at least the held bytes, and at most a page per run above them, at every moment."""
    config = oracle.model().config
    for how in (*oracle.trials(cls), *oracle.default(cls)):
        footprint = how.estimate(config, how.head_plan(config, oracle.parse(oracle.usual_plan(how))), 31, oracle.NEW)
        runs = config.layers * config.kv_heads * (2 if footprint.compact is not None else 1)
        for n in (1, 2, 3, 6, 9, 13, 31) if how in oracle.trials(cls) else (1, 31):
            fed = oracle.NEW if n < 14 else 13
            played = oracle.play(how, oracle.tokens(n, n), oracle.MINE[:fed])
            for new, (held, foreseen) in enumerate(zip(played.pages, played.foreseen, strict=True)):
                where = f"{how.name} {how.model_dump_json()}, {n} tokens and {new} more"
                assert held <= foreseen, f"{where}: {held} pages are held, and {foreseen} were foreseen"
                most = runs + (2 * _pages(n + new) if footprint.is_bound else held)
                assert foreseen <= most, f"{where}: {foreseen} pages were foreseen, and {held} are held"


def _pages(entries: int, page: int = 4) -> int:
    return oracle.model().config.layers * oracle.model().config.kv_heads * -(-entries // page)


def check_fit(cls: type[AttentionMethod]) -> None:
    """Fitted knobs meet their budget in what is held; what fits already is not refused."""
    config, n = oracle.model().config, 47
    dense = config.layers * config.kv_heads * (n + oracle.NEW)
    for how in oracle.trials(cls):
        own = _entries(how, n)
        budgets = [int(dense * share) for share in (1.5, 1, 0.9, 0.7, 0.5, 0.3, 0.1)]
        met = 0
        for budget in sorted({*budgets, own}, reverse=True):
            if (fitted := _fitted(how, budget, n)) is None:
                assert budget < max(own, 1), f"{how.name} holds {own} entries and refuses a budget of {budget}"
                continue
            assert isinstance(fitted, cls), f"{how.name} is fitted to {budget} as {type(fitted).__name__}"
            where = f"{how.name} fitted to {budget} entries is {fitted.model_dump_json()}"
            assert _entries(fitted, n) <= budget, f"{where}: it foresees {_entries(fitted, n)}"
            held = max(oracle.play(fitted, oracle.tokens(n), oracle.MINE[: oracle.NEW], page=1).pages)
            assert held <= budget, f"{where}: it holds {held}"
            met += budget < dense
        assert met or "eviction" not in how.actions, f"{how.name} evicts, and meets no budget below dense"


def _fitted(how: AttentionMethod, budget: int, n: int) -> AttentionMethod | None:
    try:
        return how.fit(budget, oracle.model().config, oracle.parse(oracle.usual_plan(how)), n, oracle.NEW)
    except InvalidOption:
        return None


def _entries(how: AttentionMethod, n: int) -> int:
    config = oracle.model().config
    told = how.estimate(config, how.head_plan(config, oracle.parse(oracle.usual_plan(how))), n, oracle.NEW)
    return sum(map(sum, told.entries)) + (sum(map(sum, told.compact)) if told.compact is not None else 0)
