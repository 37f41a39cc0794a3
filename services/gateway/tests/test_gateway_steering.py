"""Interventions through the gateway: the replica learns what a key allows, and the audit log who looked inside."""

import json
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route

from services.gateway.batches.batch_records import BatchRecords
from services.gateway.batches.batch_service import BatchService
from services.gateway.batches.file_store import FileStore
from services.gateway.http.middleware import _may_steer
from services.gateway.policy.auth import KeyRing
from services.gateway.tests.stage import ForgetfulQueue
from services.gateway.tests.stub_service import Stub
from shared.api.batches import BatchRequest
from shared.api.replica import AUDIT_HEADER, SCOPES_HEADER
from shared.storage import ObjectStore

STEERED = {"messages": [], "interventions": [{"vector": "calm@1"}]}


@pytest.fixture
def ring(tmp_path):
    return KeyRing(tmp_path / "keys.json")


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
        (b'{"interventions": [{}]}', True),
        (b'{"\\u0069nterventions": [{}]}', True),
        (b'{"captur\\u0065": [{}]}', True),
        (b'{"messages": ["\\u0069"]}', False),
        (b"\x00\x01\\u", False),
    ],
)
async def test_a_job_that_may_steer_is_audited_however_its_fields_are_written(body, is_audited):
    assert await _may_steer(body) is is_audited


@pytest.mark.parametrize("more", [{}, {"interventions": [{}]}, {"capture": [{}]}])
async def test_a_batch_that_steers_is_audited(tmp_path, more):
    objects, audited = ObjectStore.open(tmp_path.as_uri()), list[str]()
    files = FileStore(objects, 10_000)
    service = BatchService(BatchRecords(objects), files, 60)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"prompt": "x", **more}}
    stored = files.add("ann", "a.jsonl", "batch", json.dumps(line).encode())
    request = BatchRequest(input_file_id=stored.id, endpoint="/v1/chat/completions")
    await service.create(
        "ann", request, "stub", ForgetfulQueue(Stub().app, step_s=0.01), audit=lambda: audited.append("queued")
    )
    assert audited == ["queued"] * bool(more)
