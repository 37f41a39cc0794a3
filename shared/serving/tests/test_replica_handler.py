"""Jobs sent to replicas and run on the host: answered as at once, with progress, cancel, and replicas that are lost."""

import asyncio
import base64
import contextlib
import gzip
import json
import socket
import time
from functools import partial

import httpx2
import pytest

from fovea.api.replica import ReplicaRecord, replicas_key
from fovea.errors import Cancelled, NotReady, TooLarge
from shared import telemetry
from shared.jobs.queue import Payload, Result
from shared.jobs.redis_connection import open_redis
from shared.jobs.tests.running_worker import ended
from shared.serving.jobs import replica_directory, replica_handler
from shared.serving.jobs.host_handler import HostJobHandler
from shared.serving.jobs.replica_directory import ReplicaDirectory
from shared.serving.jobs.replica_handler import ReplicaJobHandler
from shared.serving.tests.toys import PNG
from shared.settings import Settings
from tests.harness.scripted import scripted
from tests.harness.waiting import sleep_through_a_cancel, until


class Ticket:
    """A `Ticket` of `shared.jobs.queue`: it remembers what it was told, and is cancelled by the test."""

    id = "j" * 32
    attempt = 1

    def __init__(self) -> None:
        self.told: list[tuple[float, str | None]] = []
        self.stop = asyncio.Event()

    async def progress(self, fraction: float, note: str | None = None) -> None:
        self.told.append((fraction, note))

    async def wait_until_cancelled(self) -> None:
        await self.stop.wait()


@pytest.fixture
def chosen(redis_url, tmp_path):
    return Settings(redis_url=redis_url, data_dir=tmp_path, shutdown_grace_s=0.1, replica_secret="s1")


@pytest.fixture
def start(start_replica, chosen):
    return partial(start_replica, **chosen.model_dump(exclude_unset=True))


@pytest.fixture
async def replica(start):
    return await start()


@pytest.fixture
async def handler(chosen):
    made = ReplicaJobHandler(ReplicaDirectory(chosen.redis_url, "toy", ""), chosen)
    yield made
    await made.close()


def payload(path="/v1/echo", tenant="ann", **body):
    headers = {"content-type": "application/json", "x-fovea-tenant": tenant, "x-request-id": "r-1"}
    return Payload("toy", path, json.dumps(body).encode(), headers, tenant=tenant)


@pytest.fixture
def announce(redis_url):
    def made(http, name="a", **facts):
        known = {"id": name, "service": "toy", "http": http, "pid": 1, "ready": True, "models": ()}
        record = ReplicaRecord(**{**known, "seen": time.time(), **facts})
        with open_redis(redis_url) as redis:
            redis.hset(replicas_key("toy"), record.id, record.model_dump_json())

    return made


@contextlib.asynccontextmanager
async def server(answer):
    """A server that does with each connection what the test says; its URL, and what it was sent."""
    sent = []

    async def serve(reader, writer):
        sent.append(await reader.readuntil(b"\r\n\r\n"))
        await answer(reader, writer, len(sent))

    async with scripted(serve) as url:
        yield url, sent


async def test_a_replica_answers_as_at_once_and_a_cancelled_job_hangs_up_and_so_ends_the_run(replica, handler):
    answer = await handler(payload(text="ab", times=2), Ticket())
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert (json.loads(answer.body)["text"], answer.headers["x-request-id"]) == ("abab", "r-1")
    assert json.loads(answer.headers["x-fovea-usage"]).keys() == {"cpu_seconds", "model"}
    assert not {"content-length", "date", "server", "connection"} & set(answer.headers)
    refused = await handler(payload(text="bad"), Ticket())
    assert (refused.status, json.loads(refused.body)["field"]) == (422, "text")
    ticket = Ticket()
    running = asyncio.create_task(handler(payload("/v1/probe", sleep=600), ticket))
    await until(lambda: replica.host.busy)
    ticket.stop.set()
    with pytest.raises(Cancelled):
        await running
    await until(lambda: not replica.host.busy)


async def test_a_job_waits_for_a_replica_and_says_so(handler, start):
    ticket = Ticket()
    running = asyncio.create_task(handler(payload(text="x"), ticket))
    await until(lambda: ticket.told)
    assert ticket.told == [(0.0, "waiting for a replica")]
    await start()
    assert (await asyncio.wait_for(running, 20)).status == 200


async def test_replicas_of_another_version_that_are_not_ready_or_refuse_are_passed_over(replica, handler, announce):
    for name, facts in (("a", {}), ("b", {"version": "canary"}), ("c", {"ready": False})):
        announce("http://127.0.0.1:1", name, **facts)
    for _ in range(4):
        assert (await handler(payload(text="x"), Ticket())).status == 200


async def test_a_job_is_not_lost_to_a_node_that_has_died(replica, handler, announce, monkeypatch):
    """Nobody answers a connection there; its record says that it is ready, and had no memory left, for some seconds."""
    monkeypatch.setattr(handler._client, "timeout", httpx2.Timeout(None, connect=0.3))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        announce(f"http://127.0.0.1:{full.getsockname()[1]}", "a", memory=0.95)
        handler._replicas._busy[replica.id] += 1
        assert (await handler(payload(text="x"), Ticket())).status == 200


