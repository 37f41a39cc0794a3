"""`longctx` over the wire: methods per request, budgets, plans, usage, cached prefixes and answers under a grammar."""

import openai
import pytest

from fovea.api.longctx import LongctxOptions
from services.llm_longctx.engine import Engine
from services.llm_longctx.kernels import backends
from services.llm_longctx.methods import method
from services.llm_longctx.serving import decoder_model
from services.llm_longctx.serving.method_selection import select_policy
from services.llm_longctx.tests.conftest import MODEL, Server, app_of, go_on, tiny_decoder
from shared.lm.builders import llama
from shared.lm.head_plan import HeadPlan
from shared.lm.head_plan_store import save_plan
from shared.storage import ObjectStore

ROLES = [[1, 0], [0, 1]]
FLEX = {"method": "flexprefill", "block": 16, "min_budget": 16}
DUO = {"method": "duo", "roles": ROLES, "sink": 4, "recent": 16}
LONG = "It was the best of times, it was the worst of times. " * 3
PLAN = {"schema": "head-plan/1", "roles": ROLES, "scores": {"duo_gate": [[0.9, 0.1], [0.2, 0.8]]}}


def ask(client, longctx, prompt=LONG[:120], **more):
    return go_on(client, prompt, extra_body={"longctx": longctx}, **more)


def used(answer):
    return answer.usage.longctx if isinstance(answer.usage.longctx, dict) else dict(answer.usage.longctx)


@pytest.mark.parametrize(("dtype", "most"), [("q8", 0.95), ("q4", 0.85), ("r4", 0.85), ("r3", 0.8)])
def test_older_keys_and_values_take_few_bits_where_a_request_wants(client, dtype, most):
    text = (LONG * 2)[:170]
    few = used(ask(client, {"method": "dense", "kv_cache_dtype": dtype}, text))
    whole = used(ask(client, {"method": "dense", "kv_cache_dtype": "auto"}, text))
    assert (few["kv_cache_dtype"], whole["kv_cache_dtype"], whole["kv_ratio"]) == (dtype, "auto", 1)
    assert whole["backend"] in backends()
    assert few["kv_ratio"] == pytest.approx(few["kv_bytes"] / few["kv_bytes_dense"])
    assert few["kv_ratio"] < most
    with pytest.raises(openai.BadRequestError, match="kv_cache_dtype"):
        ask(client, {"method": "dense", "kv_cache_dtype": "fp8"}, text)


@pytest.mark.parametrize("longctx", [
    {"method": "razor", "knobs": {"roles": ROLES, "sink": 2, "window_min": 16}},
    {"method": "duo", "plan": PLAN, "recent": 32}, {"prefill": FLEX, "decode": "recycled", "plan": PLAN, **DUO},
    {"prefill": "power", "priority": "batch"},
])  # fmt: skip
def test_every_way_to_ask_for_methods_is_answered(client, longctx):
    answer = ask(client, longctx, prompt=LONG[:150], max_tokens=10)
    assert answer.usage.completion_tokens == 10
    asked = [longctx.get(part) for part in ("method", "prefill", "decode") if part in longctx]
    served = used(answer)
    assert set(served["method"].split("+")) == {one if isinstance(one, str) else one["method"] for one in asked}
    assert served["fallback"] is None


@pytest.mark.parametrize(
    ("on_miss", "served"), [("nearest", "snapkv"), (None, "snapkv"), ("dense", "dense"), ("error", None)]
)
def test_a_budget_that_no_pages_meet_is_handled_as_asked(client, on_miss, served):
    longctx = {"method": "snapkv", "window": 8, "kv_bytes": 600} | ({} if on_miss is None else {"on_miss": on_miss})
    if served is None:
        with pytest.raises(openai.BadRequestError, match="can't keep within 600 bytes"):
            ask(client, longctx, prompt=LONG[:150], max_tokens=20)
        return
    told = used(ask(client, longctx, prompt=LONG[:150], max_tokens=20))
    assert told["method"] == served
    told_by = {"snapkv": "budget_missed", "dense": "fallback"}
    assert "can't keep within 600 bytes" in told[told_by.pop(served)]
    assert told[next(iter(told_by.values()))] is None
    assert (told["kv_ratio"] < 0.6) is (served == "snapkv")


