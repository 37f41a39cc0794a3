"""Keys are changed and revoked by those who may, in every gateway; the audit log has each act, and who steered."""

import asyncio
import contextlib
import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route
from typer.testing import CliRunner

from fovea.api.job import Job
from fovea.api.replica import AUDIT_HEADER, SCOPES_HEADER
from fovea.errors import Conflict, RateLimited, Unauthenticated
from services.gateway.http.middleware import _may_steer
from services.gateway.policy import audit_log, auth, revocation
from services.gateway.policy.audit_log import AuditLog
from services.gateway.policy.auth import KeyRing
from services.gateway.policy.key_file import read_keys
from services.gateway.policy.keys_cli import keys
from services.gateway.tests.grpc_front import ANSWER, call, exchange, open_stream, refused
from services.gateway.tests.stage import ForgetfulQueue
from services.gateway.tests.stub_service import Stub
from shared.jobs.key_limits import JobKeyLimits, describe_key
from shared.settings import settings
from tests.harness.waiting import until


@pytest.fixture
async def admin(served, ring):
    key, text = ring.add("ops", ("admin", "infer"))
    scene = await served(auth="keys")

    async def send(method: str, path: str, body: Any = None, key: str = text) -> Any:
        return await scene.client.request(method, path, json=body, headers={"x-api-key": key})

    send.id = key.id  # type: ignore[attr-defined]
    return send


async def test_a_keys_life(admin, tmp_path):
    made = await admin("POST", "/v1/admin/keys", {"tenant": "alice", "scopes": ["infer"], "tokens_per_day": 10})
    assert made.status_code == 201
    key, text = made.json()["id"], made.json()["key"]
    assert (await admin("POST", "/v1/echo", key=text)).status_code == 200
    changed = await admin("PATCH", f"/v1/admin/keys/{key}", {"rate_per_minute": 7, "weight": 2})
    assert (changed.json()["rate_per_minute"], changed.json()["tokens_per_day"]) == (7, 10)
    assert changed.json()["last_used"] is not None
    own = (await admin("GET", "/v1/usage/limits", key=text)).json()
    assert (own["tenant"], own["key"], own["scopes"]) == ("alice", key, ["infer"])
    assert {one["unit"]: one["limit"] for one in own["limits"]} == {"requests per minute": 7, "tokens per day": 10}
    (alice,) = (await admin("GET", "/v1/admin/keys?tenant=alice")).json()["keys"]
    assert {one["unit"]: one["used"] for one in alice["use"]} == {"requests per minute": 1, "tokens per day": 0}
    rotated = (await admin("POST", f"/v1/admin/keys/{key}/rotate", {"overlap_hours": 1})).json()
    assert (rotated["tenant"], rotated["rate_per_minute"], rotated["weight"]) == ("alice", 7, 2)
    for each in (text, rotated["key"]):
        assert (await admin("POST", "/v1/echo", key=each)).status_code == 200
    (await admin("POST", f"/v1/admin/keys/{rotated['id']}/rotate", {"overlap_hours": 0})).raise_for_status()
    assert (await admin("POST", "/v1/echo", key=rotated["key"])).status_code == 401
    listed = {entry["id"]: entry for entry in (await admin("GET", "/v1/admin/keys?tenant=alice")).json()["keys"]}
    assert len(listed) == 3
    assert timedelta(minutes=50) < datetime.fromisoformat(listed[key]["expires"]) - datetime.now(UTC) < timedelta(1)
    assert (await admin("DELETE", f"/v1/admin/keys/{key}")).status_code == 200
    assert (await admin("POST", "/v1/echo", key=text)).status_code == 401
    tenants = [{"tenant": "alice", "keys": 2, "valid_keys": 1}, {"tenant": "ops", "keys": 1, "valid_keys": 1}]
    assert (await admin("GET", "/v1/admin/tenants")).json()["tenants"] == tenants
    acts = (await admin("GET", "/v1/admin/audit")).json()["entries"]
    assert [entry["act"] for entry in acts] == ["key revoked", "key rotated", "key rotated", "key changed", "key made"]
    assert {entry["actor"] for entry in acts} == {f"ops/{admin.id}"}
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert not [name for name in ("audit.jsonl", "keys.json") if text in (tmp_path / name).read_text()]


