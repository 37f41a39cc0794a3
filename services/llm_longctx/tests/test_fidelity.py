"""Fidelity to dense: true numbers, and the watch: what is held back, for whom, and how it comes back."""

import math
from contextvars import copy_context
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.longctx import LongctxOptions
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.quality import fidelity_monitor as watches
from services.llm_longctx.engine.quality.circuit_breaker import (
    FORGOTTEN_S,
    HALF_LIFE_S,
    LEAST,
    WINDOW,
    FidelityCircuitBreaker,
)
from services.llm_longctx.engine.quality.fidelity import Fidelity, compare_to_dense
from services.llm_longctx.engine.quality.fidelity_monitor import FidelityMonitor
from services.llm_longctx.methods import method
from services.llm_longctx.serving.method_selection import select_policy
from services.llm_longctx.tests.conftest import MODEL, Server, app_of, go_on
from services.llm_longctx.tests.test_engine_pages import DUO, TINY_PLAN, ask, prompt, run
from shared import telemetry
from tests.harness.waiting import wait_until as until


def compare(engine, ids, answer, policy, *more):
    results = []
    for _ in compare_to_dense(engine.runner, ids, answer, policy, results.append, *more):
        pass
    return results[0]


def test_dense_agrees_with_itself_and_a_cut_method_does_not(tiny):
    engine, answer = Engine(tiny, page=8), prompt(20, 3)
    pair = [(how, TINY_PLAN) for how in ("dense", method("duo", sink=1, recent=2))]
    same, cut = (compare(engine, prompt(60), answer, engine.policy_of(*one)) for one in pair)
    assert (same.agreement, same.divergence, same.delta) == pytest.approx((1, 0, 0), abs=1e-12)
    assert engine.pool.held == 0
    by_hand = [engine.open(*one) for one in pair]
    rows = [[one.prefill(prompt(60))[-1], *(one.step(token) for token in answer[:-1])] for one in by_hand]
    p, q = (torch.stack(each).log_softmax(-1) for each in rows)
    assert cut.kl == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), abs=1e-9)
    assert cut.divergence > 1e-3


def test_the_numbers_are_those_of_the_definition():
    found = Fidelity()
    p, q = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
    found.add(p, q, 2)
    assert found.divergence == pytest.approx((0.5 - 0.25) * math.log(2))
    assert (found.agreement, found.right, found.delta) == (0, [False], pytest.approx(0))


def test_a_comparison_that_is_given_up_leaves_no_pages(tiny):
    engine = Engine(tiny, page=8)
    work = compare_to_dense(engine.runner, prompt(40), prompt(9), engine.policy_of(DUO, TINY_PLAN), print)
    for _ in range(4):
        next(work)
    assert engine.pool.held
    work.close()
    assert engine.pool.held == 0


def test_work_that_can_wait_makes_room_and_hears_of_it(tiny):
    engine = Engine(tiny, page=8, kv_bytes=1)
    scheduler = engine.scheduler
    heard = []

    def fail():
        raise RuntimeError
        yield

    def work():
        s = engine.open()
        try:
            s.prefill(prompt(180))
            while True:
                yield
        finally:
            heard.append("closed")
            s.close()

    scheduler.run_when_idle(work())
    scheduler.step()
    assert engine.pool.held
    one = ask(engine, prompt(100), new=4)
    run(engine, one)
    assert heard == ["closed"]
    assert one[1][0].ends == [("length", 4)]
    scheduler.run_when_idle(fail())
    scheduler.step()
    assert not scheduler.backend.background_tasks


FLOOR = 0.8
AGREEMENTS = st.floats(0, 1)
cut = partial(method, "duo", sink=2)


@pytest.fixture(scope="module")
def engine(tiny):
    return Engine(tiny, page=8)


def told(watch, policy, *agreements):
    for agreement in agreements:
        found = SimpleNamespace(agreement=agreement, divergence=0.0, delta=0.0)
        watch._record(copy_context(), policy, found)


