"""Compositions of methods, and all in one batch: the tokens of a request are those of a run alone."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea.errors import Cancelled, InvalidOption
from services.llm_longctx.engine import Engine, GenerationRequest, Sampling, prefix_cache
from services.llm_longctx.engine.attention import method_policy
from services.llm_longctx.methods import compose, method, methods
from services.llm_longctx.tests.conftest import Ear
from services.llm_longctx.tests.hooks import Listeners, drain
from services.llm_longctx.tests.method_contract.oracle import trials
from services.llm_longctx.tests.test_engine_pages import ACT, DUO, POWER, RECYCLED, TINY_PLAN, prompt
from shared.lm.head_plan import HeadPlan
from tests.harness.hypothesis_profiles import fewer

GRID = 32  # tokens of a chunk here, so that short prompts have several and meet cached ones on the grid

SINGLE = {name: trials(cls)[0] for name, cls in methods().items()}
"""Each method under knobs with which it does something to short prompts; a new one joins with its own."""

COMPOSED = (
    compose(prefill=SINGLE["flexprefill"], decode=SINGLE["recycled"], plan=SINGLE["duo"]),
    compose(prefill=SINGLE["dhsa"], decode=SINGLE["power"], plan=SINGLE["razor"]),
    compose(prefill=SINGLE["power"], decode=SINGLE["recycled"]),
    compose(prefill=SINGLE["power"], decode=SINGLE["recycled"], plan=method("snapkv", window=3, ratio=0.3)),
    compose(decode=SINGLE["recycled"], plan=method("duo", sink=2, recent=6, window="exact")),
    compose(plan=method("razor", sink=2, window_min=6, window_div=8, slide=True)),
    method("dhsa", variant="topk", block=8, key_block=8, density=0.4),
    method("recycled", budget=8, stride=4, evict="lowest"),
)
MIX = (*SINGLE.values(), *COMPOSED)
STEMS = ([], prompt(70, 1), prompt(70, 2))
"""How prompts begin; those that begin alike meet each other's cached prefixes."""


@pytest.fixture(autouse=True, scope="module")
def _small_grid():
    with pytest.MonkeyPatch.context() as patch:
        for module in (method_policy, prefix_cache):
            patch.setattr(module, "CHUNK", GRID)
        yield


@pytest.fixture(scope="module")
def alone(tiny):
    @cache
    def tokens(which, ids, new, seed):
        engine = Engine(tiny, page=8)
        one, (ear,) = asked(engine, which, ids, new, [seed])
        drain(engine.scheduler, one)
        return ear.ids

    return tokens


def asked(engine, which, ids, new, seeds):
    ears = [Ear() for _ in seeds]
    samplings = [Sampling(temperature=seed % 2, seed=seed) for seed in seeds]
    how = engine.policy_of(MIX[which], TINY_PLAN)
    return GenerationRequest(list(ids), samplings, new, policy=how, hooks=Listeners(*ears)), ears


def check_pages(engine):
    scheduler = engine.scheduler
    prefilling = [scheduler.prefilling] if scheduler.prefilling else []
    open_ones = [s.state.cache for s in (*scheduler.waiting, *prefilling, *scheduler.running) if s.is_allocated]
    known = Counter()
    for held in (*open_ones, *(node.cache for node in engine.prefix_cache._nodes.values())):
        known.update(held.pages().tolist())
    pages, pool = np.array(sorted(known), np.int64), engine.pool
    assert pool.references(pages).tolist() == [known[page] for page in pages.tolist()]
    assert pool.held == len(pages) <= pool.capacity


def run_checked(engine, *requests):
    for one in requests:
        engine.scheduler.add_request(one)
    while engine.scheduler.in_flight:
        engine.scheduler.step()
        check_pages(engine)


@settings(max_examples=fewer(3))
@given(st.data())
def test_no_page_is_lost_or_shared_and_no_answer_changed_by_its_neighbours(tiny, alone, data):
    draw = data.draw
    small = draw(st.booleans(), "a pool that runs out")
    engine = Engine(tiny, page=8, max_batch=draw(st.integers(2, 6)), kv_bytes=1 if small else 2**22)
    scheduler = engine.scheduler
    requests = []
    for i in range(draw(st.integers(2, 7), "requests")):
        which, stem = draw(st.integers(0, len(MIX) - 1), "method"), STEMS[draw(st.integers(0, 2), "stem")]
        ids = (*stem, *prompt(draw(st.integers(1, 40), "own tokens"), 9 + i))
        seeds = [4 * i + j for j in range(draw(st.integers(1, 2), "answers"))]
        one, ears = asked(engine, which, ids, draw(st.integers(1, 24), "new"), seeds)
        requests.append((which, ids, seeds, one, ears))
        scheduler.add_request(one)
        for _ in range(draw(st.integers(0, 4), "steps")):
            scheduler.step()
            check_pages(engine)
        if draw(st.integers(0, 4), "cancel") == 0:
            requests[draw(st.integers(0, i), "whom")][3].run.cancel()
            scheduler.step()
            check_pages(engine)
    run_checked(engine)
    for which, ids, seeds, one, ears in requests:
        for seed, ear in zip(seeds, ears, strict=True):
            wanted = alone(which, ids, one.max_tokens, seed)
            stopped = isinstance(ear.reason, Cancelled)
            assert ear.ids == (wanted[: len(ear.ids)] if stopped else wanted), MIX[which].name
    scheduler.close()
    assert engine.pool.held == 0


