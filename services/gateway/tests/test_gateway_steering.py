"""Interventions through the gateway: the replica learns what a key allows, and the audit log who looked inside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route

from services.gateway.policy.auth import KeyRing
from shared.api.replica import AUDIT_HEADER, SCOPES_HEADER

STEERED = {"messages": [], "interventions": [{"vector": "calm@1"}]}


@pytest.fixture
def ring(tmp_path: Any) -> KeyRing:
    return KeyRing(tmp_path / "keys.json")


async def test_a_replica_is_told_the_scopes_and_what_it_says_is_audited(gateway: Any, toy: Any, ring: KeyRing) -> None:
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