def held_back(method, model):
    line = f'fovea_fidelity_held_back{{method="{method}",model="{model}"}} '
    found = [one for one in telemetry.render_metrics()[0].decode().splitlines() if one.startswith(line)]
    return float(found[0].removeprefix(line)) if found else None


def add(standing, agreement, times=1, now=0.0):
    for _ in range(times):
        standing.add(agreement, now)


def test_it_comes_back_half_way_between_the_floor_and_full_agreement():
    standing = FidelityCircuitBreaker(FLOOR)
    add(standing, 0.1, WINDOW)
    add(standing, 0.89, WINDOW)
    assert standing.median(0) == 0.89
    assert standing.held, "above the floor is not enough"
    add(standing, 0.9, WINDOW // 2)
    assert standing.held
    add(standing, 0.9)
    assert not standing.held
    add(standing, 0.81, WINDOW)
    assert not standing.held, "and below that line it stays, as long as it is above the floor"


def test_what_is_old_weighs_less_and_is_forgotten():
    standing = FidelityCircuitBreaker(FLOOR)
    add(standing, 0.1, LEAST)
    add(standing, 1.0, LEAST // 2 + 1, HALF_LIFE_S)
    assert standing.median(HALF_LIFE_S) == 1.0, "six of today outweigh ten that count half"
    assert len(standing) == LEAST + LEAST // 2 + 1
    standing.judge(FORGOTTEN_S)
    assert len(standing) == LEAST // 2 + 1


def test_what_nothing_is_known_of_any_more_is_served_again():
    standing = FidelityCircuitBreaker(FLOOR)
    add(standing, 0.1, LEAST)
    add(standing, 0.1, now=5)
    assert standing.judge(FORGOTTEN_S + 4), "one finding is left: too few to change the verdict"
    assert not standing.judge(FORGOTTEN_S + 5)
    for i in range(LEAST - 1):
        add(standing, 0.1, now=FORGOTTEN_S + 6 + i)
    assert not standing.held, "it is judged afresh"
    add(standing, 0.1, now=FORGOTTEN_S + 60)
    assert standing.held


@given(st.lists(st.tuples(st.floats(0, HALF_LIFE_S), AGREEMENTS), max_size=120))
def test_every_change_of_a_verdict_has_its_reason(findings):
    standing, now = FidelityCircuitBreaker(FLOOR), 0.0
    for pause, agreement in findings:
        before, now = standing.held, now + pause
        standing.add(agreement, now)
        assert len(standing) <= WINDOW
        assert min(a for _, a in standing._found) <= standing.median(now) <= max(a for _, a in standing._found)
        if standing.held and not before:
            assert len(standing) >= LEAST
            assert standing.median(now) < FLOOR
        if before and not standing.held:
            assert standing.median(now) >= standing.back or len(standing) == 1


def test_a_budget_is_one_variant_however_its_knobs_were_fitted(engine):
    plan = {**TINY_PLAN, "scores": {"duo_gate": [[0.9, 0.1], [0.2, 0.8]]}}
    asked = {"method": "razor", "plan": plan, "kv_ratio": 0.9}

    def policy(length, **more):
        return select_policy(engine, LongctxOptions.model_validate({**asked, **more}), {}, length, 8)

    short, long = policy(100), policy(160)
    assert short.method != long.method
    assert short.variant == long.variant
    assert short.variant != policy(100, kv_ratio=0.8).variant
    assert short.variant != policy(100, sink=2).variant
    assert short.variant != policy(100, plan=plan | {"roles": [[0, 1], [1, 0]]}).variant
    assert short.variant != engine.policy_of(short.method, plan).variant, "the same knobs, but asked for"


@given(st.lists(st.tuples(st.integers(1, 12), AGREEMENTS), max_size=150))
def test_each_variant_is_judged_by_its_own_findings_and_few_are_remembered(engine, findings):
    policies = {recent: engine.policy_of(cut(recent=recent), TINY_PLAN) for recent in range(1, 13)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watches, "MAX_VARIANTS", 8)
        watch, known = FidelityMonitor(floor=FLOOR, clock=lambda: 0.0), dict[int, FidelityCircuitBreaker]()
        with telemetry.bind(model="property"):
            for recent, agreement in findings:
                told(watch, policies[recent], agreement)
                # The oracle: standings in order of use, cut at eight.
                known[recent] = known.pop(recent, FidelityCircuitBreaker(FLOOR))
                known[recent].add(agreement, 0)
                known = dict(list(known.items())[-8:])
            assert len(watch) == len(known)
            if findings:
                assert held_back("duo", "property") == sum(s.held for s in known.values())
        for recent, policy in policies.items():
            assert (watch.held_back_reason(policy) is not None) == (recent in known and known[recent].held)


def test_a_variant_that_is_asked_for_is_not_forgotten(engine, monkeypatch):
    monkeypatch.setattr(watches, "MAX_VARIANTS", 3)
    watch = FidelityMonitor(floor=FLOOR)
    held = engine.policy_of(cut(recent=1), TINY_PLAN)
    told(watch, held, *[0.0] * LEAST)
    for recent in range(2, 9):
        assert watch.held_back_reason(held)
        told(watch, engine.policy_of(cut(recent=recent), TINY_PLAN), 1.0)
    assert watch.held_back_reason(held)
    assert len(watch) == 3


def test_a_share_is_sampled_and_a_floor_of_zero_never_falls_back(tiny):
    engine = Engine(tiny, page=8, monitor=FidelityMonitor(share=0.3, floor=0.0, seed=1))
    answers = [ask(engine, [i + 1], DUO, new=1) for i in range(40)]
    works = []
    engine.monitor.sample = lambda *args, plain=engine.monitor.sample: works.append(plain(*args))
    run(engine, *answers)
    assert 4 <= sum(work is not None for work in works) <= 22
    assert engine.monitor.held_back_reason(engine.policy_of(DUO, TINY_PLAN)) is None


def test_a_method_is_held_back_for_those_knobs_only_and_comes_back_when_it_agrees_again(folder, tmp_path):
    prose = "It was the best of times, it was the worst of times. " * 3
    extreme = {"method": "duo", "roles": [[0, 0], [0, 0]], "sink": 1, "recent": 24}
    sane = {**extreme, "roles": [[1, 1], [1, 1]]}
    app = app_of(folder, tmp_path, llm_fidelity_sample_rate=1.0, llm_fidelity_min_agreement=0.9)
    with Server(app) as server:
        scheduler = app.state.host.servable(MODEL).adapter.scheduler

        def tell(longctx, text, new=6):
            told = go_on(server.client, text, max_tokens=new, extra_body={"longctx": longctx}).usage.longctx
            until(lambda: not scheduler.backend.background_tasks)
            return told["method"], told["fallback"]

        for i in range(LEAST):
            assert tell(extreme, prose[i : i + 120]) == ("duo", None)
        method, reason = tell(extreme, prose[20:140])
        assert method == "dense"
        assert reason.startswith("duo with these knobs agreed with dense attention on ")
        assert "still tried" in reason
        assert tell(sane, prose[:120]) == ("duo", None), "others keep their knobs"
        assert held_back("duo", MODEL) == 1
        assert f'fovea_fidelity_kl_nats_count{{method="duo",model="{MODEL}"}}' in telemetry.render_metrics()[0].decode()
        # Prompts that the window holds whole: there the two agree, and the watch finds it out on the dense answers.
        tries = next(i for i in range(WINDOW) if tell(extreme, prose[i : i + 12], new=4)[1] is None)
        assert LEAST // 2 < tries <= 2 * LEAST
        assert (tell(extreme, prose[:12], new=4), held_back("duo", MODEL)) == (("duo", None), 0)