def test_a_long_audit_log_is_read_from_its_last_whole_line(tmp_path, monkeypatch):
    log = AuditLog(tmp_path / "audit.jsonl")
    for number in range(3):
        log.write("ops/1", f"act {number}", "x", changes={"weight": 1})
    whole = (tmp_path / "audit.jsonl").read_bytes()
    monkeypatch.setattr(audit_log, "_MAX_READ_BYTES", len(whole) - whole.index(b'{"weight"'))
    assert [entry["act"] for entry in log.read(10)] == ["act 2", "act 1"]


async def test_only_admins_may_change_keys_which_expire_in_utc_and_see_the_replicas_with_their_load(admin):
    mine = (await admin("POST", "/v1/admin/keys", {"tenant": "bob"})).json()["key"]
    for asked in ("GET keys", "POST keys", "DELETE keys/0123abcd", "GET audit", "GET replicas"):
        method, path = asked.split()
        answers = [await admin(method, f"/v1/admin/{path}", {}, key=key) for key in (mine, "wrong")]
        assert [answer.status_code for answer in answers] == [403, 401], asked
    (replica,) = (await admin("GET", "/v1/admin/replicas")).json()["replicas"]
    assert (replica["id"], replica["service"], replica["ready"], replica["requests"]) == ("r1", "svc", True, 0)
    assert datetime.now(UTC) - datetime.fromisoformat(replica["seen"]) < timedelta(minutes=5)
    for offset, hour in (("", 10), ("+02:00", 8)):
        expiry = {"expires": f"2090-01-31T10:00:00{offset}"}
        made = await admin("POST", "/v1/admin/keys", {"tenant": "alice", **expiry})
        assert (made.status_code, made.json().get("expires")) == (201, f"2090-01-31T{hour:02}:00:00Z")
        assert (await admin("POST", "/v1/echo", key=made.json()["key"])).status_code == 200
        (await admin("PATCH", f"/v1/admin/keys/{made.json()['id']}", expiry)).raise_for_status()
        assert {(await admin("GET", f"/v1/admin/{path}")).status_code for path in ("keys", "tenants")} == {200}


async def test_what_is_wrong_is_told_and_a_key_file_that_can_not_be_written_is_no_fault(admin, read_only_keys):
    for path, body in (
        ("keys", {"tenant": "../x"}), ("keys", {"tenant": "a", "scopes": ["root"]}), ("keys/0123abcd/rotate", {}),
        ("keys", {"tenant": "a", "sha256": "0" * 64}), ("keys", {"tenant": "a", "weight": -1}),
        ("keys/..%2f/rotate", {}), ("keys", {"tenant": "a", "expires": "0001-01-01T00:00:00+12:00"}),
        ("keys/0123abcd/rotate", {"overlap_hours": 1e9}),
    ):  # fmt: skip
        refused = (await admin("POST", f"/v1/admin/{path}", body)).status_code
        assert refused == 422 or (refused, "rotate" in path) == (404, True), path
    read_only_keys()
    for method, path, body in (("POST", "keys", {"tenant": "bob"}), ("PATCH", f"keys/{admin.id}", {"weight": 2})):
        answer = await admin(method, f"/v1/admin/{path}", body)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "FOVEA_KEYS_FILE" in answer.json()["hint"]
    assert [key["id"] for key in (await admin("GET", "/v1/admin/keys")).json()["keys"]] == [admin.id]


def test_keys_that_are_made_at_once_are_all_kept(tmp_path):
    script = (
        "import sys; from pathlib import Path; from services.gateway.policy.auth import KeyRing;"
        "[KeyRing(Path(sys.argv[1])).add(f'{sys.argv[2]}{n}', ('infer',)) for n in range(20)]"
    )
    path = tmp_path / "keys.json"
    made = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    assert [process.wait() for process in made] == [0] * 2
    ring = KeyRing(path)
    assert {key.tenant for key in ring.list_keys()} == {f"{name}{n}" for name in "ab" for n in range(20)}
    with pytest.raises(Unauthenticated):
        ring.authenticate("fovea_00000000_x")


