"""Methods whose phases differ work as one, each where it acts; what would change another's maths is refused."""

import pytest
import torch

from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine
from services.llm_longctx.methods import compose, method
from services.llm_longctx.tests.test_engine_pages import ACT, DUO, POWER, RECYCLED, TINY_PLAN, prompt
from shared.lm.head_plan import HeadPlan


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


def test_facts_are_those_of_the_parts():
    both = compose(prefill=POWER, plan=DUO)
    assert not both.chunk_invariant
    assert compose(decode=RECYCLED).chunk_invariant
    assert (compose(decode=RECYCLED).identity(), set(both.identity())) == ({}, {"prefill", "heads"})
    assert compose().name == "dense"
    assert not compose().overrides("decode_plan")
    assert both.supports.preemption == "recompute"


def test_the_part_for_heads_is_fitted_to_a_budget(tiny):
    composed = compose(decode=RECYCLED, plan=method("duo", sink=1, recent=2))
    plan = HeadPlan.parse(TINY_PLAN | {"scores": {"duo_gate": [[0.9, 0.1], [0.2, 0.8]]}})
    fitted = composed.fit(80, tiny.config, plan, 40, 7)
    assert fitted.heads.share == 0.25
    with pytest.raises(InvalidOption):
        compose(decode=RECYCLED).fit(80, tiny.config, plan, 40, 7)


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"prefill": RECYCLED}, "nothing in prefill"), ({"decode": "flexprefill"}, "nothing in decode"),
        ({"prefill": DUO}, "goes in as plan"), ({"plan": POWER}, "does not work by a head plan"),
        ({"plan": {"schema": "head-plan/1", "heads": [[0, 0]]}}, "no roles"),
        ({"plan": "act", "prefill": "flexprefill"}, "calibrates whole rows"),
        ({"plan": "act", "decode": "recycled"}, "calibrates whole rows"),
        ({"prefill": "denser"}, "no attention method"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_a_reason(parts, word):
    with pytest.raises(InvalidOption, match=word):
        compose(**parts)
