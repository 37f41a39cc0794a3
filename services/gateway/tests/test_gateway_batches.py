"""Files and batches by the `openai` package, over jobs; tenants, refusals, cancellation, and two gateways."""

import asyncio
import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import AsyncMock, Mock

import httpx2
import openai
import pytest

from fovea.api.batches import BatchRequest
from fovea.errors import Conflict, Fault, InvalidOption, NotFound, RateLimited, StorageFull
from services.gateway.batches import batch_records
from services.gateway.batches.batch_file import parse_lines
from services.gateway.batches.batch_records import BatchRecords
from services.gateway.batches.batch_service import BatchService
from services.gateway.batches.file_store import FileStore
from services.gateway.policy.caller import Caller
from services.gateway.tests.stage import ForgetfulQueue
from services.gateway.tests.stub_service import Stub
from shared.storage import ObjectStore
from tests.harness.waiting import wait_until

FEW = ({"rate_per_minute": 6, "tokens_per_day": 20}, {"quota_per_day": 20})
ANN = Caller("ann", frozenset({"infer", "jobs"}), "0123abcd")


def line(custom_id, body=None, **more):
    return {
        "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions",
        "body": body or {"messages": [{"role": "user", "content": custom_id}]},
    } | more  # fmt: skip


def jsonl(*lines):
    return "\n".join(json.dumps(one) for one in lines).encode()


@pytest.fixture
def client(stage):
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def upload(client, *lines):
    return client.files.create(file=("requests.jsonl", jsonl(*lines)), purpose="batch")


def create(client, file_id, **more):
    how = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **more}
    return client.batches.create(input_file_id=file_id, **how)


def wait(client, batch_id):
    return wait_until(lambda: (batch := client.batches.retrieve(batch_id)).status != "in_progress" and batch)