async def test_a_replica_is_told_the_scopes_and_what_it_says_is_audited(gateway, toy, ring):
    seen: list[str] = []

    async def chat(request: Any) -> JSONResponse:
        seen.append(request.headers[SCOPES_HEADER])
        told = {"act": "interventions", "model": "smol", "vectors": "calm@1"}
        return JSONResponse({}, headers={AUDIT_HEADER: json.dumps(told)} if b"vector" in await request.body() else {})

    (key, text), (_, admin) = ring.add("ann", ("infer", "interventions")), ring.add("ops", ("infer", "admin"))
    scene, upstream = await gateway(auth="keys"), await toy(extra=[Route("/v1/asks", chat, methods=["POST"])])
    scene.announce(upstream.url, routes=("/v1/asks",))
    forged = {"x-api-key": text, SCOPES_HEADER: "infer,admin,metrics"}
    answer = await scene.client.post("/v1/asks", json={"interventions": [{"vector": "calm@1"}]}, headers=forged)
    await scene.client.post("/v1/asks", json={"messages": []}, headers={"x-api-key": text})
    assert (answer.status_code, AUDIT_HEADER in answer.headers, seen) == (200, False, ["infer,interventions"] * 2)
    entries = (await scene.client.get("/v1/admin/audit", headers={"x-api-key": admin})).json()["entries"]
    (entry,) = [one for one in entries if one["act"] == "interventions"]
    assert (entry["actor"], entry["target"], entry["vectors"]) == (f"ann/{key.id}", "/v1/asks", "calm@1")
    assert entry["request_id"] == answer.headers["x-request-id"]


async def test_a_job_that_may_steer_or_makes_a_vector_is_audited_however_its_fields_are_written(served, ring):
    steering = (b'{"interventions": [{}]}', b'{"\\u0069nterventions": [{}]}', b'{"captur\\u0065": [{}]}')
    for body in (*steering, b'{"messages": ["\\u0069"]}', b"\x00\x01\\u"):
        assert await _may_steer(body) is await _may_steer(gzip.compress(body), "gzip") is (body in steering)
    assert await _may_steer('{"capture": [{}]}'.encode("utf-16"))
    assert await _may_steer(gzip.compress(b" " * 2**23), "gzip"), "too long to tell"
    _, text = ring.add("ann", ("infer", "jobs", "interventions"))
    scene = await served(ForgetfulQueue(Stub().app), auth="keys")
    scene.announce(scene.upstream.url, name="v", service="vectors", routes=("/v1/steering-vectors",))
    headers = {"x-api-key": text, "prefer": "respond-async"}
    assert (await scene.client.post("/v1/steering-vectors", json={}, headers=headers)).status_code == 202
    assert [entry["act"] for entry in scene.app.state.gateway.audit.read(5)] == ["interventions queued"]


async def until_refused(scene: Any, key: str) -> None:
    async with asyncio.timeout(20):
        while (await scene.client.post("/v1/echo", headers={"x-api-key": key})).status_code != 401:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_open_stream_ends_when_its_key_is_revoked_and_anothers_goes_on(served, ring):
    (key, text), (_, other) = ring.add("alice", ("infer",)), ring.add("bob", ("infer",))
    scene = await served(auth="keys", fields={"chunks": 10**6, "gap_s": 0.01})
    async with contextlib.AsyncExitStack() as stack:
        streams = [scene.client.stream("POST", "/v1/stream", headers={"x-api-key": each}) for each in (text, other)]
        revoked, going = [(await stack.enter_async_context(stream)).aiter_lines() for stream in streams]
        await asyncio.gather(anext(revoked), anext(going))
        ring.revoke(key.id)
        async with asyncio.timeout(10):
            *_, last = [line async for line in revoked if line]
        assert "The API key was revoked." in last, "the stream ends with an event that says why"
        await until(lambda: scene.known.in_flight == 1)
        assert await anext(going) is not None


class EndlessJob:
    """A queue with one job that never ends."""

    async def get(self, job_id: str, _tenant: str) -> Job:
        return Job(id=job_id, service="svc", path="/", status="running", created=datetime.now(UTC))

    async def events(self, job_id: str, tenant: str) -> AsyncIterator[Job]:
        yield await self.get(job_id, tenant)
        await asyncio.Event().wait()


async def test_a_stream_of_a_jobs_events_ends_when_its_key_expires(gateway, ring):
    key, text = ring.add("alice", ("infer", "jobs"))
    scene = await gateway(EndlessJob(), auth="keys")
    async with scene.client.stream("GET", "/v1/jobs/endless/events", headers={"x-api-key": text}) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        ring.update(key.id, {"expires": "2020-01-01T00:00:00Z"})
        async with asyncio.timeout(10):
            *_, last = [line async for line in lines if line.startswith("data: ")]
        assert json.loads(last[6:])["error"]["code"] == "unauthenticated"