def test_scores_from_a_token_on_use_the_cache(client):
    text = "A query is judged by what it makes of a passage: " + LONG[:100]
    whole = go_on(client, text, max_tokens=0, echo=True, logprobs=0)
    tail = go_on(client, text, max_tokens=0, echo=True, logprobs=0, extra_body={"longctx": {"logprobs_from": 140}})
    told, some = whole.choices[0].logprobs, tail.choices[0].logprobs
    assert (some.tokens, some.text_offset, some.token_logprobs[:140]) == (told.tokens, told.text_offset, [None] * 140)
    assert some.token_logprobs[140:] == pytest.approx(told.token_logprobs[140:], abs=1e-4)
    assert (used(whole)["cached_tokens"], used(tail)["cached_tokens"]) == (0, 128)
    every = go_on(client, "Hello", max_tokens=0, echo=True, logprobs=0, extra_body={"longctx": {"logprobs_from": 99}})
    assert every.choices[0].logprobs.token_logprobs == [None] * 5


def test_a_method_that_needs_a_plan_takes_the_models_default(folder, tmp_path, monkeypatch):
    mine = ObjectStore.open(tmp_path.as_uri()).of_tenant("local")
    save_plan(HeadPlan.parse(PLAN), mine, MODEL, "default")
    monkeypatch.setattr(decoder_model, "_BUNDLED_PLANS", tmp_path / "nothing")
    with Server(app_of(folder, tmp_path)) as server:
        told = used(ask(server.client, {"method": "duo", "sink": 2, "recent": 8}))
        save_plan(HeadPlan.parse(PLAN), mine, MODEL, "made-later")
        named = used(ask(server.client, {"method": "duo", "sink": 2, "recent": 8, "plan": "made-later"}))
    assert told["kv_ratio"] < 0.8
    assert named["kv_ratio"] == told["kv_ratio"], "a plan that is stored while the service runs is there at once"


@pytest.fixture(scope="module")
def deep():
    """As many heads and layers as SmolLM2: pages of many heads round up at different budgets."""
    shape = {"width": 72, "layers": 30, "heads": 9, "kv_heads": 3, "hidden": 8, "positions": 512}
    return Engine(llama(vocab=64, norm_eps=1e-5, tied=True, **shape).eval())


@pytest.mark.parametrize(("name", "ratio", "new", "dtype"), [
    ("snapkv", 0.5, 16, None), ("streamingllm", 0.5, 16, None), ("kvzip", 0.4, 8, None), ("pyramidkv", 0.6, 1, "q8"),
    ("pyramidkv", 0.4, 24, "q4"),
])  # fmt: skip
def test_a_budget_that_pages_can_meet_is_met_and_used(deep, name, ratio, new, dtype):
    longctx = LongctxOptions(method=name, kv_ratio=ratio, kv_cache_dtype=dtype)
    held = select_policy(deep, longctx, {}, 329, new).nbytes(329, new, deep.pool) / deep.dense_bytes(329 + new)
    assert ratio - 0.06 < held <= ratio


def test_grammars_are_compiled_once_for_the_requests_of_all_tenants(server):
    adapter = server.app.state.host.servable(MODEL).adapter
    assert adapter.of_tenant("ann").grammars is adapter.of_tenant("bob", "mine").grammars is adapter.grammars


def test_borders_of_a_prompt_that_is_read_in_parts_are_taken(roomy):
    knobs = {"method": "dhsa", "budget": 64, "global_tokens": 8, "local_tokens": 8, "instruction": 8}
    prompt = [(7 * i + i * i) % 250 for i in range(1100)]
    own, same, other = (
        ask(roomy, {**knobs, "boundaries": borders}, prompt, logprobs=5, max_tokens=1).choices[0].logprobs.top_logprobs
        for borders in (None, [*range(0, 1100, 32), 1100], [0, 3, 600, 1100])
    )
    assert own == same != other
    for bad in ([], [0, 1099], [0, 9, 5, 1100], [0, 0, 1100], [5, 1100], [0, 2000, 1100]):
        with pytest.raises(openai.BadRequestError, match="1,100 tokens") as caught:
            ask(roomy, {"method": "dhsa", "boundaries": bad}, prompt=prompt)
        assert caught.value.param == "longctx.boundaries"
    with pytest.raises(openai.BadRequestError, match="255") as caught:  # queries would not read their own block
        ask(roomy, {"prefill": {"method": "dhsa", "budget": 255}}, prompt=prompt)
    assert caught.value.param == "longctx.budget"


def test_nothing_asked_is_the_engines_own_and_knobs_may_stand_beside_or_apart():
    engine = Engine(tiny_decoder(), page=8)
    assert select_policy(engine, None, {}, 10, 5) is engine.policy
    beside = select_policy(engine, LongctxOptions.model_validate({"method": "power", "block": 64}), {}, 10, 5)
    apart = select_policy(engine, LongctxOptions(method="power", knobs={"block": 64}), {}, 10, 5)
    assert beside.method == apart.method == method("power", block=64)
