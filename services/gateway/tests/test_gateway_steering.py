"""Interventions through the gateway: the replica learns what a key allows, and the audit log who looked inside."""

import json
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route

from fovea.api.replica import AUDIT_HEADER, SCOPES_HEADER
from services.gateway.http.middleware import _may_steer
from services.gateway.tests.stage import ForgetfulQueue
from services.gateway.tests.stub_service import Stub

STEERED = {"messages": [], "interventions": [{"vector": "calm@1"}]}


async def test_a_replica_is_told_the_scopes_and_what_it_says_is_audited(gateway, toy, ring):
    seen: list[str] = []

    async def chat(request: Any) -> JSONResponse:
        seen.append(request.headers[SCOPES_HEADER])
        told = {"act": "interventions", "model": "smol", "vectors": "calm@1"}
        return JSONResponse({}, headers={AUDIT_HEADER: json.dumps(told)} if b"vector" in await request.body() else {})

    (key, text), (_, admin) = ring.add("ann", ("infer", "interventions")), ring.add("ops", ("infer", "admin"))
    scene = await gateway(auth="keys")
    upstream = await toy(extra=[Route("/v1/asks", chat, methods=["POST"])])
    scene.announce(upstream.url, routes=("/v1/asks",))
    forged = {"x-api-key": text, SCOPES_HEADER: "infer,admin,metrics"}
    answer = await scene.client.post("/v1/asks", json=STEERED, headers=forged)
    await scene.client.post("/v1/asks", json={"messages": []}, headers={"x-api-key": text})
    assert (answer.status_code, AUDIT_HEADER in answer.headers) == (200, False)
    assert seen == ["infer,interventions"] * 2
    entries = (await scene.client.get("/v1/admin/audit", headers={"x-api-key": admin})).json()["entries"]
    (entry,) = [one for one in entries if one["act"] == "interventions"]
    assert (entry["actor"], entry["target"], entry["vectors"]) == (f"ann/{key.id}", "/v1/asks", "calm@1")
    assert entry["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "is_audited"),
    [
        (b'{"interventions": [{}]}', True), (b'{"\\u0069nterventions": [{}]}', True),
        (b'{"captur\\u0065": [{}]}', True), (b'{"messages": ["\\u0069"]}', False), (b"\x00\x01\\u", False),
    ],
)  # fmt: skip
async def test_a_job_that_may_steer_is_audited_however_its_fields_are_written(body, is_audited):
    assert await _may_steer(body) is is_audited


async def test_a_job_that_makes_a_vector_is_audited(served, ring):
    _, text = ring.add("ann", ("infer", "jobs", "interventions"))
    scene = await served(ForgetfulQueue(Stub().app), auth="keys")
    scene.announce(scene.upstream.url, name="v", service="vectors", routes=("/v1/steering-vectors",))
    headers = {"x-api-key": text, "prefer": "respond-async"}
    assert (await scene.client.post("/v1/steering-vectors", json={}, headers=headers)).status_code == 202
    assert [entry["act"] for entry in scene.app.state.gateway.audit.read(5)] == ["interventions queued"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/probe", 403), ("POST", "/v1/probe/activations", 403), ("GET", "/v1/probe/models", 200),
        ("POST", "/v1/probes", 404),
    ],
)  # fmt: skip
async def test_studies_need_the_scope_that_looks_inside(served, ring, method, path, status):
    (_, plain), (_, inside) = ring.add("ann", ("infer",)), ring.add("bob", ("infer", "interventions"))
    scene = await served(auth="keys")
    routes = ("/v1/probe", "/v1/probe/activations", "/v1/probe/models")
    scene.announce(scene.upstream.url, name="p", service="probe", routes=routes)
    asked = [await scene.client.request(method, path, headers={"x-api-key": key}) for key in (plain, inside)]
    assert [answer.status_code for answer in asked] == [status, 404 if status == 404 else 200]
