"""Headers that cross the gateway, callers behind a loopback port, and the table of routes and models."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea.api.replica import ReplicaRecord
from fovea.errors import InvalidOption, NotFound, PermissionDenied, TooLarge
from services.gateway.http.errors import find_error_format
from services.gateway.http.request_context import (
    RequestContext,
    build_request_headers,
    build_response_headers,
    require_local_request,
)
from services.gateway.routing.model_routing import resolve_service
from services.gateway.routing.route_table import RouteTable
from shared.asgi.errors import render_error
from shared.local_names import is_loopback
from shared.settings import Settings

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20).map(lambda n: n.encode())
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=30).map(str.encode)


FORM = b'--x\r\nContent-Disposition: form-data; name="%b"\r\nContent-Type: text/plain\r\n\r\nm2\r\n--x--'


def make_context(headers: list[tuple[bytes, bytes]] | None = None, **scope: Any) -> RequestContext:
    async def nothing(*_: Any) -> Any:
        return {}

    async def make() -> RequestContext:
        facts = {"type": "http", "method": "POST", "path": "/v1/echo", "raw_path": b"/v1/echo", "query_string": b""}
        facts |= {"headers": headers or [], **scope}
        return RequestContext(facts, nothing, nothing, Settings(_env_file=None, request_timeout_s=60))

    return asyncio.run(make())


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_all_other_headers_cross_unchanged_and_in_order(headers):
    ours = {
        b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"host", b"expect", b"authorization",
        b"x-api-key", b"prefer", b"cookie", b"idempotency-key",
    }  # fmt: skip
    plain = [(n, v) for n, v in headers if n not in ours and not n.startswith((b"x-fovea-", b"proxy-", b"x-request"))]
    passed = build_request_headers(make_context(plain))
    kept = [(n.encode(), v.encode()) for n, v in passed.items()]  # as aiohttp writes them
    assert kept[: len(plain)] == plain
    added = (b"x-request-id", b"traceparent", b"x-fovea-tenant", b"x-fovea-scopes", b"idempotency-key")
    assert tuple(name for name, _ in kept[len(plain) :]) == added


def test_these_headers_stay_behind_and_answers_lose_what_concerns_one_connection():
    names = (
        b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-authorization",
        b"host", b"authorization", b"x-api-key", b"cookie", b"x-fovea-tenant", b"x-fovea-any", b"prefer", b"expect",
        b"content-length",
    )  # fmt: skip
    passed = [build_request_headers(make_context([(name, b"somebody")])) for name in names]
    assert "somebody" not in [value for headers in passed for value in headers.values()]
    cookies = [(b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")]
    raw = [(b"Connection", b"close"), (b"Server", b"x"), *cookies, (b"Date", b"now")]
    assert build_response_headers(raw) == [(b"set-cookie", b"a"), (b"set-cookie", b"b")]


def test_every_attempt_has_one_idempotency_key_of_the_callers_choice_and_an_id_that_could_do_harm_is_replaced():
    made = make_context()
    first, second = (build_request_headers(made)["idempotency-key"] for _ in range(2))
    assert first == second != build_request_headers(make_context())["idempotency-key"]
    assert build_request_headers(make_context([(b"idempotency-key", b"mine")])).getall("idempotency-key") == ["mine"]
    for bad in (b"", b"a" * 129, b"a\x00b", "ключ".encode(), b"a\r\nx: y"):
        made = make_context([(b"x-request-id", bad)]).trace.request_id
        assert (made.isalnum(), len(made)) == (True, 16), bad


def test_loopback_is_known_by_name_and_address_and_reading_is_open_to_any_origin():
    ours = ("127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "a.localhost", "::1", "[::1]")
    others = ("0.0.0.0", "10.0.0.1", "localhost.evil.example", "", "127.0.0.1.nip.io", "::ffff:10.0.0.1")
    assert [host for host in ours + others if is_loopback(host)] == [*ours]
    require_local_request(make_context([(b"host", b"fovea.test:8080")]), "fovea.test")
    with pytest.raises(PermissionDenied, match=r"fovea\.test"):
        require_local_request(make_context([(b"host", b"fovea.test:8080")]), "127.0.0.1")
    foreign = [(b"host", b"localhost"), (b"origin", b"http://evil.example")]
    require_local_request(make_context(foreign, method="GET"), "127.0.0.1")
    with pytest.raises(PermissionDenied):
        require_local_request(make_context(foreign, method="DELETE"), "127.0.0.1")


FACTS = {"http": "http://h", "pid": 1, "ready": True, "seen": 0}
CLASSIFIERS = RouteTable.from_records([
    ReplicaRecord(id=name, service=name, models=(model,), routes=routes, **FACTS)
    for name, model, routes in (("a", "m1", ("/v1/classify",)), ("b", "m2", ("/v1/classify",)), ("c", "m3", ()))
])  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "query", "service"), [
    (b"application/json", b'{"model": "m2"}', b"", "b"),
    (b"application/json; charset=utf-8", b'{"x": {"model": "m1"}, "model": "m2"}', b"", "b"),
    (b"application/json", b'{"a": ["model"], "c": "\\"model\\": \\"m1\\"", "model" : "m2"}', b"", "b"),
    (b"application/json", b'{"t": "model", "model":"\\u006d2"}', b"", "b"),
    (b"application/json", b'["model", "m2"]', b"", "a"), (b"application/json", b'{"model": ["m2"]}', b"", "a"),
    (b"application/json", b'{"model": {"model": "m2"}}', b"", "a"), (b"application/json", b"", b"", "a"),
    (b"application/json", b'{"model": 7}', b"", "a"), (b"application/json", b"[1]", b"", "a"),
    (b"application/json", b"{broken", b"", "a"), (b"application/json", b"[" * 100_000, b"", "a"),
    (b"image/png", b'{"model": "m2"}', b"", "a"), (b"image/png", b"\x89PNG", b"model=m2", "b"),
    (b"multipart/form-data; boundary=x", FORM % b"model", b"", "b"),
    (b"multipart/form-data; boundary=x", FORM % b"image", b"", "a"), (b"", b"", b"", "a"),
])  # fmt: skip
def test_the_model_is_read_wherever_callers_put_it(kind, body, query, service):
    made = make_context([(b"content-type", kind)], query_string=query)
    found = asyncio.run(resolve_service(made, CLASSIFIERS.find("/v1/classify"), body, CLASSIFIERS))
    assert found.services == (service,)


def test_a_model_of_another_path_or_of_nobody_is_told_with_those_there_are_and_an_adapter_found():
    made = make_context([(b"content-type", b"application/json")])
    with pytest.raises(NotFound, check=lambda told: "m1, m2" in told.hint):
        asyncio.run(resolve_service(made, CLASSIFIERS.find("/v1/classify"), b'{"model": "m3"}', CLASSIFIERS))
    with pytest.raises(NotFound, check=lambda told: "org/pranet" in told.hint):
        TABLE.find("/v2/models/prenet/infer")
    route = WITH_ADAPTERS.find("/v1/models/my-adapter")
    assert (route.services, route.model) == (("llm",), ""), "what a caller makes up is no label of metrics"
    assert WITH_ADAPTERS.find("/v1/models/pranet").services == ("seg",)
    with pytest.raises(NotFound):
        WITH_ADAPTERS.find("/v2/models/my-adapter/infer")


def replica(service, routes=(), models=(), name="r1", **marks: Any):
    where = {"id": f"{service}-{name}", "service": service, "http": "http://h:1", "pid": 1}
    return ReplicaRecord(**where, ready=True, models=models, routes=routes, seen=0, **marks)


LLM = ("/v1/chat/completions", "/v1/sessions/{id}", "/v1/probe/{kind}/run", "/v1/documents")
TABLE = RouteTable.from_records([
    replica("seg", ("/v1/segment", "/livez", "/v1/models", "/v2/models/{name}/infer"), ("pranet", "org/pranet")),
    replica("llm", LLM, ("a/ready",), effectful=("/v1/sessions/{id}", "/v1/documents")),
    replica("papers", ("/v1/papers/{path:path}",)),
])  # fmt: skip
WITH_ADAPTERS = RouteTable.from_records([
    replica("seg", ("/v1/segment",), ("pranet",)), replica("llm", ("/v1/lora-adapters",), ("smollm",)),
])  # fmt: skip


@pytest.mark.parametrize(("path", "service", "label"), [
    ("/v1/segment", "seg", "/v1/segment"), ("/v1/segment/more/below", "seg", "/v1/segment"),
    ("/v1/sessions/42", "llm", "/v1/sessions/{id}"), ("/v1/probe/heads/run", "llm", "/v1/probe/{kind}/run"),
    ("/v1/documents/7/pages", "llm", "/v1/documents"), ("/v1/papers/a/b/c", "papers", "/v1/papers/{path:path}"),
    ("/v2/models/pranet/infer", "seg", "/v2/models/{name}/infer"),
    ("/v2/models/org/pranet/versions/2/ready", "seg", "/v2/models/{name}/ready"),
    ("/v2/models/pranet", "seg", "/v2/models/{name}/"),
    ("/v2/models/a/ready/infer", "llm", "/v2/models/{name}/infer"),
    ("/v2/repository/models/org/pranet/load", "seg", "/v2/repository/models/{name}/load"),
    ("/v1/models/org/pranet", "seg", "/v1/models/{name}/"),
    ("/v1/models/org/pranet/example", "seg", "/v1/models/{name}/example"),
    ("/v1/models/org/pranet/sparsity", "seg", "/v1/models/{name}/sparsity"),
])  # fmt: skip
def test_a_path_leads_to_its_service(path, service, label):
    route = TABLE.find(path)
    assert (route.services, route.label) == ((service,), label)


def test_paths_of_our_own_and_of_nobody_lead_nowhere():
    ours = ("/", "/livez", "/v1/models", "/v1/jobs/1", "/v2")
    for path in (*ours, "/v1/segmentation", "/v1/probe/heads", "/v1/segment/../x"):
        assert TABLE.find(path) is None, path


def test_routes_are_effectful_or_endless_where_one_replica_marks_them_and_never_by_their_name():
    effectful = ("/v1/sessions/42", "/v1/documents", "/v1/documents/7/pages")
    for path in (*effectful, "/v1/chat/completions", "/v1/papers/a"):
        assert TABLE.find(path).is_effectful is (path in effectful), path
    table = RouteTable.from_records([replica("old", ("/v1/sessions", "/v1/documents", "/v1/detect/stream"))])
    assert not any(route.is_effectful or route.is_endless for route in table.paths.values())
    marks = {"effectful": ("/v1/x",), "endless": ("/v1/x",)}
    records = [replica("a", ("/v1/x",), name="new", **marks), replica("a", ("/v1/x",), name="old")]
    for order in (records, records[::-1]):
        route = RouteTable.from_records(order).paths["/v1/x"]
        assert (route.services, route.is_effectful, route.is_endless) == (("a",), True, True)
    facts = {**FACTS, "id": "x", "service": "s", "models": [], "routes": ["/v1/x"]}
    record = ReplicaRecord.model_validate_json(json.dumps(facts))
    assert (record.effectful, record.endless) == ((), ())


@given(st.text(max_size=60))
def test_no_path_breaks_the_table(text):
    for prefix in ("/", "/v1/", "/v2/models/", "/v1/models/", "/v2/repository/models/"):
        with contextlib.suppress(NotFound):
            route = TABLE.find(prefix + text)
            assert route is None or route.services


@pytest.mark.parametrize(("path", "form", "status"), [
    ("/v2/models/x/infer", "oip", 400), ("/v1/chat/completions", "openai", 400),
    ("/v1/models", "openai", 400), ("/v1/messages", "anthropic", 400),
    ("/v1/messages/count_tokens", "anthropic", 400), ("/v1/messagesx", "problem", 422),
    ("/v1/modelsx", "problem", 422), ("/v1/segment", "problem", 422),
])  # fmt: skip
def test_each_family_has_its_own_form_and_knows_its_own_statuses(path, form, status):
    assert find_error_format(path) == form
    assert render_error(InvalidOption("no"), find_error_format(path), "id")[0] == status
    assert render_error(TooLarge("no"), find_error_format(path), "id")[0] == 413
