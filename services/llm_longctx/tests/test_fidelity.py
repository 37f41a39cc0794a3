"""Fidelity to dense attention, work that can wait, and the fallback: small models, true numbers."""

import math

import pytest
import torch

from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.quality.fidelity import Fidelity, compare_to_dense
from services.llm_longctx.methods import method
from services.llm_longctx.tests.test_engine_pages import DUO, TINY_PLAN, prompt
from services.llm_longctx.tests.test_scheduler import ask, run


def compare(engine, ids, answer, policy, *more):
    results = []
    for _ in compare_to_dense(engine.runner, ids, answer, policy, results.append, *more):
        pass
    return results[0]


def test_dense_agrees_with_itself_and_a_cut_method_does_not(tiny):
    engine = Engine(tiny, page=8)
    policies = (engine.policy_of(how, TINY_PLAN) for how in ("dense", method("duo", sink=1, recent=2)))
    same, cut = (compare(engine, prompt(60), prompt(20, 3), policy) for policy in policies)
    assert (same.agreement, same.divergence, same.delta) == pytest.approx((1, 0, 0), abs=1e-12)
    assert len(cut.kl) == 20
    assert cut.divergence > 1e-3
    assert engine.pool.held == 0


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
    scheduler.run_when_idle(iter_that_fails())
    scheduler.step()
    assert not scheduler.backend.background_tasks


def iter_that_fails():
    raise RuntimeError
    yield