@pytest.mark.parametrize("which", range(len(SINGLE), len(MIX)), ids=lambda which: f"{which}-{MIX[which].name}")
def test_a_cached_beginning_leads_to_the_tokens_of_a_cold_run(tiny, alone, which):
    engine = Engine(tiny, page=8)
    for seed, own in enumerate((26, 30, 30)):
        ids = (*STEMS[1], *prompt(own, 5))
        one, (ear,) = asked(engine, which, ids, 8, [seed])
        run_checked(engine, one)
        assert ear.ids == alone(which, ids, 8, seed), "also behind a prompt that ended, and was cut, on the grid"
    reuses = MIX[which].supports.prefix_reuse
    assert (one.stats.cached_tokens > 0) == reuses, "the third time most of it was read before"
    if reuses and not MIX[which].chunk_invariant:
        assert one.stats.cached_tokens % GRID == 0


def test_what_fits_alone_is_served_however_much_of_it_is_cached(tiny, alone):
    """Heads that are cut at the prompt's end hold all of it until then, and prefixes hold it, too."""
    engine = Engine(tiny, page=8, kv_bytes=1)
    which = MIX.index(COMPOSED[1])
    for own in (1, 27, 90):
        ids = (*STEMS[1], *prompt(own, 5))
        one, (ear,) = asked(engine, which, ids, 6, [0])
        run_checked(engine, one)
        assert ear.ids == alone(which, ids, 6, 0)


def run(model, how, n=40, steps=7, chunks=None):
    engine = Engine(model, how, TINY_PLAN, page=8)
    read = engine.prefill(prompt(n), chunks)
    return read, torch.stack([engine.step(token) for token in prompt(steps, 5)]), engine


@pytest.mark.parametrize(("phase", "part"), [("prefill", POWER), ("decode", RECYCLED), ("plan", DUO), ("plan", ACT)])
def test_one_part_and_dense_is_that_part(tiny, phase, part):
    composed = compose(**{phase: part})
    assert composed.name == part.name
    read, stepped, engine = run(tiny, composed)
    alone_read, alone_stepped, alone = run(tiny, part)
    assert torch.allclose(read, alone_read, atol=1e-10)
    if phase != "prefill":  # the other phase of that one is left to dense
        assert torch.allclose(stepped, alone_stepped, atol=1e-10)
        assert engine.kv_bytes() == alone.kv_bytes()


def test_three_parts_each_act_on_their_own_heads(tiny):
    composed = compose(prefill=POWER, decode=RECYCLED.with_knobs(budget=5), plan=DUO)
    _, _, engine = run(tiny, composed, chunks=[16, 24])
    assert sorted(engine.entries(0, 1).positions.tolist()) == [0, 1, *range(42, 47)], "cut as the plan's method says"
    assert engine.entries(0, 0).positions.tolist() == list(range(47)), "full heads keep everything"
    compact = engine._default.state.cache.compact.n
    assert (compact > 0).tolist() == [[True, False], [False, True]], "copies of full heads only"
    assert engine.estimate(prompt=40, new=7) >= engine.kv_bytes()
    assert engine._default.state.prefill_density < 1, "full heads were read in blocks"


def test_the_part_for_heads_is_fitted_to_a_budget(tiny):
    composed = compose(decode=RECYCLED, plan=method("duo", sink=1, recent=2))
    plan = HeadPlan.parse(TINY_PLAN | {"scores": {"duo_gate": [[0.9, 0.1], [0.2, 0.8]]}})
    assert composed.fit(80, tiny.config, plan, 40, 7).heads.share == 0.25
    with pytest.raises(InvalidOption):
        compose(decode=RECYCLED).fit(80, tiny.config, plan, 40, 7)


@pytest.mark.parametrize(("parts", "word"), [
    ({"prefill": RECYCLED}, "nothing in prefill"), ({"decode": "flexprefill"}, "nothing in decode"),
    ({"prefill": DUO}, "goes in as plan"), ({"plan": POWER}, "does not work by a head plan"),
    ({"plan": {"schema": "head-plan/1", "heads": [[0, 0]]}}, "no roles"),
    ({"plan": "act", "prefill": "flexprefill"}, "calibrates whole rows"),
    ({"plan": "act", "decode": "recycled"}, "calibrates whole rows"),
    ({"prefill": "denser"}, "no attention method"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_with_a_reason(parts, word):
    with pytest.raises(InvalidOption, match=word):
        compose(**parts)