async def test_a_job_says_who_it_is(handler, announce):
    async def answer(_reader, writer, _count):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with server(answer) as (url, sent):
        announce(url)
        found = await handler(Payload("toy", "/v1/echo?a=%C3%BC", b"x", {"x-fovea-deadline-ms": "5"}), Ticket())
    assert (found.status, found.content_type, found.body) == (200, "application/octet-stream", b"ok")
    said = sent[0].lower()
    assert said.startswith(b"post /v1/echo?a=%c3%bc http/1.1\r\n")
    for line in (b"x-fovea-job: " + b"j" * 32 + b" 1", b"x-fovea-replica-secret: s1", b"accept-encoding: identity"):
        assert line in said.split(b"\r\n")
    assert (b"x-fovea-deadline-ms" in said, b"content-type" in said) == (False, False)


async def test_a_busy_replica_is_asked_again(handler, announce, monkeypatch):
    monkeypatch.setattr(replica_handler, "_BUSY_PAUSE_S", 0.001)
    monkeypatch.setattr(replica_handler, "_MAX_REFUSALS", 2)

    async def answer(_reader, writer, count):
        status = b"429 No" if count < 3 or count > 5 else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % status)

    async with server(answer) as (url, sent):
        announce(url)
        assert ((await handler(payload(), Ticket())).status, len(sent)) == (200, 3)
        sent.extend([b""] * 2)
        assert ((await handler(payload(), Ticket())).status, len(sent)) == (429, 8)


@pytest.mark.parametrize(
    ("facts", "error"), [({}, NotReady), ({"out_of_memory": True}, TooLarge), ({"memory": 0.95}, TooLarge)]
)
async def test_a_replica_that_breaks_off_fails_the_attempt(handler, announce, facts, error, monkeypatch):
    monkeypatch.setattr(replica_directory, "_LAST_WORD_S", 0.2)

    async def answer(_reader, _writer, _count):
        announce(url, **facts)

    async with server(answer) as (url, _):
        announce(url)
        with pytest.raises(error):
            await handler(payload(), Ticket())


async def test_a_replica_whose_record_stands_still_hangs_and_one_that_withdrew_finishes(
    handler, announce, redis_url, monkeypatch
):
    monkeypatch.setattr(replica_directory, "_SILENT_S", 0.2)
    monkeypatch.setattr(replica_directory, "RENEW_S", 0.05)
    withdraws = False

    async def answer(_reader, writer, _count):
        if withdraws:
            with open_redis(redis_url) as redis:
                redis.delete(replicas_key("toy"))
        await asyncio.sleep(0.6)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with server(answer) as (url, _):
        announce(url)
        with pytest.raises(NotReady, match="hangs"):
            await handler(payload(), Ticket())
        withdraws = True
        announce(url, "b")
        assert (await handler(payload(), Ticket())).status == 200


async def test_an_answer_comes_though_the_client_of_redis_swallows_a_cancel(handler, replica, monkeypatch):
    swallowed = asyncio.Event()

    async def watch(self, record):
        while True:
            await sleep_through_a_cancel(swallowed)

    monkeypatch.setattr(ReplicaDirectory, "wait_until_silent", watch)
    async with asyncio.timeout(20):
        answer = await handler(payload(text="ab"), Ticket())
    assert (answer.status, swallowed.is_set()) == (200, True)


FORM = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + PNG + b"\r\n--x--\r\n"
IMAGE = base64.b64encode(PNG).decode()
AS_JSON, AS_PNG = {"content_type": "application/json"}, {"content_type": "image/png"}
AS_FORM = {"content_type": "multipart/form-data; boundary=x"}
DROPPED = {"content-type", "content-length", "connection", "x-fovea-usage"}


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


async def test_a_job_is_answered_as_the_same_request_is(client, run):
    for path, body, headers in (
        ("/v1/echo", json.dumps({"text": "ü", "times": 2}).encode(), AS_JSON),
        ("/v1/echo", json.dumps({"text": "bad"}).encode(), AS_JSON), ("/v1/echo", b"{", AS_JSON),
        ("/v1/segment?threshold=0.25&classes=a&classes=b", PNG, AS_PNG),
        ("/v1/segment?label=%C3%BC", FORM, AS_FORM), ("/v1/segment", FORM[:60], AS_FORM),
        ("/v1/segment", PNG, {**AS_PNG, "accept": "image/png"}),
        ("/v1/segment", PNG, {**AS_PNG, "accept": "text/csv"}),
        ("/v1/segment", json.dumps({"images": [IMAGE, "aGk="]}).encode(), AS_JSON),
        ("/v1/segment", b"x" * 5001, AS_PNG),
        ("/v1/plan", b'{"text": "a b"}', {**AS_JSON, "accept": "application/x-ndjson"}),
        ("/v1/echo", gzip.compress(b'{"text": "zip"}', mtime=0), {"content_encoding": "gzip"}),
        ("/v1/echo", b"no gzip", {"content_encoding": "gzip"}), ("/v1/echo", b"{}", {"content_encoding": "br"}),
    ):  # fmt: skip
        sent = {name.replace("_", "-"): value for name, value in headers.items()} | {"x-request-id": "r-1"}
        client.headers.pop("accept", None)
        direct = await client.post(path, content=body, headers=sent)
        answer = await run(path, body, **headers, x_request_id="r-1")
        assert (answer.status, answer.body) == (direct.status_code, direct.content)
        assert answer.content_type == direct.headers["content-type"]
        found, wanted = (
            ({name: value for name, value in one.headers.items() if name not in DROPPED},
             set(json.loads(one.headers.get("x-fovea-usage", "{}"))))
            for one in (answer, direct)
        )  # fmt: skip
        assert found == wanted


