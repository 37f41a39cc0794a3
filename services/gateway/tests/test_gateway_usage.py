"""A tenant's consumption is in the ledger and nobody else sees it; numbers of all replicas are one document."""

import asyncio
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import RedisError
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fovea.api.usage import USAGE_HEADER, UsageScanner, find_model, read_header
from services.gateway.routes.health import merge_metrics
from shared.jobs.usage_ledger import UsageLedger

LONGCTX = {"kv_bytes": 4096, "cached_tokens": 3}
ANSWER = {
    "model": "smol",
    "choices": [{"message": {"content": 'I say "usage": {"prompt_tokens": 1000}'}}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "longctx": LONGCTX},
}


def chatting() -> list[Route]:
    async def chat(_request: Any) -> JSONResponse:
        return JSONResponse(ANSWER, headers={USAGE_HEADER: json.dumps({"pictures": 2, "cpu_seconds": 0.25, "x": 1})})

    async def stream(_request: Any) -> StreamingResponse:
        events = [{"model": "smol", "choices": [{"delta": {"content": str(i)}}]} for i in range(4)]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        pieces = [text[i : i + 7].encode() for i in range(0, len(text), 7)]

        async def parts() -> Any:
            for piece in pieces:
                yield piece

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def drawn(_request: Any) -> Response:
        return Response(b"\x89PNG", headers={USAGE_HEADER: '{"model": "smol"}'}, media_type="image/png")

    return [Route(f"/v1/{each.__name__}", each, methods=["POST"]) for each in (chat, stream, drawn)]


async def test_a_tenant_sees_what_it_consumed(gateway, toy, ring):
    alice, bob = (ring.add(name, ("infer",), rate_per_minute=1000)[1] for name in ("alice", "bob"))
    admin = ring.add("ops", ("infer", "admin"))[1]
    scene = await gateway(auth="keys")
    upstream = await toy(extra=chatting())
    scene.announce(upstream.url, routes=("/v1/chat", "/v1/stream", "/v1/drawn"))

    async def ask(path: str, key: str, method: str = "GET", **more: Any) -> Any:
        return await scene.client.request(method, path, headers={"x-api-key": key, **more})

    answer = await ask("/v1/chat", alice, "POST")
    assert answer.json() == ANSWER
    assert USAGE_HEADER not in answer.headers
    await ask("/v1/stream", alice, "POST")
    await ask("/v1/drawn", alice, "POST")  # a picture names no model: its replica does
    (record,) = (await ask("/v1/usage", alice)).json()["usage"]
    assert record["day"] == datetime.now(UTC).date().isoformat()
    assert (record["tenant"], record["model"], record["requests"]) == ("alice", "smol", 3)
    assert (record["tokens_in"], record["tokens_out"], record["cached_tokens"]) == (7, 5 + 4, 3)
    assert (record["pictures"], record["cpu_seconds"]) == (2, 0.25)
    assert record["kv_byte_seconds"] > 0
    assert (await ask("/v1/usage", bob)).json() == {"usage": []}
    assert (await ask("/v1/usage?tenant=alice", bob)).status_code == 403
    assert len((await ask("/v1/usage?tenant=*", admin)).json()["usage"]) == 1
    table = await ask("/v1/usage", alice, accept="text/csv")
    (row,) = csv.DictReader(io.StringIO(table.text))
    assert (row["tenant"], row["tokens_out"]) == ("alice", "9")
    for bad in ("since=x", "since=2020-01-01", "since=2026-02-02&until=2026-01-01", "format=xml"):
        assert (await ask(f"/v1/usage?{bad}", alice)).status_code == 422


