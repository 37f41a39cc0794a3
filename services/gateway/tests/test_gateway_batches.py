"""Files and batches by the `openai` package, over jobs; tenants, refusals and cancellation."""

from __future__ import annotations

import json
import time

import httpx2
import openai
import pytest


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


def wait(client, batch_id):
    until = time.monotonic() + 20
    while (batch := client.batches.retrieve(batch_id)).status == "in_progress":
        assert time.monotonic() < until
        time.sleep(0.05)
    return batch


def test_files_are_kept_listed_read_and_deleted(client):
    stored = upload(client, line("a"))
    assert (stored.purpose, stored.filename) == ("batch", "requests.jsonl")
    assert client.files.content(stored.id).read() == jsonl(line("a"))
    assert stored.id in {file.id for file in client.files.list(purpose="batch")}
    assert client.files.retrieve(stored.id).bytes == stored.bytes
    assert client.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(stored.id)


def test_a_batch_answers_each_request_in_a_file(client):
    stored = upload(client, line("one"), line("two"))
    batch = client.batches.create(
        input_file_id=stored.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    assert batch.request_counts.total == 2
    done = wait(client, batch.id)
    assert (done.status, done.request_counts.completed, done.error_file_id) == ("completed", 2, None)
    rows = [json.loads(row) for row in client.files.content(done.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == ["one", "two"]
    for row in rows:
        assert row["response"]["status_code"] == 200
        assert row["response"]["body"]["choices"][0]["message"]["content"].endswith(row["custom_id"])
    assert batch.id in {one.id for one in client.batches.list()}
    assert client.batches.retrieve(batch.id).output_file_id == done.output_file_id


def test_a_batch_that_is_over_can_not_be_cancelled(client):
    batch = client.batches.create(
        input_file_id=upload(client, line("x")).id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    wait(client, batch.id)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_cancelling_stops_what_still_runs(client):
    batch = client.batches.create(
        input_file_id=upload(client, *(line(str(i)) for i in range(20))).id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status == "cancelled"
    assert cancelled.request_counts.failed + cancelled.request_counts.completed == 20


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "0 requests"),
        (b"{", "Line 1"),
        (jsonl({"custom_id": "a"}), "Line 1"),
        (jsonl(line("a"), line("a")), "twice"),
        (jsonl(line("a", url="/v1/embeddings")), "all must be"),
        (jsonl(line("a", body={"stream": True})), "stream"),
        (b"\n".join([jsonl(line("a"))] * 501), "501"),
    ],
)
def test_files_that_hold_no_requests_are_refused(client, data, told):
    stored = client.files.create(file=("a.jsonl", data), purpose="batch")
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        client.batches.create(input_file_id=stored.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert caught.value.param == "input_file_id"


def test_bad_calls_are_refused(stage, client):
    stored = upload(client, line("a"))
    for body, status in (
        ({"input_file_id": stored.id, "endpoint": "/v1/nothing"}, 400),
        ({"input_file_id": stored.id}, 400),
        ({"input_file_id": "file-" + "0" * 32, "endpoint": "/v1/chat/completions"}, 404),
        ({"input_file_id": "../../keys", "endpoint": "/v1/chat/completions"}, 404),
    ):
        answer = httpx2.post(f"{stage.url}/v1/batches", json=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]
    for upload_body in ({"content": b"x"}, {"files": {"file": b"x"}}, {"data": {"purpose": "batch"}}):
        assert httpx2.post(f"{stage.url}/v1/files", **upload_body).status_code == 400
    assert httpx2.get(f"{stage.url}/v1/files/..%2F..%2Fkeys/content").status_code == 404


async def test_tenants_see_their_own_files_only(tmp_path):
    from services.gateway.batches.file_store import FileStore
    from shared.errors import NotFound

    store = FileStore(tmp_path)
    mine = store.add("a", "x", "batch", b"1")
    assert store.read("a", mine.id) == b"1"
    assert store.list_files("b") == []
    with pytest.raises(NotFound):
        store.read("b", mine.id)
