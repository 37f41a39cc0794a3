"""Jobs on the host: answered as the same request is, with progress, cancel and usage; and in a replica that stops."""

import asyncio
import base64
import gzip
import json
from functools import partial

import pytest

from shared import telemetry
from shared.jobs.queue import Payload, Result
from shared.jobs.tests.running_worker import ended
from shared.serving.jobs.host_handler import HostJobHandler
from shared.serving.tests.tickets import Ticket
from shared.serving.tests.toys import PNG
from shared.settings import Settings
from tests.harness.waiting import until

FORM = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + PNG + b"\r\n--x--\r\n"
IMAGE = base64.b64encode(PNG).decode()


@pytest.fixture
async def client(start_client):
    return await start_client(redis_url=None, max_body_bytes=5000)


async def elsewhere(payload, _ticket):
    return Result(299, "text/plain", payload.path.encode())


@pytest.fixture
def run(client):
    handler = HostJobHandler(client.app.state.host, elsewhere)

    async def made(path, body, ticket=None, tenant="ann", **headers):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await handler(Payload("toy", path, body, sent, tenant=tenant), ticket or Ticket())

    return made


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/echo", json.dumps({"text": "ü", "times": 2}).encode(), {"content_type": "application/json"}),
        ("/v1/echo", json.dumps({"text": "bad"}).encode(), {"content_type": "application/json"}),
        ("/v1/echo", b"{", {"content_type": "application/json"}),
        ("/v1/segment?threshold=0.25&classes=a&classes=b", PNG, {"content_type": "image/png"}),
        ("/v1/segment?label=%C3%BC", FORM, {"content_type": "multipart/form-data; boundary=x"}),
        ("/v1/segment", FORM[:60], {"content_type": "multipart/form-data; boundary=x"}),
        ("/v1/segment", PNG, {"content_type": "image/png", "accept": "image/png"}),
        ("/v1/segment", PNG, {"content_type": "image/png", "accept": "text/csv"}),
        ("/v1/segment", json.dumps({"images": [IMAGE, "aGk="]}).encode(), {"content_type": "application/json"}),
        ("/v1/segment", b"x" * 5001, {"content_type": "image/png"}),
        ("/v1/plan", b'{"text": "a b"}', {"content_type": "application/json", "accept": "application/x-ndjson"}),
        ("/v1/echo", gzip.compress(b'{"text": "zip"}', mtime=0), {"content_encoding": "gzip"}),
        ("/v1/echo", b"no gzip", {"content_encoding": "gzip"}),
        ("/v1/echo", b"{}", {"content_encoding": "br"}),
    ],
)  # fmt: skip
async def test_a_job_is_answered_as_the_same_request_is(client, run, path, body, headers):
    sent = {name.replace("_", "-"): value for name, value in headers.items()} | {"x-request-id": "r-1"}
    client.headers.pop("accept")
    direct = await client.post(path, content=body, headers=sent)
    answer = await run(path, body, **headers, x_request_id="r-1")
    assert (answer.status, answer.content_type) == (direct.status_code, direct.headers["content-type"])
    assert answer.body == direct.content
    dropped = {"content-type", "content-length", "connection", "x-fovea-usage"}
    found, wanted = (
        ({name: value for name, value in one.headers.items() if name not in dropped},
         set(json.loads(one.headers.get("x-fovea-usage", "{}"))))
        for one in (answer, direct)
    )  # fmt: skip
    assert found == wanted


@pytest.mark.parametrize("path", ["/v1/nowhere", "/v2/models/toy/echo/infer", "/v1/chat/completions", "/v1/"])
async def test_what_is_no_task_of_the_host_goes_elsewhere(run, path):
    answer = await run(path, b"{}")
    assert (answer.status, answer.body.decode()) == (299, path)


