"""The checks of a method: its description of itself, its results, its bytes, and surroundings that must not show."""

import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from pydantic import ValidationError

from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine, Request, prefix_cache
from services.llm_longctx.engine.attention import method_policy
from services.llm_longctx.methods import AttentionMethod, method
from services.llm_longctx.tests.method_contract.oracle import (
    CLOSE,
    LENGTHS,
    MINE,
    NEW,
    OTHER_PLAN,
    PLAN,
    Played,
    acts_on,
    borders,
    causal,
    default,
    expected,
    model,
    near,
    of_layer,
    parse,
    play,
    short_model,
    softmax_under,
    tokens,
    trials,
    usual_plan,
)


def check_reference(cls: type[AttentionMethod]) -> None:
    """It is causal attention under its mask: rows mix values that they may see, whatever the heads and lengths."""
    for how in trials(cls):
        for H, G, N in ((4, 2, 1), (6, 2, 37), (4, 4, 2), (3, 1, 53)):
            torch.manual_seed(N)
            q, k, v = (torch.randn(heads, N + NEW, 8, dtype=torch.float64) for heads in (H, G, G))
            before = q.clone(), k.clone(), v.clone()
            facts = {"layer": 0, "layers": 2, "rope_theta": 10000.0, "wo": torch.randn(6, H * 8, dtype=q.dtype)}
            wanted, again = (expected(how, q, k, v, N, **facts) for _ in range(2))
            where = f"{cls.name}'s reference on {H} over {G} heads, {N} tokens"
            assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True)), f"{where} writes its inputs"
            assert wanted.out.dtype == torch.float64, f"{where} is not float64"
            assert torch.isfinite(wanted.out).all(), f"{where} is not finite"
            near(wanted.out, again.out, f"{where}, twice", 0.0)
            _check_mask(wanted.mask, N, where)
            _check_mixing(how, q, k, v, N, wanted, where, facts)


def _check_mask(mask: torch.Tensor, prompt: int, where: str) -> None:
    total = mask.shape[1]
    assert mask.dtype == torch.bool, f"{where}: the mask is not bool"
    assert not (mask & ~causal(total, total)).any(), f"{where}: a row sees what comes after it"
    assert mask.any(-1).all(), f"{where}: a row sees nothing"
    assert mask.diagonal(dim1=1, dim2=2)[:, prompt:].all(), f"{where}: a step does not see its own entry"


def _check_mixing(how: AttentionMethod, q, k, v, N: int, wanted, where: str, facts: Mapping) -> None:
    """Rows are convex mixtures of the values up to them; by softmax under the mask, unless entries are transformed."""
    constant = expected(how, q, k, torch.full_like(v, 0.75), N, **facts).out
    near(constant, torch.full_like(constant, 0.75), f"{where}: weights of a row don't add up to 1")
    R, total = q.shape[0] // k.shape[0], q.shape[1]
    values = v.repeat_interleave(R, 0)
    lowest, highest = values.cummin(1).values, values.cummax(1).values
    inside = (wanted.out >= lowest - CLOSE) & (wanted.out <= highest + CLOSE)
    assert inside.all(), f"{where}: a row is no mixture of the values that it may see"
    if "transform" in how.actions or _stands_in(how):
        return
    near(wanted.out, softmax_under(q, k, v, wanted.mask, wanted.weight), f"{where} against softmax under its own mask")
    assert (wanted.weight >= 0).all(), f"{where}: a pair counts less than once"
    whole = (wanted.mask.sum(-1) == torch.arange(1, total + 1)) & ~wanted.weight.any(-1)
    dense = softmax_under(q, k, v, causal(total, total))
    near(wanted.out[whole], dense[whole], f"{where}: rows that see everything are not dense")


def _stands_in(how: AttentionMethod) -> bool:
    """Whether entries are held that stand for dropped ones: then the mask alone does not say what is mixed."""
    played = play(how, tokens(47, 47), MINE[:NEW])
    return any(-1 in row for time in played.positions for layer in time for row in layer)