def test_files_are_kept_listed_read_and_deleted_and_a_batch_answers_each_request_in_one(client):
    stored = upload(client, line("a"))
    assert (stored.purpose, stored.filename) == ("batch", "requests.jsonl")
    assert client.files.content(stored.id).read() == jsonl(line("a"))
    assert stored.id in {file.id for file in client.files.list(purpose="batch")}
    assert (client.files.retrieve(stored.id).bytes, client.files.delete(stored.id).deleted) == (stored.bytes, True)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(stored.id)
    stored = upload(client, line("one"), line("two"))
    batch = create(client, stored.id, metadata={"a": "b"})
    assert batch.request_counts.total == 2
    done = wait(client, batch.id)
    assert (done.status, done.request_counts.completed, done.error_file_id) == ("completed", 2, None)
    rows = [json.loads(row) for row in client.files.content(done.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == ["one", "two"]
    for row in rows:
        answer = row["response"]["body"]["choices"][0]["message"]["content"]
        assert (row["response"]["status_code"], answer.endswith(row["custom_id"])) == (200, True)
    assert batch.id in {one.id for one in client.batches.list()}
    assert client.batches.retrieve(batch.id).output_file_id == done.output_file_id
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_the_client_s_pages_reach_the_oldest_file_and_batch(client):
    files = [upload(client, line("a")).id for _ in range(3)]
    batches = [create(client, file).id for file in files]
    for list_all, made in ((client.files.list, files), (client.batches.list, batches)):
        assert [one.id for one in list_all(limit=1)][:3] == made[::-1]
        page = list_all(limit=1, after=made[2])
        assert ([one.id for one in page.data], page.has_more) == ([made[1]], True)
        with pytest.raises(openai.NotFoundError, match="last id of the page"):
            list_all(after="batch-1")
    assert [one.id for one in client.files.list(order="asc", limit=2)][-3:] == files


@pytest.mark.parametrize(("data", "told"), [
    (b"", "no requests"), (b"{", "Line 1"), (jsonl({"custom_id": "a"}), "Line 1"),
    (jsonl(line("a"), line("b"), line("a")), "'a' is there twice: in lines 1 and 3"),
    (jsonl(line("a", url="/v1/embeddings")), "all must be"),
    (jsonl(line("a", body={"stream": True})), "stream"), (b"\n".join([jsonl(line("a"))] * 501), "over 500 requests"),
    (b"\r\n\n" + jsonl(line("a"), {"custom_id": "b"}), "Line 4"),
    (b"\n" + jsonl(line("a"), line("b", url="/v1/embeddings")), "Line 3 is"),
    (jsonl(line("a" * 513)), "Line 1 is no request: custom_id String should have at most 512"),
    (jsonl(line("\ud800")), "Line 1 is no request: custom_id"),
])  # fmt: skip
def test_files_that_hold_no_requests_are_refused(client, data, told):
    stored = client.files.create(file=("a.jsonl", data), purpose="batch")
    with pytest.raises(openai.BadRequestError, match=told, check=lambda error: error.param == "input_file_id"):
        create(client, stored.id)


def test_a_file_of_millions_of_parts_or_lines_is_refused_before_it_is_parsed():
    row = b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {"a": [' + b"[]," * 3_000_000 + b"1]}}"
    begun = time.process_time()
    with pytest.raises(InvalidOption, match="Line 1 is no request: The body has more than 250,000 parts"):
        parse_lines(row, "/v1/chat/completions")
    for lines, told in ((b"1\n" * 5_000_000, "over 500 requests"), (b"\n" * 5_000_000 + b"1", "Line 5000001 is no")):
        with pytest.raises(InvalidOption, match=told):
            parse_lines(lines, "/v1/chat/completions")
    assert time.process_time() - begun < 0.3  # parsing the first takes more than a second
    data = jsonl(*(line(str(n), {"a": [[]] * 30_000}) for n in range(10)))
    tracemalloc.start()
    assert len(parse_lines(data, "/v1/chat/completions")) == 10
    assert tracemalloc.get_traced_memory()[1] < 10 * len(data), "no more than one line is parsed at a time"
    tracemalloc.stop()


def test_bad_calls_are_refused_before_a_job_is_queued(stage, client):
    file, chat, queued = upload(client, line("a")).id, "/v1/chat/completions", len(stage.queue.jobs)
    body = f'{{"input_file_id": "{file}", "endpoint": "{chat}", "metadata": %s}}'
    for content, status, field in (
        (json.dumps({"input_file_id": file, "endpoint": "/v1/nothing"}), 400, None),
        (json.dumps({"input_file_id": file}), 400, None),
        (json.dumps({"input_file_id": "file-" + "0" * 32, "endpoint": chat}), 404, None),
        (json.dumps({"input_file_id": "../../keys", "endpoint": chat}), 404, None),
        (body % '{"a": "\\ud800"}', 400, "metadata.a"), (body % '{"a": 1}', 400, "metadata.a"),
        (body % ('{"a": ' + "[" * 300 + "]" * 300 + "}"), 400, "metadata.a"),
        (body % ('null, "completion_window": "%s"' % ("h" * 513)), 400, "completion_window"),
        (body % 'null, "completion_window": "\\ud800"', 400, "completion_window"),
        (body % 'null, "output_expires_after": {"seconds": 3600}', 400, "output_expires_after"),
    ):  # fmt: skip
        answer = httpx2.post(f"{stage.url}/v1/batches", content=content, headers={"content-type": "application/json"})
        error = answer.json()["error"]
        assert (answer.status_code, field in {None, error["param"]}) == (status, True), content
        assert error["message"]
    assert len(stage.queue.jobs) == queued
    part = b"--x\r\ncontent-disposition: form-data; name=%s\r\n\r\nbatch\r\n"
    half = part % b"purpose" + part % b"file; filename=+2AA-" + b"--x--\r\n"
    utf7 = {"content": half, "headers": {"content-type": "multipart/form-data; boundary=x; charset=utf-7"}}
    expiring = {"files": {"file": b"x"}, "data": {"purpose": "batch", "expires_after[seconds]": "3600"}}
    for upload_body in ({"content": b"x"}, {"files": {"file": b"x"}}, {"data": {"purpose": "batch"}}, utf7, expiring):
        assert httpx2.post(f"{stage.url}/v1/files", **upload_body).status_code == 400
    assert httpx2.get(f"{stage.url}/v1/files/..%2F..%2Fkeys/content").status_code == 404


async def test_files_hold_so_many_bytes_and_beyond_them_answers_are_kept_but_no_batch_begins(tmp_path):
    store = FileStore(ObjectStore.open((tmp_path / "files").as_uri()), 10_000)
    large = store.add("a", "x", "batch", b"1" * 9_000)
    with pytest.raises(RateLimited, match="10,000", check=lambda told: "DELETE /v1/files" in told.hint):
        store.add("a", "y", "batch", b"1" * 9_000)
    store.add("b", "y", "batch", b"1" * 9_000)
    store.delete("a", large.id)
    assert [file.id for file in store.list_files("a")] == []
    store.add("a", "y", "batch", b"1" * 9_000)
    gateways = Gateways(tmp_path, 700)
    batch = await gateways.create("a", "b")
    await gateways.wait_for_jobs()
    end = await gateways.read(gateways.two, batch)
    assert gateways.files[0].read("ann", end.output_file_id)
    with pytest.raises(RateLimited):
        await gateways.begin(end.input_file_id)
    assert len(gateways.queue.jobs) == 2


class Gateways:
    """Two gateways with one object store and one queue, whose jobs can be forgotten."""

    def __init__(self, folder, quota_bytes=2**20):
        self.queue, self.admitted = ForgetfulQueue(Stub().app, step_s=0.01), []
        self.files = [FileStore(ObjectStore.open(folder.as_uri()), quota_bytes) for _ in range(2)]
        records = [BatchRecords(ObjectStore.open(folder.as_uri())) for _ in range(2)]
        self.one, self.two = (BatchService(*both, 60) for both in zip(records, self.files, strict=True))

    async def create(self, *ids):
        return await self.begin(self.files[0].add("ann", "x", "batch", jsonl(*map(line, ids))).id)

    async def begin(self, file_id, path="/v1/chat/completions", **more):
        body = BatchRequest(input_file_id=file_id, endpoint=path)
        return await self.one.create(ANN, body, "stub", self.queue, admit=self.admit, **more)

    async def read(self, gateway, batch):
        return await gateway.get("ann", batch.id, self.queue)

    async def admit(self, requests):
        self.admitted.append(requests)

    async def wait_for_jobs(self):
        await asyncio.gather(*self.queue.tasks.values(), return_exceptions=True)


async def test_a_batch_of_one_gateway_ends_once_on_another_and_a_line_that_was_read_outlives_its_job(tmp_path):
    gateways = Gateways(tmp_path)
    batch = await gateways.create("a", "b")
    assert [one.id for one in (await gateways.two.list_batches("ann", 10)).data] == [batch.id]
    await gateways.wait_for_jobs()
    both = (gateways.one, gateways.two)
    ends = await asyncio.gather(*(each.get("ann", batch.id, gateways.queue) for each in both * 4))
    assert ({end.status for end in ends}, len({end.output_file_id for end in ends})) == ({"completed"}, 1)
    outputs = gateways.files[1].list_files("ann", "batch_output")
    assert [file.id for file in outputs] == [ends[0].output_file_id]
    gateways.queue.jobs.clear()
    rows = gateways.files[1].read("ann", ends[0].output_file_id).splitlines()
    assert [json.loads(row)["custom_id"] for row in rows] == ["a", "b"]
    assert (await gateways.read(gateways.two, batch)).request_counts.completed == 2
    batch = await gateways.create("a", "b")
    await gateways.wait_for_jobs()
    held = gateways.queue.jobs["job-4"]
    gateways.queue.jobs["job-4"] = held.model_copy(update={"status": "running"})
    assert (await gateways.read(gateways.one, batch)).request_counts.completed == 1
    gateways.queue.jobs = {"job-4": held}
    end = await gateways.read(gateways.two, batch)
    assert (end.status, end.request_counts.completed) == ("completed", 2)
    batch, gateways.queue.result = await gateways.create("a"), AsyncMock(side_effect=Fault("The answer is gone."))
    await gateways.wait_for_jobs()
    end = await gateways.read(gateways.one, batch)
    assert b"The answer is gone." in gateways.files[0].read("ann", end.error_file_id)


async def test_a_batch_that_one_gateway_cancels_is_cancelled_for_the_other(tmp_path):
    gateways = Gateways(tmp_path)
    gateways.queue.step_s = 60  # so that no job is over before it is cancelled
    batch = await gateways.create(*map(str, range(5)))
    polls = [gateways.read(gateways.two, batch) for _ in range(20)]
    cancelled, *_ = await asyncio.gather(gateways.one.cancel("ann", batch.id, gateways.queue), *polls)
    assert (cancelled.status, await gateways.read(gateways.two, batch)) == ("cancelled", cancelled)
    with pytest.raises(Conflict):
        await gateways.two.cancel("ann", batch.id, gateways.queue)


async def test_the_oldest_batches_make_room_and_one_that_can_not_be_stored_leaves_no_job_running(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_records, "MAX_BATCHES", 2)
    gateways = Gateways(tmp_path)
    made = [await gateways.create("a") for _ in range(3)]
    kept = await gateways.one.list_batches("ann", 10)
    assert [batch.id for batch in kept.data] == [made[2].id, made[1].id]
    with pytest.raises(NotFound):
        await gateways.read(gateways.two, made[0])
    await gateways.wait_for_jobs()
    gateways = Gateways(tmp_path)
    monkeypatch.setattr(BatchRecords, "add", Mock(side_effect=StorageFull("The object store is full.")))
    with pytest.raises(StorageFull):
        await gateways.create("a", "b")
    assert {job.status for job in gateways.queue.jobs.values()} == {"cancelled"}
    assert sum(gateways.admitted) == 0, "what is not run is given back to the quota"


async def test_each_line_goes_to_the_service_that_has_its_model_and_a_batch_that_steers_is_audited(tmp_path):
    gateways, bodies = Gateways(tmp_path), [{"model": "a"}, {"model": "b"}, {}, {"model": 3}]
    lines = (line(str(number), {"x": 1} | body) for number, body in enumerate(bodies))
    stored = gateways.files[0].add("ann", "x", "batch", jsonl(*lines))
    await gateways.begin(stored.id, models={"a": "stub", "b": "other"})
    assert [each.service for each in gateways.queue.payloads.values()] == ["stub", "other", "stub", "stub"]
    gateways, audited, chat = Gateways(tmp_path), [], "/v1/chat/completions"
    steering = ({"interventions": [{}]}, chat), ({"capture": [{}]}, chat), ({}, "/v1/steering-vectors")
    for more, path in (({}, chat), *steering):
        stored = gateways.files[0].add("ann", "x", "batch", jsonl(line("a", {"prompt": "x", **more}, url=path)))
        await gateways.begin(stored.id, path, audit=lambda more=more, path=path: audited.append((more, path)))
    assert audited == [*steering]


async def test_the_lines_of_a_batch_are_counted_together_against_rate_and_quota_before_one_is_queued(served, ring):
    (kept, few), (_, day) = (ring.add("ann", ("infer", "jobs"), **limit) for limit in FEW)
    queue = ForgetfulQueue(Stub().app)
    scene = await served(queue, auth="keys")
    scene.announce(scene.upstream.url, name="c", service="chat", routes=("/v1/chat/completions",))

    async def create(key, lines):
        data = jsonl(*(line(str(n)) for n in range(lines)))
        form = {"purpose": (None, "batch"), "file": ("a.jsonl", data)}
        stored = (await scene.client.post("/v1/files", files=form, headers={"x-api-key": key})).json()["id"]
        body = {"input_file_id": stored, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return await scene.client.post("/v1/batches", json=body, headers={"x-api-key": key})

    refused = await create(few, 5)
    assert (refused.status_code, queue.jobs) == (429, {})
    assert "5 requests; 4 of 6 requests per minute are left" in refused.text
    assert (await create(few, 2)).status_code == 200, "the refused batch counted only itself"
    carried = [json.loads(payload.headers["x-fovea-key"]) for payload in queue.payloads.values()]
    assert carried == [{"id": kept.id, "tokens_per_minute": None, "tokens_per_day": 20}] * 2
    assert (await scene.client.get("/v1/files", headers={"x-api-key": few})).status_code == 429
    assert [(await create(day, lines)).status_code for lines in (19, 3)] == [429, 200]


async def test_uploads_at_once_do_not_pass_the_quota_together(served, monkeypatch):
    """Uploads that wait leave other tenants their threads."""
    scene = await served(file_quota_bytes=10_000)
    files, form = scene.app.state.gateway.files, {"purpose": (None, "batch"), "file": ("a.jsonl", b"1" * 6_000)}
    check = files.check_room

    def check_slowly(*given):
        try:
            check(*given)
        finally:
            time.sleep(0.1)

    monkeypatch.setattr(files, "check_room", check_slowly)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
    uploads = [asyncio.create_task(scene.client.post("/v1/files", files=form)) for _ in range(12)]
    await asyncio.sleep(0.3)
    begun = time.monotonic()
    await asyncio.to_thread(int)
    assert time.monotonic() - begun < 0.09
    assert sorted(answer.status_code for answer in await asyncio.gather(*uploads)) == [200, *[429] * 11]
