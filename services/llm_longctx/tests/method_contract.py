"""What every attention method must do: checks that run over each plug-in, and over broken ones that they must refuse.

A check takes the class and asserts; `CHECKS` has them all. It runs the method under its `contract_knobs` on a tiny
random decoder and knows no method by name.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from pydantic import ValidationError

from services.llm_longctx.engine import Engine, Request
from services.llm_longctx.methods import AttentionMethod, method
from services.llm_longctx.tests.method_oracle import (
    NEW,
    OTHER_PLAN,
    PLAN,
    Played,
    acts_on,
    causal,
    expected,
    long_model,
    model,
    of_layer,
    parse,
    play,
    softmax_under,
    tokens,
    trials,
)
from shared.errors import InvalidOption

__all__ = ["CHECKS", "refusals"]

LENGTHS = (1, 2, 13, 31, 47)
"""Prompt lengths, mostly prime: nothing fills a page, a block or a window by luck."""

CLOSE = 1e-6
"""Of numbers that are computed in float64 in another order, a float32 constant among them at times."""

MINE = tokens(40, seed=99)
"""Tokens fed after prompts."""


def near(a: torch.Tensor, b: torch.Tensor, what: str, tolerance: float = CLOSE) -> None:
    """Equal up to rounding."""
    assert a.shape == b.shape, f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)} differ"
    worst = float((a - b).abs().max()) if a.numel() else 0.0
    assert worst <= tolerance, f"{what}: they differ by {worst:.3g}"


# What it says of itself.


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
        played, same = (play(x, tokens(31), MINE[:NEW]) for x in (how, again))
        near(played.logits, same.logits, f"{cls.name} read back from JSON")
        assert how.model_dump_json() == before, f"{cls.name} changes its own knobs while it runs"
        for knob in cls.model_fields:
            with pytest.raises(ValidationError):
                setattr(how, knob, getattr(how, knob))


# Its reference.


def check_reference(cls: type[AttentionMethod]) -> None:
    """It is causal attention under its mask: rows mix values that they may see, whatever the heads and lengths."""
    for how in trials(cls):
        for H, G, N in ((4, 2, 1), (4, 2, 2), (6, 2, 37), (4, 4, 31), (3, 1, 53)):
            torch.manual_seed(N)
            q, k, v = (torch.randn(heads, N + NEW, 8, dtype=torch.float64) for heads in (H, G, G))
            before = q.clone(), k.clone(), v.clone()
            wanted = expected(how, q, k, v, N, layer=0, layers=2, rope_theta=10000.0)
            again = expected(how, q, k, v, N, layer=0, layers=2, rope_theta=10000.0)
            where = f"{cls.name}'s reference on {H} over {G} heads, {N} tokens"
            assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True)), f"{where} writes its inputs"
            assert wanted.out.dtype == torch.float64, f"{where} is not float64"
            assert torch.isfinite(wanted.out).all(), f"{where} is not finite"
            near(wanted.out, again.out, f"{where}, twice", 0.0)
            _check_mask(wanted.mask, N, where)
            _check_mixing(how, q, k, v, N, wanted, where)


def _check_mask(mask: torch.Tensor, prompt: int, where: str) -> None:
    total = mask.shape[1]
    assert mask.dtype == torch.bool, f"{where}: the mask is not bool"
    assert not (mask & ~causal(total, total)).any(), f"{where}: a row sees what comes after it"
    assert mask.any(-1).all(), f"{where}: a row sees nothing"
    assert mask.diagonal(dim1=1, dim2=2)[:, prompt:].all(), f"{where}: a step does not see its own entry"


def _check_mixing(how: AttentionMethod, q, k, v, N: int, wanted, where: str) -> None:
    """Rows are convex mixtures of the values up to them; by softmax under the mask, unless entries are transformed."""
    facts = {"layer": 0, "layers": 2, "rope_theta": 10000.0}
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
    played = play(how, tokens(47), MINE[:NEW])
    return any(-1 in row for time in played.positions for layer in time for row in layer)


# The engine against it.


def check_engine(cls: type[AttentionMethod]) -> None:
    """Every layer's output is the reference's, in prompt and answer, under the contract's knobs and the defaults."""
    for how in (*trials(cls), *_default(cls)):
        named = inspect.signature(how.reference).parameters
        for n in LENGTHS:
            ways: list[dict] = [{}]
            if "chunks" in named and how.supports.chunked_prefill and n > 2:
                ways += [{"chunks": [n - 2, 2]}, {"chunks": [n // 3, n - n // 3]}]
            if "boundaries" in named:
                ways += [{"boundaries": _borders(n)}]
            for way in ways:
                played = play(how, tokens(n, n), MINE[:NEW], **way)
                for layer in range(len(played.layers)):
                    _check_layer(how, played, layer, way)


def _borders(n: int) -> list[int]:
    """Borders of uneven stretches of a prompt."""
    return [*(at for at in (0, 3, 9, 20, 26, 41, 48) if at < n), n]


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
        q[g * R : (g + 1) * R, now : now + 1], keys[None], values[None],
        torch.ones(1, len(keys), dtype=torch.bool), torch.cat((weight, weight.new_zeros(1))),
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
            played = play(how, tokens(47, 3), MINE[:NEW], chunks=chunks)
            N = played.prompt
            for layer, (q, k, v, out) in enumerate(played.layers):
                dense = softmax_under(q, k, v, causal(q.shape[1], q.shape[1]))
                changed = (out - dense).abs().amax((0, 2)) > CLOSE
                acts |= bool(changed.any())
                where = f"{how.name} {how.model_dump_json()}, layer {layer}"
                assert "prefill" in how.phases or not changed[:N].any(), f"{where}: the prompt is not read densely"
                assert "decode" in how.phases or not changed[N:].any(), f"{where}: the answer is not read densely"
        if how.identity() == {}:
            near(
                play(how, tokens(47, 3)).logits, play(method("dense"), tokens(47, 3)).logits,
                f"{how.name} shares prefixes with dense, and reads prompts differently",
            )  # fmt: skip
    named = "" if cls.contract_knobs else " on short prompts; small contract_knobs may be missing"
    assert acts == bool(cls.phases or cls.actions), f"{cls.name} says {set(cls.phases)}, and acts: {acts}{named}"


# Memory.


def check_estimate(cls: type[AttentionMethod]) -> None:
    """What is foreseen is at least what is held, and at most a page per run above it, at every moment."""
    config = model().config
    for how in (*trials(cls), *_default(cls)):
        footprint = how.estimate(config, how.head_plan(config, parse(PLAN)), 31, NEW)
        runs = config.layers * config.kv_heads * (2 if footprint.compact is not None else 1)
        for n in (*range(1, 14), 31, 47):
            fed = NEW if n < 14 else 25
            played = play(how, tokens(n, n), MINE[:fed], light=True)
            for new, (held, foreseen) in enumerate(zip(played.pages, played.foreseen, strict=True)):
                where = f"{how.name} {how.model_dump_json()}, {n} tokens and {new} more"
                assert held <= foreseen, f"{where}: {held} pages are held, and {foreseen} were foreseen"
                most = runs + (2 * _pages(n + new) if footprint.is_bound else held)
                assert foreseen <= most, f"{where}: {foreseen} pages were foreseen, and {held} are held"


def _pages(entries: int, page: int = 4) -> int:
    """Pages of a dense sequence."""
    return model().config.layers * model().config.kv_heads * -(-entries // page)


def check_fit(cls: type[AttentionMethod]) -> None:
    """Fitted knobs meet their budget in what is held; what fits already is not refused."""
    config, n = model().config, 47
    dense = config.layers * config.kv_heads * (n + NEW)
    for how in trials(cls):
        own = _entries(how, n)
        budgets = [int(dense * share) for share in (1.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)]
        met = 0
        for budget in sorted({*budgets, own}, reverse=True):
            if (fitted := _fitted(how, budget, n)) is None:
                assert budget < max(own, 1), f"{how.name} holds {own} entries and refuses a budget of {budget}"
                continue
            assert isinstance(fitted, cls), f"{how.name} is fitted to {budget} as {type(fitted).__name__}"
            where = f"{how.name} fitted to {budget} entries is {fitted.model_dump_json()}"
            assert _entries(fitted, n) <= budget, f"{where}: it foresees {_entries(fitted, n)}"
            held = max(play(fitted, tokens(n), MINE[:NEW], page=1, light=True).pages)
            assert held <= budget, f"{where}: it holds {held}"
            met += budget < dense
        assert met or "eviction" not in how.actions, f"{how.name} evicts, and meets no budget below dense"


def _fitted(how: AttentionMethod, budget: int, n: int) -> AttentionMethod | None:
    try:
        return how.fit(budget, model().config, parse(PLAN), n, NEW)
    except InvalidOption:
        return None


def _entries(how: AttentionMethod, n: int) -> int:
    config = model().config
    told = how.estimate(config, how.head_plan(config, parse(PLAN)), n, NEW)
    return sum(map(sum, told.entries)) + (sum(map(sum, told.compact)) if told.compact is not None else 0)


# What happens around a sequence.


def check_chunks(cls: type[AttentionMethod]) -> None:
    """Any chunking equals one pass where the method says so; elsewhere the same chunks give the same."""
    for how in trials(cls):
        if not how.supports.chunked_prefill:
            continue
        for n, splits in ((13, ([1] * 13, [6, 7])), (47, ([16, 16, 15], [46, 1], [1, 46], [5, 37, 5]))):
            ids = tokens(n, n)
            whole = play(how, ids, MINE[:NEW])
            for split in splits:
                cut = play(how, ids, MINE[:NEW], chunks=split)
                other = whole if how.chunk_invariant else play(how, ids, MINE[:NEW], chunks=split)
                where = f"{how.name} {how.model_dump_json()}, {n} tokens in chunks {split}"
                near(cut.logits, other.logits, where)
                assert cut.positions == other.positions, f"{where}: other entries are held"


def check_neighbours(cls: type[AttentionMethod]) -> None:
    """In a ragged batch, of its own kind and others, and beside its own forks, each sequence is as it is alone."""
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
            alone = play(one, tokens(n, i), MINE[i : i + NEW], page=8)
            near(torch.cat(logits[i]), alone.logits, f"{one.name} beside {how.name} in a batch, sequence {i}")
        _check_fork(how, engine)


def _check_fork(how: AttentionMethod, engine: Engine) -> None:
    s = engine.open(how, PLAN)
    s.prefill(tokens(31))
    s.step(MINE[0])
    twin = engine.adopt(s.fork())
    ways = [MINE[:1], MINE[:1]]
    for step in range(1, NEW):
        for i, one in enumerate((s, twin)):
            ways[i] = [*ways[i], MINE[step + 9 * i]]
            last = one.step(ways[i][-1])
            if step == NEW - 1:
                near(last, play(how, tokens(31), ways[i]).logits[-1], f"{how.name}: one of two answers to a prompt")


def check_repeats(cls: type[AttentionMethod]) -> None:
    """The same sequence gives the same bits, whatever was served before."""
    for how in trials(cls):
        first = play(how, tokens(41, 5), MINE[:NEW])
        play(how, tokens(19, 6), MINE[3:5])
        again = play(how, tokens(41, 5), MINE[:NEW])
        near(first.logits, again.logits, f"{how.name}, twice", 0.0)
        assert first.positions == again.positions, f"{how.name}, twice: other entries are held"


def check_preemption(cls: type[AttentionMethod]) -> None:
    """An answer that lost its pages and was read again is the undisturbed one."""
    for how in trials(cls):
        # Four that grow leave no page to the youngest before it has ended.
        asked = [Request(tokens(5, i), "dense", max_tokens=90) for i in range(4)]
        asked.append(Request(tokens(21, 9), how, PLAN, max_tokens=56, temperature=1.0, seed=5))
        *_, pressed = Engine(model(), page=8, kv_bytes=1).generate(asked)
        (alone,) = Engine(model(), page=8).generate(asked[-1:])
        may = how.supports.preemption == "recompute"
        assert (pressed.usage.preempted > 0) == may, f"{how.name}: preempted {pressed.usage.preempted} times"
        assert pressed.tokens == alone.tokens, f"{how.name} says something else after a preemption"


def check_prefixes(cls: type[AttentionMethod]) -> None:
    """A prompt whose beginning was read before is answered as a cold one, and so are those that share it."""
    for how in trials(cls):
        # Methods that are defined by their chunks meet cached prefixes behind chunks of 512 tokens only, and heads that
        # are cut at a prompt's end leave no prefix of its last chunk.
        cuts = how.head_plan(model().config, parse(PLAN)).full is not None
        long = not how.chunk_invariant or (cuts and bool(how.identity()))
        net, stem, page = (long_model(), 512, 64) if long else (model(), 48, 8)
        kind = [how] if how.identity() else [how, method("dense")]
        for first in kind:
            for second in [how, *kind[1:]]:
                asked = [
                    Request([*tokens(stem, 1), *tokens(own, own)], one, PLAN, max_tokens=16, temperature=1.0, seed=3)
                    for one, own in ((first, 5), (second, 17), (second, 2))
                ]
                warm = Engine(net, page=page).generate(asked)
                for request, answer in zip(asked, warm, strict=True):
                    (cold,) = Engine(net, page=page).generate([request])
                    where = f"{request.method.name} behind a prefix that {first.name} read"
                    assert answer.tokens == cold.tokens, f"{where} says something else"
                reuses = second.supports.prefix_reuse and (first.supports.prefix_reuse or second is not first)
                hit = warm[-1].usage.cached_tokens > 0
                assert hit <= second.supports.prefix_reuse, f"{second.name} reuses a prefix, and says it can't"
                assert hit or not reuses or (cuts and not long and first is how), (
                    f"{second.name} says it reuses prefixes, and does not"
                )


# Knobs and plans.


def check_knobs(cls: type[AttentionMethod]) -> None:
    """Every knob changes what is computed or held, from one of the contract's settings at least."""
    bases = trials(cls)
    known = [_behaviour(how) for how in bases]
    for knob in cls.model_fields:
        changed = False
        for how, behaviour in zip(bases, known, strict=True):
            for other in _others(how, knob, bases):
                same = how.identity() == other.identity()
                assert not (same and how.identity()), f"{cls.name}: prefixes don't depend on {knob}"
                changed = changed or _differ(behaviour, _behaviour(other))
        assert changed, f"{cls.name} ignores {knob}, or contract_knobs has no setting in which it matters"


def _behaviour(how: AttentionMethod) -> list[Played] | None:
    """What it does on a prompt in one chunk and in two; None where it refuses to work for the model."""
    ways: list[dict] = [{}, {"boundaries": _borders(61)}]
    ways += [{"chunks": [32, 29]}] if how.supports.chunked_prefill else []
    try:
        return [play(how, tokens(61, 8), MINE[:9], **way) for way in ways]
    except InvalidOption:
        return None


def _differ(one: list[Played] | None, other: list[Played] | None) -> bool:
    if one is None or other is None:
        return False
    return any(
        a.positions != b.positions or a.pages != b.pages or float((a.logits - b.logits).abs().max()) > CLOSE
        for a, b in zip(one, other, strict=True)
    )


def _others(how: AttentionMethod, knob: str, bases: Sequence[AttentionMethod]) -> Iterator[AttentionMethod]:
    """The method with other values of a knob: those of its other settings, its schema's names, and others nearby."""
    now = getattr(how, knob)
    values = [getattr(base, knob) for base in bases]
    values += _named(type(how).model_json_schema()["properties"][knob])
    values += [False, True] if isinstance(now, bool) else []
    number = isinstance(now, int | float) and not isinstance(now, bool)
    values += (
        [now + 1, now - 1, now * 2, now // 2, now * 0.5, now * 1.5, now + 8, now * 3 + 1, now / 10] if number else []
    )
    values += [1, 2, 3, 0.05, 0.3, 0.5, 0.95] if now is None else []
    values += [(), (0,), (1,), ((1, 1), (0, 0)), ((0, 1), (1, 1)), ((0, 0), (0, 1))] if not number else []
    tried = [now]
    for value in values:
        if value not in tried:
            tried.append(value)
            try:
                other = how.changed(**{knob: value})
            except (ValidationError, InvalidOption):
                continue
            if getattr(other, knob) != now:
                yield other


def _named(schema: Mapping) -> list:
    """Values that a JSON schema lists."""
    inner = [value for part in schema.get("anyOf", ()) for value in _named(part)]
    return [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ()), *inner]


def check_plan(cls: type[AttentionMethod]) -> None:
    """A method that works by a head plan follows it, and says so where there is none."""
    config = model().config
    plain = cls()
    if cls.needs_plan:
        with pytest.raises(InvalidOption):
            plain.head_plan(config, None)
        told = [plain.head_plan(config, parse(plan)) for plan in (PLAN, OTHER_PLAN)]
        assert told[0] != told[1], f"{cls.name} needs a head plan and ignores it"
    for how in trials(cls):
        for plan in (PLAN, OTHER_PLAN):
            heads = how.head_plan(config, parse(plan))
            if (
                cls.needs_plan
                and plan is PLAN
                and how.model_dump(include={"roles", "share", "heads"})
                == plain.model_dump(include={"roles", "share", "heads"})
            ):
                if heads.full is not None:
                    assert [list(map(int, row)) for row in heads.full] == plan["roles"], f"{cls.name}: other roles"
                if heads.calibrated:
                    assert heads.calibrated == {tuple(x) for x in plan["heads"]}, f"{cls.name}: other heads"
            played = play(how, tokens(37, 4), MINE[:NEW], plan=plan)
            for layer, (q, k, v, out) in enumerate(played.layers):
                dense = softmax_under(q, k, v, causal(q.shape[1], q.shape[1]))
                left = [h for h, acted in enumerate(acts_on(how, heads, layer, config)) if not acted]
                near(out[left], dense[left], f"{how.name}, layer {layer}: a head that it leaves alone is not dense")


def _default(cls: type[AttentionMethod]) -> list[AttentionMethod]:
    """The method as it is served without knobs, where that differs."""
    return [] if cls() in trials(cls) else [cls()]


CHECKS: tuple[Callable[[type[AttentionMethod]], None], ...] = (
    check_facts,
    check_reference,
    check_engine,
    check_retention,
    check_effect,
    check_estimate,
    check_fit,
    check_chunks,
    check_neighbours,
    check_repeats,
    check_preemption,
    check_prefixes,
    check_knobs,
    check_plan,
)


def refusals(cls: type[AttentionMethod]) -> dict[str, str]:
    """Checks that refuse a method, by name, with their reasons."""
    found = {}
    for check in CHECKS:
        try:
            check(cls)
        except Exception as error:  # noqa: BLE001  # a broken method may fail in any way
            found[check.__name__] = str(error).partition("\n")[0]
        except pytest.fail.Exception as error:
            found[check.__name__] = str(error)
    return found