async def test_progress_reaches_the_ticket_and_jobs_are_counted_as_requests_of_their_route(run):
    ticket = Ticket()
    assert (await run("/v1/probe", b'{"text": "x"}', ticket)).status == 200
    await asyncio.sleep(0.01)
    assert ticket.told == [(step / 5, f"step {step}") for step in range(5)]
    labels = {"model": "toy/echo", "route": "/v1/echo", "service": "toy", "status": "422"}
    counter = telemetry.REQUESTS.labels(**labels)._value
    before = counter.get()
    await run("/v1/echo", b'{"text": "bad"}')
    assert counter.get() == before + 1


async def test_a_cancel_stops_the_model_and_is_a_499(run, client):
    ticket = Ticket()
    running = asyncio.create_task(run("/v1/probe", b'{"text": "x", "sleep": 600}', ticket))
    await until(lambda: ticket.told)
    ticket.stop.set()
    assert (await asyncio.wait_for(running, 5)).status == 499
    assert client.app.state.host.busy == 0


async def test_the_model_sees_job_and_tenant_and_no_deadline(client, run, monkeypatch):
    seen = []
    host = client.app.state.host
    predict = host.predict

    async def look(name, request, context):
        seen.append((name, context.job, context.tenant, context.deadline, context.scopes, context.cache_salt))
        return await predict(name, request, context)

    monkeypatch.setattr(host, "predict", look)
    await run("/v1/echo", b"{}", tenant="bob", x_fovea_scopes="infer,jobs", x_fovea_deadline_ms="1")
    assert seen == [("toy/echo", Ticket.id, "bob", None, frozenset({"infer", "jobs"}), "bob")]


@pytest.fixture
def chosen(redis_url, tmp_path):
    return Settings(
        redis_url=redis_url, data_dir=tmp_path, shutdown_grace_s=0.2, jobs_in_replica=True, replica_secret="s1"
    )  # fmt: skip


@pytest.fixture
async def replica(start_replica, chosen):
    return await start_replica(must_load=False, **chosen.model_dump(exclude_unset=True))


async def test_jobs_are_those_of_the_stable_version(start_replica, chosen, queue):
    settings = chosen.model_dump(exclude_unset=True)
    await start_replica(**settings, service_version="next")
    job, _ = await queue.submit(ask("/v1/echo", text="ab"))
    await asyncio.sleep(1)
    assert (await queue.get(job.id, "local")).status == "queued", "a shadow answers nobody"
    await start_replica(**settings)
    assert (await last_state(queue, job)).status == "succeeded"


def ask(path, **body):
    return Payload("toy", path, json.dumps(body).encode(), {"content-type": "application/json"})


last_state = partial(ended, tenant="local")


async def test_a_task_runs_on_the_models_that_serve_and_another_route_in_a_replica(replica, queue):
    job, _ = await queue.submit(ask("/v1/echo", text="ab"))
    assert (await last_state(queue, job)).status == "succeeded"
    assert replica.host.servable("toy/echo").seen == ["hello", "ab"]
    assert json.loads((await queue.result(job.id, "local")).body)["text"] == "ab"
    job, _ = await queue.submit(ask("/v2/models/toy/echo/infer", inputs=[
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    ]))  # fmt: skip
    assert (await last_state(queue, job)).status == "succeeded"
    assert json.loads((await queue.result(job.id, "local")).body)["outputs"][0]["data"] == [2, 3, 4]
    job, _ = await queue.submit(ask("/v1/nowhere"))
    ended = await last_state(queue, job)
    assert (ended.status, ended.error["status"], ended.attempts) == ("failed", 404, 1)


async def test_a_replica_that_stops_releases_what_it_has_not_finished(replica, queue):
    job, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    await until(lambda: replica.host.busy)
    assert replica.in_flight
    await replica.stop()
    released = await queue.get(job.id, "local")
    assert (released.status, released.position) == ("queued", 0)
    assert await queue.workers("toy") == []


async def test_a_replica_that_dies_of_memory_fails_its_jobs_for_good(replica, queue, monkeypatch):
    ends = []
    monkeypatch.setattr("shared.serving.replica.os._exit", ends.append)
    job, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    await until(lambda: replica.host.busy)
    await asyncio.to_thread(replica._die_of_memory)
    ended = await last_state(queue, job)
    assert (ended.status, ended.error["status"], ends) == ("failed", 413, [137])