async def test_what_is_no_task_of_the_host_goes_elsewhere_progress_reaches_the_ticket_and_jobs_are_counted(run):
    for path in ("/v1/nowhere", "/v2/models/toy/echo/infer", "/v1/chat/completions", "/v1/"):
        answer = await run(path, b"{}")
        assert (answer.status, answer.body.decode()) == (299, path)
    ticket = Ticket()
    assert (await run("/v1/probe", b'{"text": "x"}', ticket)).status == 200
    await asyncio.sleep(0.01)
    assert ticket.told == [(step / 5, f"step {step}") for step in range(5)]
    counter = telemetry.REQUESTS.labels(model="toy/echo", route="/v1/echo", service="toy", status="422")._value
    before = counter.get()
    await run("/v1/echo", b'{"text": "bad"}')
    assert counter.get() == before + 1


async def test_the_model_sees_job_and_tenant_and_no_deadline_and_a_cancel_stops_it(client, run, monkeypatch):
    seen, host = [], client.app.state.host
    predict = host.predict

    async def look(name, request, context):
        seen.append((name, context.job, context.tenant, context.deadline, context.scopes, context.cache_salt))
        return await predict(name, request, context)

    monkeypatch.setattr(host, "predict", look)
    await run("/v1/echo", b"{}", tenant="bob", x_fovea_scopes="infer,jobs", x_fovea_deadline_ms="1")
    assert seen == [("toy/echo", Ticket.id, "bob", None, frozenset({"infer", "jobs"}), "bob")]
    ticket = Ticket()
    running = asyncio.create_task(run("/v1/probe", b'{"text": "x", "sleep": 600}', ticket))
    await until(lambda: ticket.told)
    ticket.stop.set()
    assert ((await asyncio.wait_for(running, 5)).status, client.app.state.host.busy) == (499, 0)


@pytest.fixture
async def worker(start):
    """A replica that works through jobs itself."""
    return await start(jobs_in_replica=True, must_load=False)


def ask(path, **body):
    return Payload("toy", path, json.dumps(body).encode(), {"content-type": "application/json"})


last_state = partial(ended, tenant="local")


async def test_jobs_are_those_of_the_stable_version(start, queue):
    await start(jobs_in_replica=True, service_version="next")
    job, _ = await queue.submit(ask("/v1/echo", text="ab"))
    await asyncio.sleep(1)
    assert (await queue.get(job.id, "local")).status == "queued", "a shadow answers nobody"
    await start(jobs_in_replica=True)
    assert (await last_state(queue, job)).status == "succeeded"


async def test_a_task_runs_on_the_models_that_serve_and_another_route_in_a_replica(worker, queue):
    job, _ = await queue.submit(ask("/v1/echo", text="ab"))
    assert (await last_state(queue, job)).status == "succeeded"
    assert worker.host.servable("toy/echo").seen == ["hello", "ab"]
    assert json.loads((await queue.result(job.id, "local")).body)["text"] == "ab"
    job, _ = await queue.submit(ask("/v2/models/toy/echo/infer", inputs=[
        {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    ]))  # fmt: skip
    assert (await last_state(queue, job)).status == "succeeded"
    assert json.loads((await queue.result(job.id, "local")).body)["outputs"][0]["data"] == [2, 3, 4]
    job, _ = await queue.submit(ask("/v1/nowhere"))
    ended = await last_state(queue, job)
    assert (ended.status, ended.error["status"], ended.attempts) == ("failed", 404, 1)


async def test_a_replica_that_stops_releases_what_it_has_not_finished(worker, queue):
    job, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    await until(lambda: worker.host.busy)
    assert worker.in_flight
    await worker.stop()
    released = await queue.get(job.id, "local")
    assert (released.status, released.position, await queue.workers("toy")) == ("queued", 0, [])


async def test_a_replica_that_dies_of_memory_fails_its_jobs_for_good(worker, queue, monkeypatch):
    ends = []
    monkeypatch.setattr("shared.serving.worker.os._exit", ends.append)
    job, _ = await queue.submit(ask("/v1/probe", text="a", sleep=30))
    await until(lambda: worker.host.busy)
    await asyncio.to_thread(worker._die_of_memory)
    ended = await last_state(queue, job)
    assert (ended.status, ended.error["status"], ends) == ("failed", 413, [137])