def check_engine(cls: type[AttentionMethod]) -> None:
    """Every layer's output is the reference's, in prompt and answer, under the contract's knobs and the defaults."""
    for how in (*trials(cls), *default(cls)):
        named = inspect.signature(how.reference).parameters
        for n in LENGTHS if how in trials(cls) else LENGTHS[::4]:  # by default little is cut of so few
            ways: list[dict] = [{}]
            if "chunks" in named and how.supports.chunked_prefill and n > 2:
                ways += [{"chunks": [n - 2, 2]}, {"chunks": [n // 3, n - n // 3]}]
            if "boundaries" in named:
                ways += [{"boundaries": borders(n)}]
            for way in ways:
                played = play(how, tokens(n, n), MINE[:NEW], **way)
                for layer in range(len(played.layers)):
                    _check_layer(how, played, layer, way)


def _check_layer(how: AttentionMethod, played: Played, layer: int, way: Mapping) -> None:
    q, _, _, out = played.layers[layer]
    wanted, N = of_layer(how, played, layer, **way), played.prompt
    where = f"{how.name} {how.model_dump_json()}, {N} tokens in {way or 'one chunk'}, layer {layer}"
    near(out[:, :N], wanted.out[:, :N], f"{where}: prompt")
    near(out[:, N:], wanted.out[:, N:], f"{where}: answer")
    if "transform" in how.actions:
        return
    for step in range(q.shape[1] - N):
        for g, held in enumerate(played.held[step][layer]):
            if (held.positions < 0).any():
                _check_stand_in(played, layer, g, step, out, where)


def _check_stand_in(played: Played, layer: int, g: int, step: int, out, where: str) -> None:
    """A step's output is softmax over what its head holds; a virtual entry weighs at most what it stands for."""
    q, k, v, _ = played.layers[layer]
    held, now = played.held[step][layer][g], played.prompt + step
    weight = torch.zeros(len(held.positions)) if held.log_weight is None else held.log_weight
    virtual = held.positions < 0
    real = held.positions[~virtual]
    dropped = torch.tensor(sorted(set(range(now)) - set(real.tolist())), dtype=torch.long)
    assert virtual.sum() == 1, f"{where}: {int(virtual.sum())} virtual entries"
    assert not weight[~virtual].any(), f"{where}: real entries have log-weights"
    if weight[virtual] > -math.inf:
        assert weight[virtual] <= math.log(max(len(dropped), 1)) + CLOSE, f"{where}: the virtual entry weighs too much"
        for one, all_of in ((held.k[virtual][0], k[g, dropped]), (held.v[virtual][0], v[g, dropped])):
            inside = (one >= all_of.amin(0) - CLOSE) & (one <= all_of.amax(0) + CLOSE)
            assert inside.all(), f"{where}: the virtual entry is no mean of what was dropped"
    R = q.shape[0] // k.shape[0]
    keys, values = torch.cat((held.k, k[g, now : now + 1])), torch.cat((held.v, v[g, now : now + 1]))
    mine = softmax_under(
        q[g * R : (g + 1) * R, now : now + 1], keys[None], values[None], torch.ones(1, len(keys), dtype=torch.bool),
        torch.cat((weight, weight.new_zeros(1))),
    )  # fmt: skip
    near(out[g * R : (g + 1) * R, now : now + 1], mine, f"{where}: step {step + 1} against what head {g} holds")


def check_retention(cls: type[AttentionMethod]) -> None:
    """Heads hold exactly what the reference attends to next; full heads, and methods that free nothing, hold all."""
    for how in trials(cls):
        evicts = False
        for n in LENGTHS:
            played = play(how, tokens(n, n), MINE[:NEW])
            for layer in range(len(played.layers)):
                evicts |= _check_held(how, played, layer)
        if how.actions:
            assert evicts == ("eviction" in how.actions), f"{how.name} says {set(how.actions)} and evicts: {evicts}"


def _check_held(how: AttentionMethod, played: Played, layer: int) -> bool:
    """One layer of one sequence; whether anything was evicted."""
    wanted, R, evicts = of_layer(how, played, layer), model().config.heads // model().config.kv_heads, False
    for step in range(NEW):
        now = played.prompt + step
        for g in range(model().config.kv_heads):
            held = {p for p in played.positions[step][layer][g] if p >= 0}
            read = set(wanted.mask[g * R : (g + 1) * R, now, :now].any(0).nonzero()[:, 0].tolist())
            full = played.heads.full is None or played.heads.full[layer][g]
            where = f"{how.name} {how.model_dump_json()}, {played.prompt} tokens, layer {layer}, head {g}, step {step}"
            assert read <= held, f"{where}: {sorted(read - held)} are to be read and gone"
            assert not full or held == set(range(now)), f"{where}: a full head lost entries"
            if len(held) < now:
                evicts = True
                idle = held - read
                assert "visibility" in how.actions or not idle, f"{where}: {sorted(idle)} are held and never read"
    return evicts


def check_effect(cls: type[AttentionMethod]) -> None:
    """It does something where it says that it acts, and nothing where it does not."""
    acts = False
    for how in trials(cls):
        for chunks in (None, [16, 31]) if how.supports.chunked_prefill else (None,):
            played = play(how, tokens(47, 47), MINE[:NEW], chunks=chunks)
            N = played.prompt
            for layer, (q, k, v, out) in enumerate(played.layers):
                dense = softmax_under(q, k, v, causal(q.shape[1], q.shape[1]))
                changed = (out - dense).abs().amax((0, 2)) > CLOSE
                acts |= bool(changed.any())
                where = f"{how.name} {how.model_dump_json()}, layer {layer}"
                for phase, part in (("prefill", changed[:N]), ("decode", changed[N:])):
                    assert phase in how.active_phases or not part.any(), f"{where}: {phase} is not dense"
        if how.identity() == {}:
            mine, dense = (play(one, tokens(47, 47), MINE[:NEW]).logits[:47] for one in (how, method("dense")))
            near(mine, dense, f"{how.name} shares prefixes with dense, and reads prompts differently")
    named = "" if cls.contract_knobs else " on short prompts; small contract_knobs may be missing"
    assert acts == bool(cls.phases or cls.actions), f"{cls.name} says {set(cls.phases)}, and acts: {acts}{named}"


def check_estimate(cls: type[AttentionMethod]) -> None:
    """The forecast is at least the held bytes, and at most a page per run above them, at every moment."""
    config = model().config
    for how in (*trials(cls), *default(cls)):
        footprint = how.estimate(config, how.head_plan(config, parse(usual_plan(how))), 31, NEW)
        heads = config.layers * config.kv_heads
        runs = heads * (2 if footprint.compact is not None else 1)
        for n in (1, 2, 9, 13, 31) if how in trials(cls) else (1, 31):
            fed = NEW if n < 14 else 13
            played = play(how, tokens(n, n), MINE[:fed])
            for new, (held, foreseen) in enumerate(zip(played.pages, played.foreseen, strict=True)):
                where = f"{how.name} {how.model_dump_json()}, {n} tokens and {new} more"
                assert held <= foreseen, f"{where}: {held} pages are held, and {foreseen} were foreseen"
                most = runs + (2 * heads * -(-(n + new) // 4) if footprint.is_bound else held)
                assert foreseen <= most, f"{where}: {foreseen} pages were foreseen, and {held} are held"


def check_fit(cls: type[AttentionMethod]) -> None:
    """Fitted knobs meet their budget in what is held; what fits already is not refused."""
    config, n = model().config, 47
    dense = config.layers * config.kv_heads * (n + NEW)
    for how in trials(cls):
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
            held = max(play(fitted, tokens(n), MINE[:NEW], page=1).pages)
            assert held <= budget, f"{where}: it holds {held}"
            met += budget < dense
        assert met or "eviction" not in how.actions, f"{how.name} evicts, and meets no budget below dense"


def _fitted(how: AttentionMethod, budget: int, n: int) -> AttentionMethod | None:
    try:
        return how.fit(budget, model().config, parse(usual_plan(how)), n, NEW)
    except InvalidOption:
        return None


def _entries(how: AttentionMethod, n: int) -> int:
    config = model().config
    told = how.estimate(config, how.head_plan(config, parse(usual_plan(how))), n, NEW)
    return sum(map(sum, told.entries)) + (sum(map(sum, told.compact)) if told.compact is not None else 0)


def check_facts(cls: type[AttentionMethod]) -> None:
    """A name, a help text, a frozen strict schema, and configurations that survive JSON."""
    assert cls.name == cls.name.lower(), f"the name {cls.name!r} is not lower case"
    assert inspect.cleandoc(cls.__doc__ or "") != inspect.cleandoc(AttentionMethod.__doc__), f"{cls.name} has no help"
    assert cls.phases <= {"prefill", "decode"}, f"{cls.name} acts in unknown phases: {set(cls.phases)}"
    unknown = cls.actions - {"visibility", "eviction", "copy", "transform"}
    assert not unknown, f"{cls.name} names unknown actions: {unknown}"
    json.dumps(cls.model_json_schema())
    with pytest.raises(ValidationError):
        cls.model_validate({"no_such_knob": 1})
    for how in trials(cls):
        before = how.model_dump_json()
        again = cls.model_validate_json(before)
        assert again == how, f"{cls.name} does not survive JSON: {before}"
        read = tokens(31, 31), MINE[:NEW]
        played, same = play(how, *read), play(again, *read, fresh=True)
        near(played.logits, same.logits, f"{cls.name} read back from JSON")
        assert how.model_dump_json() == before, f"{cls.name} changes its own knobs while it runs"
        for knob in cls.model_fields:
            with pytest.raises(ValidationError):
                setattr(how, knob, getattr(how, knob))


def check_knobs(cls: type[AttentionMethod]) -> None:
    """Every knob changes what is computed or held, from one of the contract's settings at least."""
    bases = trials(cls)
    ways: list[dict] = [{}]
    ways += [{"boundaries": borders(61)}] if "boundaries" in inspect.signature(cls.reference).parameters else []
    ways += [{"chunks": [32, 29]}] if not all(how.chunk_invariant for how in bases) else []
    for knob in cls.model_fields:
        changed = knob in cls.optional_knobs
        for how in bases:
            for other in _others(how, knob, bases):
                same = how.identity() == other.identity()
                assert not (same and how.identity()), f"{cls.name}: prefixes don't depend on {knob}"
                changed = changed or any(_differ(how, other, way) for way in ways)
        assert changed, f"{cls.name} ignores {knob}, or contract_knobs has no setting in which it matters"


def _differ(how: AttentionMethod, other: AttentionMethod, way: dict) -> bool:
    """Whether two settings read or hold a prompt differently; not where one refuses to work for the model."""
    try:
        a, b = (play(one, tokens(61, 8), MINE[:NEW], **way) for one in (how, other))
    except InvalidOption:
        return False
    return a.positions != b.positions or a.pages != b.pages or float((a.logits - b.logits).abs().max()) > CLOSE


def _others(how: AttentionMethod, knob: str, bases: Sequence[AttentionMethod]) -> Iterator[AttentionMethod]:
    """The method with other values of a knob: those of its other settings, its schema's names, and others nearby."""
    now = getattr(how, knob)
    values = [getattr(base, knob) for base in bases]
    values += _named(type(how).model_json_schema()["properties"][knob])
    values += [False, True] if isinstance(now, bool) else []
    number = isinstance(now, int | float) and not isinstance(now, bool)
    if number:
        values += [now + 1, now - 1, now * 2, now // 2, now * 0.5, now * 1.5, now + 8, now * 3 + 1, now / 10]
    values += [1, 2, 3, 0.05, 0.3, 0.5, 0.95] if now is None else []
    values += [(), (0,), (1,), ((1, 1), (0, 0)), ((0, 1), (1, 1)), ((0, 0), (0, 1))] if not number else []
    tried = [now]
    for value in values:
        if value not in tried:
            tried.append(value)
            try:
                other = how.with_knobs(**{knob: value})
            except (ValidationError, InvalidOption):
                continue
            if getattr(other, knob) != now:
                yield other


def _named(schema: Mapping) -> list:
    inner = [value for part in schema.get("anyOf", ()) for value in _named(part)]
    return [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ()), *inner]


def check_plan(cls: type[AttentionMethod]) -> None:
    """A method that works by a head plan follows it, and refuses to work without one."""
    config = model().config
    plain = cls()
    if cls.needs_plan:
        with pytest.raises(InvalidOption):
            plain.head_plan(config, None)
        told = [plain.head_plan(config, parse(plan)) for plan in (PLAN, OTHER_PLAN)]
        assert told[0] != told[1], f"{cls.name} needs a head plan and ignores it"
    for how in trials(cls) if plain.overrides("head_plan") else ():
        for plan in (PLAN, OTHER_PLAN):
            heads = how.head_plan(config, parse(plan))
            same = all(getattr(how, knob, None) == getattr(plain, knob, None) for knob in ("roles", "share", "heads"))
            if cls.needs_plan and plan is PLAN and same:
                if heads.full is not None:
                    assert [list(map(int, row)) for row in heads.full] == plan["roles"], f"{cls.name}: other roles"
                if heads.calibrated:
                    assert heads.calibrated == {tuple(x) for x in plan["heads"]}, f"{cls.name}: other heads"
            played = play(how, tokens(31, 31), MINE[:NEW], plan=plan)
            for layer, (*_, out) in enumerate(played.layers):
                wanted, acted = of_layer(how, played, layer).out, acts_on(how, heads, layer, config)
                for name, rows in (("leaves alone", [not one for one in acted]), ("acts on", acted)):
                    where = f"{how.name}, layer {layer}, plan {plan}: a head that it {name}"
                    near(out[rows], wanted[rows], where)


GRID = 32  # tokens of a served chunk here: short prompts have several


def check_chunks(cls: type[AttentionMethod]) -> None:
    """Any chunking equals one pass where the method states it; elsewhere the same chunks give the same."""
    for how in trials(cls):
        if not how.supports.chunked_prefill:
            continue
        for n, splits in ((13, ([1] * 13,)), (47, ([46, 1], [1, 46], [5, 37, 5]))):
            ids = tokens(n, n)
            whole = play(how, ids, MINE[:NEW])
            for split in splits:
                cut = play(how, ids, MINE[:NEW], chunks=split)
                other = whole if how.chunk_invariant else play(how, ids, MINE[:NEW], chunks=split, fresh=True)
                where = f"{how.name} {how.model_dump_json()}, {n} tokens in chunks {split}"
                near(cut.logits, other.logits, where)
                assert cut.positions == other.positions, f"{where}: other entries are held"


def check_neighbours(cls: type[AttentionMethod]) -> None:
    """In a ragged batch, of its own kind and others, and next to its own forks, each sequence is as it is alone."""
    for how in trials(cls):
        engine = Engine(model(), page=8)
        mix = [(how, 23), (method("dense"), 11), (how, 1), (how, 41), (method("duo", sink=1, recent=4), 29), (how, 2)]
        open_ones, logits = [], []
        for i, (one, n) in enumerate(mix):
            open_ones.append(engine.open(one, PLAN))
            logits.append([open_ones[-1].prefill(tokens(n, i))])
        for step in range(NEW):
            answers = engine.batch({s: MINE[step + i] for i, s in enumerate(open_ones)})
            for i, s in enumerate(open_ones):
                logits[i].append(answers[s][None])
        for i, (one, n) in enumerate(mix):
            alone = play(one, tokens(n, i), MINE[i : i + NEW], page=8, plan=PLAN)
            near(torch.cat(logits[i]), alone.logits, f"{one.name} next to {how.name} in a batch, sequence {i}")
        _check_fork(how, engine)


def _check_fork(how: AttentionMethod, engine: Engine) -> None:
    s = engine.open(how, PLAN)
    s.prefill(tokens(31))
    s.step(MINE[0])
    twin = s.fork()
    ways = [MINE[:1], MINE[:1]]
    for step in range(1, NEW):
        for i, one in enumerate((s, twin)):
            ways[i] = [*ways[i], MINE[step + 9 * i]]
            last = one.step(ways[i][-1])
            if step == NEW - 1:
                alone = play(how, tokens(31), ways[i], plan=PLAN).logits[-1]
                near(last, alone, f"{how.name}: one of two answers to a prompt")


def check_preemption(cls: type[AttentionMethod]) -> None:
    """An answer that lost its pages and was read again is the undisturbed one."""
    for how in trials(cls):
        # Four that grow leave no page to the youngest before it has ended.
        asked = [Request(tokens(5, i), "dense", max_tokens=30) for i in range(4)]
        asked.append(Request(tokens(17, 9), how, PLAN, max_tokens=30, temperature=1.0, seed=5))
        *_, pressed = Engine(short_model(), page=8, kv_bytes=1).generate(asked)
        (alone,) = Engine(short_model(), page=8).generate(asked[-1:])
        may = how.supports.preemption == "recompute"
        assert (pressed.usage.preempted > 0) == may, f"{how.name}: preempted {pressed.usage.preempted} times"
        assert pressed.tokens == alone.tokens, f"{how.name} says something else after a preemption"


def check_prefixes(cls: type[AttentionMethod]) -> None:
    """A prompt whose beginning was read before is answered as a cold one, and so are those that share it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (method_policy, prefix_cache):
            patch.setattr(module, "CHUNK", GRID)
        _check_prefixes(cls)


def _check_prefixes(cls: type[AttentionMethod]) -> None:
    for how in trials(cls):
        # Methods that are defined by their chunks meet cached prefixes behind whole chunks only, and heads that are cut
        # at a prompt's end leave no prefix of its last chunk.
        cuts = how.head_plan(model().config, parse(PLAN)).full is not None
        long = not how.chunk_invariant or (cuts and bool(how.identity()))
        net, stem, page = model(), 2 * GRID if long else 48, 8
        others = [] if how.identity() else [method("dense")]
        for first, second in ((how, how), *((how, one) for one in others), *((one, how) for one in others)):
            asked = [
                Request([*tokens(stem, 1), *tokens(own, own)], one, PLAN, max_tokens=5, temperature=1.0, seed=3)
                for one, own in ((first, 5), (second, 17), (second, 2))
            ]
            warm = Engine(net, page=page).generate(asked)
            for request, answer in zip(asked, warm, strict=True):
                where = f"{request.method.name} behind a prefix that {first.name} read"
                assert answer.tokens == _cold(net, page, request), f"{where} says something else"
            reuses = second.supports.prefix_reuse and (first.supports.prefix_reuse or second is not first)
            hit = warm[-1].usage.cached_tokens > 0
            assert hit <= second.supports.prefix_reuse, f"{second.name} reuses a prefix, and says it can't"
            assert hit or not reuses or (cuts and not long and first is how), (
                f"{second.name} says it reuses prefixes, and does not"
            )


_COLD: dict[tuple, list[int]] = {}


def _cold(net, page: int, request: Request) -> list[int]:
    key = (id(net), type(request.method), repr(dict(request.method)), tuple(request.ids))
    if key not in _COLD:
        _COLD[key] = Engine(net, page=page).generate([request])[0].tokens
    return _COLD[key]
