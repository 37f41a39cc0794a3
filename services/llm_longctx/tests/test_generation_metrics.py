"""Operators' view of text: metrics that agree with the answers' usage, and spans of a batch and of a preemption."""

import gc

from prometheus_client import REGISTRY

from services.llm_longctx import generation_metrics
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.offline.completion import Request
from services.llm_longctx.tests.conftest import HELLO, MODEL, say
from shared import telemetry
from shared.tests.recorded_spans import is_child, recorded_spans  # noqa: F401  # a fixture
from tests.harness.waiting import wait_until as until


def read(name, **labels):
    return REGISTRY.get_sample_value(f"fovea_{name}", labels) or 0.0


def read_all(method):
    of_method, of_model = {"model": MODEL, "method": method}, {"model": MODEL}
    return {
        "first": read("time_to_first_token_seconds_count", **of_method),
        "per_token": read("time_per_output_token_seconds_count", **of_method),
        "prompt": read("prompt_tokens_total", **of_method),
        "written": read("generation_tokens_total", **of_method),
        "queries": read("prefix_cache_queries_total", **of_model),
        "hits": read("prefix_cache_hits_total", **of_model),
        "ratio": read("kv_ratio_sum", **of_method),
        "waits": read("request_queue_time_seconds_count", service="llm-longctx", model=MODEL),
        "steps": read("batch_size_count", service="llm-longctx", model=MODEL),
    }


def test_counts_are_those_of_the_answers_usage(client):
    before = read_all("streamingllm")
    answers = [say(client, extra_body={"longctx": {"method": "streamingllm"}}).usage for _ in range(2)]
    found = {name: value - before[name] for name, value in read_all("streamingllm").items()}
    assert found["prompt"] == found["queries"] == sum(one.prompt_tokens for one in answers)
    assert found["hits"] == sum(one.longctx["cached_tokens"] for one in answers)
    assert found["written"] == sum(one.completion_tokens for one in answers) == 2 * 16
    assert (found["first"], found["per_token"], found["waits"]) == (2, 2, 2)
    assert 0 < found["ratio"] <= 2
    assert found["steps"] >= 2 * 15 - 1


def test_pages_and_answers_in_the_engine_are_asked_at_each_scrape(client, server):
    adapter = server.app.state.host.servable(MODEL).adapter
    generation_metrics.watch_scheduler(MODEL, adapter.scheduler)  # another test's app may serve a model of this name
    used, free = read("kv_pages_used", model=MODEL), read("kv_pages_free", model=MODEL)
    assert used + free == adapter.engine.pool.capacity
    assert (read("requests_running", model=MODEL), read("requests_waiting", model=MODEL)) == (0, 0)

    def read_while_it_answers() -> bool:
        """Whether the answer is counted; a small model may have ended it before it is read."""
        with client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=100, stream=True) as stream:
            next(iter(stream))
            return read("requests_running", model=MODEL) == 1

    until(read_while_it_answers)


def test_a_model_that_was_unloaded_is_not_kept_by_its_gauges(decoder):
    engine = Engine(decoder)
    generation_metrics.watch_pages("gone", engine.pool)
    assert read("kv_pages_free", model="gone") > 0
    del engine
    gc.collect()
    assert read("kv_pages_free", model="gone") == 0


def test_a_preempted_answer_has_a_span_of_each_of_its_runs(decoder, recorded_spans):  # noqa: F811
    engine = Engine(decoder, kv_bytes=1, max_batch=4)
    requests = [Request(list(range(20 + n, 80 + n)), max_tokens=70) for n in range(3)]
    before = read("preemptions_total", model="crowded")
    with telemetry.bind(model="crowded"), telemetry.span("crowd", parent="") as crowd:
        answers = engine.generate(requests)
    preempted = sum(one.usage.preempted for one in answers)
    assert preempted > 0, "the pool is too large for this test"
    assert read("preemptions_total", model="crowded") - before == preempted
    parent = recorded_spans.one("crowd")
    runs = recorded_spans.named("decode")
    assert all(is_child(one, parent) for one in runs)
    assert crowd.traceparent.split("-")[1] == f"{parent.context.trace_id:032x}"
    assert len(recorded_spans.named("queue")) == 3 + preempted
    assert (sum(bool(one.attributes.get("fovea.preempted")) for one in runs), len(runs)) == (preempted, 3 + preempted)
