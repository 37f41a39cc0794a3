"""Jobs over HTTP, on a queue that keeps the contract in memory."""

import asyncio
import contextlib
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from fovea import AsyncClient, endpoints
from fovea.api.job import Job
from fovea.errors import Conflict, NotFound, NotReady, QueueFull
from services.gateway.app import build_gateway
from services.gateway.routes import jobs
from services.gateway.server import create_server
from services.gateway.tests.conftest import ROUTES, listening, shut_down
from services.gateway.tests.stage import ForgetfulQueue
from shared.jobs.queue import Payload, Result

ASYNC = {"prefer": "respond-async"}


def parsed(events: bytes) -> list[Any]:
    return [json.loads(block.removeprefix(b"data: ")) for block in events.split(b"\n\n") if block.startswith(b"data: ")]


class HeldQueue(ForgetfulQueue):
    """Queue whose jobs begin when a test says so, and which can be away or full."""

    away, room = False, 100

    async def submit(self, payload, idempotency_key=None):
        if self.away:
            raise NotReady("The job queue can't be reached.", retry_after=1)
        if len(self.jobs) >= self.room:
            raise QueueFull("Too many jobs wait.", retry_after=7)
        known = self.keys.get(idempotency_key)
        if known and self.payloads[known].body != payload.body:
            raise Conflict("This idempotency key was used for another request.")
        return await super().submit(payload, idempotency_key)

    def _begin(self, job_id):
        self.tasks[job_id] = asyncio.get_running_loop().create_future()

    def finish(self, job_id, result):
        self.results[job_id] = result
        self._note(job_id, status="succeeded", progress=1.0)


@pytest.fixture
def queue():
    return HeldQueue(None)


@pytest.fixture
async def scene(served, queue):
    return await served(queue)


async def test_without_redis_there_is_no_queue_and_what_its_replica_wants_queued_is_refused(served):
    scene = await served()
    answer = await scene.client.post("/v1/long", content=b"{}")
    assert (answer.status_code, answer.text) == (413, "This takes long.")
    for answer in (await scene.client.post("/v1/echo", headers=ASYNC), await scene.client.get("/v1/jobs")):
        assert (answer.status_code, "FOVEA_REDIS_URL" in answer.json()["hint"]) == (503, True)


async def test_a_post_that_prefers_it_or_that_its_replica_wants_queued_becomes_a_job(scene, queue):
    headers = {**ASYNC, "content-type": "image/png", "accept": "image/png", "authorization": "Bearer secret"}
    answer = await scene.client.post("/v1/echo?threshold=0.4", content=b"picture", headers=headers)
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    assert (answer.headers["location"], Job.model_validate(answer.json()).status) == ("/v1/jobs/job-1", "queued")
    payload = queue.payloads["job-1"]
    assert (payload.service, payload.path, payload.body) == ("svc", "/v1/echo?threshold=0.4", b"picture")
    assert payload.tenant == payload.headers["x-fovea-tenant"] == "local"
    assert payload.headers["content-type"] == payload.headers["accept"] == "image/png"
    assert payload.headers["x-request-id"] == answer.headers["x-request-id"]
    assert ("authorization" in payload.headers, scene.upstream.seen) == (False, [])
    answer = await scene.client.post("/v1/long?seed=3", content=b'{"a": 1}')
    assert (answer.status_code, answer.headers["location"]) == (202, "/v1/jobs/job-2")
    assert (queue.payloads["job-2"].path, queue.payloads["job-2"].body) == ("/v1/long?seed=3", b'{"a": 1}')


def test_the_wish_is_read_as_the_standard_says():
    wishes = (b"respond-async", b"respond-async, wait=10", b"return=minimal; foo, Respond-Async")
    others = (b"wait=10", b"respond-asynchronously", b"")
    assert [jobs.prefers_async([(b"prefer", text)]) for text in wishes + others] == [True] * 3 + [False] * 3
    assert jobs.prefers_async([(b"prefer", b"respond-async"), (b"prefer", b"wait=10")])