async def test_tokens_are_counted_against_the_key(gateway, toy, ring):
    key = ring.add("alice", ("infer",), tokens_per_minute=12)[1]
    scene = await gateway(auth="keys")
    scene.announce((await toy(extra=chatting())).url, routes=("/v1/chat",))
    answers = [await scene.client.post("/v1/chat", headers={"x-api-key": key}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].headers["x-ratelimit-limit"] == "12"
    assert "12 tokens per minute" in answers[1].text


async def test_what_a_caller_read_before_it_hung_up_counts_too(gateway, toy, ring):
    async def stream(_request: Any) -> StreamingResponse:
        async def parts() -> Any:
            for i in range(1000):
                yield f"data: {json.dumps({'model': 'smol', 'choices': [{'delta': {'content': str(i)}}]})}\n\n".encode()
                await asyncio.sleep(0.01)

        return StreamingResponse(parts(), media_type="text/event-stream")

    key = ring.add("alice", ("infer",), tokens_per_day=2)[1]
    scene = await gateway(auth="keys")
    upstream = await toy(extra=[Route("/v1/stream", stream, methods=["POST"])])
    scene.announce(upstream.url, routes=("/v1/stream",))
    scene.client.headers["x-api-key"] = key
    async with scene.client.stream("POST", "/v1/stream") as answer:
        lines = answer.aiter_lines()
        for _ in range(8):
            await anext(lines)
    for _ in range(100):
        if (again := await scene.client.get("/v1/models")).status_code == 429:
            break
        await asyncio.sleep(0.02)
    assert "2 tokens per day" in again.text


async def test_the_ledger_survives_an_outage_and_a_restart(own_redis):
    ledger, today = UsageLedger(own_redis.url), datetime.now(UTC).date()
    ledger.add("alice", "m", {"tokens_in": 5})
    await ledger.flush()
    own_redis.kill()
    ledger.add("alice", "m", {"tokens_in": 6})
    with pytest.raises((RedisError, OSError)):
        await ledger.flush()
    own_redis.start()
    await ledger.stop()
    other = UsageLedger(own_redis.url)
    (record,) = await other.read("alice", today, today)
    assert (record.requests, record.tokens_in) == (2, 11)
    assert await other.read("bob", today, today) == []
    await other.stop()


def test_what_answers_say_is_read_and_what_they_quote_is_not():
    scanner = UsageScanner(is_stream=False)
    scanner.feed(json.dumps(ANSWER).encode())
    assert scanner.sum_up(2.0) == {"tokens_in": 7, "tokens_out": 5, "cached_tokens": 3, "kv_byte_seconds": 8192}
    reranked = UsageScanner(is_stream=False)
    reranked.feed(b'{"model": "minilm", "results": [], "usage": {"total_tokens": 31}}')
    assert reranked.sum_up(1)["tokens_in"] == 31
    anthropic = UsageScanner(is_stream=True)  # whose input tokens leave out the cached ones
    usage = {"input_tokens": 4, "output_tokens": 5, "cache_read_input_tokens": 3}
    event = json.dumps({"type": "message_delta", "usage": usage})
    anthropic.feed(f"event: message_delta\ndata: {event}\n\n".encode())
    assert anthropic.sum_up(2.0) == {"tokens_in": 7, "tokens_out": 5, "cached_tokens": 3, "kv_byte_seconds": 0}
    cut = UsageScanner(is_stream=True)  # of the Responses API, which states its usage at the end
    cut.feed(b'data: {"type": "response.output_text.delta", "delta": "x"}\n\n' * 3)
    assert cut.sum_up(1)["tokens_out"] == 3
    hung_up = UsageScanner(is_stream=True)  # on Anthropic's form, whose first event states what was read
    hung_up.feed(b'data: {"type": "message_start", "message": {"usage": {"input_tokens": 4, "output_tokens": 0}}}\n\n')
    hung_up.feed(b'data: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}\n\n' * 3)
    assert [hung_up.sum_up(1)[name] for name in ("tokens_in", "tokens_out")] == [4, 3]
    for broken in (b"", b"[]", b'{"usage": 5}', b'{"usage": {"prompt_tokens": "x", "completion_tokens": -1}}', b"\xff"):
        scanner = UsageScanner(is_stream=False)
        scanner.feed(broken)
        assert set(scanner.sum_up(1.0).values()) <= {0}
    assert find_model(b'{"model": "a/b"}') == "a/b"
    assert read_header("[1]") == read_header("{") == read_header(None) == {}


async def test_without_redis_the_oldest_days_go_before_the_rows_are_too_many(monkeypatch):
    monkeypatch.setattr("shared.jobs.usage_ledger._MAX_SUMS", 4)
    ledger, today = UsageLedger(None), datetime.now(UTC).date()
    for days in (3, 3, 2, 1):
        ledger._add_to(("ann", today - timedelta(days), f"m{len(ledger._sums)}"), {"requests": 1.0})
    ledger.add("ann", "new", {})
    found = await ledger.read("ann", today - timedelta(9), today)
    assert [record.day for record in found] == [today, today - timedelta(1), today - timedelta(2)]


ONE = """# HELP fovea_requests_total Requests by outcome.
# TYPE fovea_requests_total counter
fovea_requests_total{service="s",status="200"} 3.0
"""
TWO = f"""{ONE.replace("3.0", "4.0")}# HELP fovea_batch_size Requests.
# TYPE fovea_batch_size histogram
fovea_batch_size_bucket{{le="1.0"}} 1.0
fovea_batch_size_bucket{{le="+Inf"}} 2.0
fovea_batch_size_count 2.0
fovea_batch_size_sum 5.0
"""


def test_each_sample_says_which_replica_it_came_from_and_families_are_announced_once():
    merged = merge_metrics({"a": ONE, "b": TWO, "x": "{not metrics"})
    found = {family.name: family for family in text_string_to_metric_families(merged.decode())}
    assert found.keys() == {"fovea_requests", "fovea_batch_size"}, "what is no metrics text is left out"
    assert {s.labels["replica"]: s.value for s in found["fovea_requests"].samples} == {"a": 3.0, "b": 4.0}
    assert merged.count(b"# TYPE fovea_requests_total counter") == 1
    assert [s.value for s in found["fovea_batch_size"].samples if s.name.endswith("_bucket")] == [1.0, 2.0]