async def test_a_stream_of_grpc_ends_when_its_key_is_revoked(fronted, ring):
    key, text = ring.add("alice", ("infer",))
    _, channel = await fronted(auth="keys")
    stream = open_stream(channel, text)
    assert await exchange(stream) == ANSWER
    ring.revoke(key.id)
    assert (await refused(asyncio.wait_for(stream.read(), 10))).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_key_is_revoked_in_redis_where_its_file_can_not_be_written(
    served, ring, redis_url, monkeypatch, read_only_keys, tmp_path
):
    (_, admin), (key, text) = ring.add("ops", ("admin", "infer")), ring.add("alice", ("infer",))
    other, others = ring.add("bob", ("infer",))
    monkeypatch.setattr(revocation, "CHECK_INTERVAL_S", 0.01)
    one, two = [await served(auth="keys", redis_url=redis_url) for _ in range(2)]
    read_only_keys()
    gone = await one.client.delete(f"/v1/admin/keys/{key.id}", headers={"x-api-key": admin})
    assert (gone.status_code, gone.json()["id"], key in read_keys(ring._path)) == (200, key.id, True)
    for scene in (one, two):
        await until_refused(scene, text)
        for each in (admin, others):
            assert (await scene.client.post("/v1/echo", headers={"x-api-key": each})).status_code == 200
    ring._path.write_text("{")  # corrupt, so that only the command can tell Redis
    monkeypatch.setenv("FOVEA_DATA_DIR", str(tmp_path))
    settings.cache_clear()
    assert isinstance(CliRunner().invoke(keys, ["revoke", other.id]).exception, Conflict)
    monkeypatch.setenv("FOVEA_REDIS_URL", redis_url)
    settings.cache_clear()
    assert CliRunner().invoke(keys, ["revoke", other.id]).exit_code == 0
    settings.cache_clear()
    await until_refused(one, others)


async def test_without_redis_a_gateway_says_that_it_alone_refuses_the_key(served, ring, monkeypatch):
    (_, admin), (key, text) = ring.add("ops", ("admin", "infer")), ring.add("alice", ("infer",))
    scene = await served(auth="keys")
    assert (await scene.client.post("/v1/echo", headers={"x-api-key": text})).status_code == 200
    ring._path.write_text("{")
    told = await scene.client.delete(f"/v1/admin/keys/{key.id}", headers={"x-api-key": admin})
    assert (told.status_code, "until it restarts" in told.json()["detail"]) == (409, True)
    answers = [await scene.client.post("/v1/echo", headers={"x-api-key": each}) for each in (text, admin)]
    assert [answer.status_code for answer in answers] == [401, 200]


async def test_a_job_of_a_revoked_key_does_not_run(redis_url, ring):
    limits, watch = JobKeyLimits(redis_url), revocation.Revocations(ring, redis_url)
    revoked = describe_key("0123abcd", None, None)
    await limits.require_usable(revoked)
    assert await watch.publish("0123abcd")
    with pytest.raises(Unauthenticated, match="revoked"):
        await limits.require_usable(revoked)
    for other in (describe_key("ffffffff", None, None), {}):
        await limits.require_usable(other)
    await limits.stop()
    await watch.stop()


async def test_wrong_keys_are_throttled_also_over_grpc_and_good_ones_are_not(served, ring, monkeypatch, front):
    monkeypatch.setattr(auth, "MAX_PER_MINUTE", 3)
    _, text = ring.add("alice", ("infer",))
    scene = await served(auth="keys")

    async def send(key: str | None) -> Any:
        return await scene.client.post("/v1/echo", headers={} if key is None else {"x-api-key": key})

    assert [(await send(f"fovea_{n:08x}_x")).status_code for n in range(5)] == [401, 401, 401, 429, 429]
    assert 1 <= int((await send("fovea_wrong")).headers["retry-after"]) <= 60
    assert (await send(text)).status_code == 200
    assert (await send(None)).status_code == 401, "no key is no guess"
    _, channel = await front(auth="keys")
    wrong = (("x-api-key", "wrong"),)
    codes = [(await refused(call(channel, "ServerMetadata", metadata=wrong))).code().name for _ in range(5)]
    assert codes == ["UNAUTHENTICATED"] * 3 + ["RESOURCE_EXHAUSTED"] * 2


def test_addresses_of_wrong_keys_are_forgotten(clock):
    clock.govern(auth)
    seen = auth.BadKeys()
    for _ in range(auth.MAX_PER_MINUTE):
        seen.note("a")
    with pytest.raises(RateLimited):
        seen.note("a")
    for number in range(auth._MAX_ADDRESSES + 5):
        seen.note(f"b{number}")
    assert len(seen._seen) <= auth._MAX_ADDRESSES
    clock.advance(61)
    seen.note("a")
