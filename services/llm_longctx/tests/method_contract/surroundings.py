"""Surroundings of a sequence that must not show in it: chunks, neighbours, preemption, cached prefixes."""

import pytest
import torch

from services.llm_longctx.engine import Engine, Request, prefix_cache
from services.llm_longctx.engine.attention import method_policy
from services.llm_longctx.methods import AttentionMethod, method
from services.llm_longctx.tests.method_contract.oracle import (
    MINE,
    NEW,
    PLAN,
    model,
    near,
    parse,
    play,
    short_model,
    tokens,
    trials,
)

GRID = 32  # tokens of a served chunk here: short prompts have several


def check_chunks(cls: type[AttentionMethod]) -> None:
    """Any chunking equals one pass where the method states it; elsewhere the same chunks give the same."""
    for how in trials(cls):
        if not how.supports.chunked_prefill:
            continue
        for n, splits in ((13, ([1] * 13, [6, 7])), (47, ([16, 16, 15], [46, 1], [1, 46], [5, 37, 5]))):
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


def check_repeats(cls: type[AttentionMethod]) -> None:
    """The same sequence gives the same bits, whatever was served before."""
    for how in trials(cls):
        first = play(how, tokens(31, 31), MINE[:NEW])
        play(how, tokens(19, 6), MINE[3:5], fresh=True)
        again = play(how, tokens(31, 31), MINE[:NEW], fresh=True)
        near(first.logits, again.logits, f"{how.name}, twice", 0.0)
        assert first.positions == again.positions, f"{how.name}, twice: other entries are held"


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