async def test_a_key_seen_before_returns_the_first_job_and_a_queue_that_is_away_or_full_says_so(scene, queue):
    headers = {**ASYNC, "idempotency-key": "k1"}
    first = await scene.client.post("/v1/echo", content=b"a", headers=headers)
    again = await scene.client.post("/v1/echo", content=b"a", headers=headers)
    other = await scene.client.post("/v1/echo", content=b"b", headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    long = await scene.client.post("/v1/echo", headers={**ASYNC, "idempotency-key": "k" * 300})
    assert (long.status_code, long.json()["field"]) == (422, "idempotency-key")
    queue.room = 0
    full = await scene.client.post("/v1/echo", headers=ASYNC)
    assert (full.status_code, full.headers["retry-after"], full.json()["code"]) == (429, "7", "queue_full")
    queue.away = True
    away = await scene.client.post("/v1/echo", headers=ASYNC)
    assert (away.status_code, away.json()["code"]) == (503, "not_ready")
    in_oip = await scene.client.post("/v2/models/pranet/infer", headers=ASYNC)
    assert (in_oip.status_code, list(in_oip.json())) == (503, ["error"])


async def test_what_nobody_serves_is_refused_before_it_is_accepted_and_what_is_down_takes_jobs(scene, queue):
    for path in ("/v1/unknown", "/v2/models/unknown/infer"):
        assert (await scene.client.post(path, content=b"x", headers=ASYNC)).status_code == 404
    assert (await scene.client.get("/v1/sessions/1", headers=ASYNC)).status_code == 200, "a GET is never a job"
    assert ((await scene.client.post("/v1/jobs/job-1/cancel", headers=ASYNC)).status_code, queue.jobs) == (404, {})
    scene.announce("http://127.0.0.1:1", service="down", name="d", models=("m",), routes=("/v1/plan",), ready=False)
    assert (await scene.client.post("/v1/plan", headers=ASYNC)).status_code == 202


async def test_no_job_climbs_out_of_its_path_to_where_its_key_may_not_go(served, queue, ring):
    scene = await served(queue, auth="keys")
    _, key = ring.add("ann", ("infer", "jobs"))
    scene.announce(scene.upstream.url, routes=(*ROUTES, "/v1/lora-adapters"))
    above = ("steering-vectors", "{0}/v2/repository/models/pranet/unload")
    for path in (f"/v1/models/{{0}}/{end}".format(dots) for end in above for dots in ("..", "%2e%2e", ".%2E")):
        # Other clients resolve the dots themselves.
        with contextlib.closing(http.client.HTTPConnection(urlsplit(scene.url).netloc)) as sent:
            sent.putrequest("POST", path)
            for name, value in {**ASYNC, "x-api-key": key, "content-length": "0"}.items():
                sent.putheader(name, value)
            await asyncio.to_thread(sent.endheaders)
            assert (await asyncio.to_thread(sent.getresponse)).status == 404
    assert queue.payloads == {}


async def test_a_result_is_the_answer_byte_for_byte(scene, queue):
    await scene.client.post("/v1/echo", content=b"x", headers=ASYNC)
    early = await scene.client.get("/v1/jobs/job-1/result")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    kept = {"inference-header-content-length": "12", "content-length": "999", "x-fovea-usage": '{"cpu_seconds": 1}'}
    queue.finish("job-1", Result(201, "image/png", b"\x89PNG\x00", kept))
    answer = await scene.client.get("/v1/jobs/job-1/result")
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (201, b"\x89PNG\x00", "image/png")
    assert (answer.headers["inference-header-content-length"], "x-fovea-usage" in answer.headers) == ("12", False)


async def test_events_tell_every_change_and_end(scene, queue, monkeypatch):
    monkeypatch.setattr(jobs, "EVENT_HEARTBEAT_S", 0.01)
    await scene.client.post("/v1/echo", content=b"x", headers=ASYNC)

    async def work() -> None:
        await asyncio.sleep(0.3)
        queue._note("job-1", status="running", progress=0.5, note="half")
        await asyncio.sleep(0.3)
        queue.finish("job-1", Result(200, "text/plain", b""))

    answer, _ = await asyncio.gather(scene.client.get("/v1/jobs/job-1/events"), work())
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [(e["status"], e["progress"]) for e in parsed(answer.content)]
    assert told == [("queued", 0.0), ("running", 0.5), ("succeeded", 1.0)]
    assert answer.content.count(b": still here\n\n") >= 2


async def test_events_of_a_stopping_gateway_and_of_a_forgotten_job_end_with_an_error(gateway_settings, queue):
    settings = gateway_settings.model_copy(update={"shutdown_grace_s": 30})
    app = build_gateway(settings, queue)
    server = create_server(app, settings)
    server.on_stop = app.state.gateway.is_stopping.set
    (job, _), (gone, _) = [await queue.submit(Payload("svc", "/v1/echo", b"")) for _ in range(2)]
    async with listening(server) as url, AsyncClient(url) as client, asyncio.timeout(15):
        events, of_gone = (client.jobs._stream(endpoints.job_events(one.id)) for one in (job, gone))
        assert [(await anext(each)).status for each in (events, of_gone)] == ["queued", "queued"]
        del queue.jobs[gone.id]
        with pytest.raises(NotFound):
            await anext(of_gone)
        stopping = asyncio.create_task(shut_down(server))
        with pytest.raises(NotReady, match="is stopping"):
            await anext(events)
        await stopping


async def test_a_tenant_follows_so_many_jobs_at_a_time_also_of_those_asked_for_at_once(scene, queue, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_FOLLOWED", 1)
    await scene.client.post("/v1/echo", content=b"x", headers=ASYNC)
    async with scene.client.stream("GET", "/v1/jobs/job-1/events") as answer:
        states = answer.aiter_raw()
        await anext(states)
        refused = await scene.client.get("/v1/jobs/job-1/events")
        queue.finish("job-1", Result(200, "text/plain", b""))
        assert [parsed(state)[0]["status"] async for state in states] == ["succeeded"]
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    answer = await scene.client.get("/v1/jobs/job-1/events")
    assert (answer.status_code, scene.app.state.gateway.followed.total()) == (200, 0)
    monkeypatch.setattr(jobs, "MAX_FOLLOWED", 2)
    know = queue.get

    async def ask_redis(*given):
        await asyncio.sleep(0.1)
        return await know(*given)

    monkeypatch.setattr(queue, "get", ask_redis)
    answers = await asyncio.gather(*(scene.client.get("/v1/jobs/job-1/events") for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 4
    assert scene.app.state.gateway.followed.total() == 0


async def test_cancel_retry_and_delete(scene, queue):
    client = scene.client
    await client.post("/v1/echo", content=b"x", headers=ASYNC)
    assert (await client.post("/v1/jobs/job-1/cancel")).json()["status"] == "cancelled"
    assert (await client.post("/v1/jobs/job-1/retry")).json()["status"] == "queued"
    assert (await client.post("/v1/jobs/job-1/retry")).status_code == 409
    for _ in range(2):  # the first cancels it, the second forgets it
        assert (await client.delete("/v1/jobs/job-1")).json()["status"] == "cancelled"
    assert (await client.get("/v1/jobs/job-1")).status_code == 404
    gets = [f"/v1/jobs/{place}" for place in ("nope", "nope/events", "nope/result", "x" * 200)]
    posts = ["/v1/jobs/nope/cancel", "/v1/jobs/nope/retry"]
    for answer in [await client.get(path) for path in gets] + [await client.post(path) for path in posts]:
        assert (answer.status_code in {404, 422}, answer.headers["content-type"]) == (True, "application/problem+json")


async def test_a_key_tries_again_only_what_it_may_queue_itself(served, queue, ring):
    scene = await served(queue, auth="keys")
    whole, jobs_only = (ring.add("ann", scopes)[1] for scopes in (("infer", "jobs"), ("jobs",)))
    await scene.client.post("/v1/ec%68o", content=b"x", headers={**ASYNC, "x-api-key": whole})
    queue._note("job-1", status="failed")
    refused = await scene.client.post("/v1/jobs/job-1/retry", headers={"x-api-key": jobs_only})
    assert (refused.status_code, "'infer'" in refused.json()["detail"]) == (403, True)
    assert (await scene.client.post("/v1/jobs/job-1/retry", headers={"x-api-key": whole})).status_code == 200


async def test_lists_are_newest_first_and_dead_letters_apart(scene, queue):
    for _ in range(3):
        await scene.client.post("/v1/echo", content=b"x", headers=ASYNC)
    queue._note("job-2", status="failed", dead=True)
    for query, found, has_more in (
        ("limit=2", ["job-3", "job-2"], True), ("limit=2&after=job-2", ["job-1"], False),
        ("dead=true", ["job-2"], False),
    ):  # fmt: skip
        listed = (await scene.client.get(f"/v1/jobs?{query}")).json()
        assert ([job["id"] for job in listed["jobs"]], listed["has_more"]) == (found, has_more)
    wrong = await scene.client.get("/v1/jobs?limit=0")
    assert (wrong.status_code, wrong.json()["field"]) == (422, "limit")


async def test_jobs_that_wait_and_jobs_that_run_are_in_the_metrics(scene, queue):
    first = (await scene.client.post("/v1/echo", content=b"x", headers=ASYNC)).json()
    await scene.client.post("/v1/echo", content=b"y", headers=ASYNC)
    queue._note(first["id"], status="running")
    text = (await scene.client.get("/metrics")).text
    depth, ready = 'fovea_queue_depth{model="jobs",service="svc"}', 'fovea_ready_replicas{service="svc"}'
    states = [f'fovea_jobs{{service="svc",state="{state}"}}' for state in ("queued", "running")]
    for sample in (depth, *states, ready):
        assert f"{sample} 1.0" in text
    del scene.registry._services["svc"]  # forgotten: an old number would hide that it is away, or tell so for ever
    text = (await scene.client.get("/metrics")).text
    for name in ("fovea_jobs{", "fovea_queue_depth{", ready):
        assert name not in text
