"""Both clients against a real gateway on real sockets, deed for deed."""

import inspect
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from fovea import AsyncClient, Client, RetryPolicy, errors
from fovea.api.mask import SegmentOut
from fovea.async_client import AsyncJobs
from fovea.client import Jobs
from services.gateway.tests.stub_service import photograph

PICTURE = photograph()


@pytest.fixture
def client(stage):
    with Client(stage.url) as made:
        yield made


@pytest.fixture
async def aclient(stage):
    async with AsyncClient(stage.url) as made:
        yield made


def test_models_are_listed_with_chat_first_a_card_has_all_facts_and_bytes_a_path_and_a_file_are_alike(client, tmp_path):
    assert client.models()[0].task == "chat"
    assert [entry.id for entry in client.models("segment")] == ["disc", "disc-large"]
    assert client.default_model("segment") == "disc"
    card = client.model("disc")
    assert (card.inputs[0].shape, "threshold" in card.request_schema["properties"]) == ((-1, 3, 352, 352), True)
    assert client.model("patches/tiny").task == "classify"
    (file := tmp_path / "p.jpg").write_bytes(PICTURE)
    with file.open("rb") as opened:
        answers = [client.segment(source, threshold=0.4) for source in (PICTURE, file, opened)]
    assert isinstance(answers[0], SegmentOut)
    assert (len({answer.area for answer in answers}), answers[0].width, answers[0].height) == (1, 320, 240)


def test_options_arrive_forms_come_as_bytes_and_a_job_that_a_service_makes_or_a_full_queue_is_waited_for(client, stage):
    answer = client.segment(PICTURE, threshold=0.25, include=["overlay", "probability"], keep_largest=True)
    told = {"threshold": "0.25", "include": '["overlay", "probability"]', "keep_largest": "true"}
    assert (stage.stub.seen[-1]["options"], stage.stub.seen[-1]["bytes"], answer.mask) == (told, len(PICTURE), None)
    assert (answer.overlay[:3], answer.probability[:4]) == (b"\xff\xd8\xff", b"\x89PNG")
    assert client.run("segment", client.example("disc"))["width"] == 320
    answer = client.run("classify", {"top_k": 1}, pictures={"image": PICTURE})
    assert [row["class_name"] for row in answer["top_k"]] == ["a"]
    assert client.run("segment", pictures={"image": PICTURE}, accept="image/png").startswith(b"\x89PNG")
    asked = {"query": "q", "passage": "p"}
    at_once = client.run("judge", asked)
    stage.stub.long = 1
    assert client.run("judge", asked) == at_once
    assert [(job.path, job.status) for job in client.jobs.list(1)] == [("/v1/judge", "succeeded")]
    stage.stub.long = 1
    assert client.run("judge", asked, accept="text/html").startswith(b"{")
    stage.stub.busy = 2
    with Client(stage.url, retry_policy=RetryPolicy(tries=3, longest=2)) as patient:
        assert patient.segment(PICTURE).width == 320
    assert stage.stub.busy == 0


def test_chat_answers_whole_and_streamed_and_a_refused_stream_raises_first(client):
    whole = client.chat("one two three", system="Repeat.", temperature=0)
    pieces = list(client.chat_stream([{"role": "user", "content": "one two three"}]))
    assert (whole.text, "".join(piece.text for piece in pieces)) == ("You said: one two three", whole.text)
    assert (pieces[-1].usage, whole.usage.completion_tokens) == (whole.usage, 5)
    with pytest.raises(errors.BadInput, check=lambda e: e.field == "temperature"):
        next(client.chat_stream("x", temperature=3))
    left = client.chat_stream("a b c d e f g h i j k l m n o p q r s t u v w x y z " * 20)
    assert next(left).text == "You"
    left.close()
    assert client.chat("still there").text.endswith("still there")


def test_a_job_is_followed_or_waited_for_to_its_end_and_gives_what_the_call_gives(client):
    job = client.jobs.submit("segment", {"threshold": 0.4}, pictures={"image": PICTURE})
    states = [event.status for event in client.jobs.events(job.id)]
    assert (states[-1], "running" in states) == ("succeeded", True)
    later = client.jobs.result(job.id).parse(SegmentOut)
    assert (later.mask, client.jobs.get(job.id).status) == (client.segment(PICTURE, threshold=0.4).mask, "succeeded")
    assert job.id in {kept.id for kept in client.jobs.list()}
    heard: list[float] = []
    job = client.jobs.submit("chat", {"messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(errors.DeadlineExceeded):
        client.jobs.wait(job.id, timeout=0.01)
    with pytest.raises(errors.Conflict, match="The job is"):
        client.jobs.result(job.id)
    last = client.jobs.wait(job.id, timeout=20, on_change=lambda seen: heard.append(seen.progress))
    assert (last.status, heard) == ("succeeded", sorted(set(heard)))
    assert client.jobs.result(job.id).json()["choices"][0]["message"]["content"] == "You said: hi"


def test_a_failed_job_raises_what_the_call_would_have_raised_and_can_be_retried(client, stage, monkeypatch):
    job = client.jobs.submit("segment", pictures={"image": b"no picture"})
    last = client.jobs.wait(job.id, timeout=20)
    assert (last.status, "not a picture" in str((last.error or {})["detail"])) == ("failed", True)
    with pytest.raises(errors.BadInput, match="not a picture"):
        client.jobs.result(job.id)
    assert (client.jobs.retry(job.id).status, client.jobs.wait(job.id, timeout=20).status) == ("queued", "failed")
    first, second = (client.jobs.submit("segment", pictures={"image": PICTURE}, idempotency_key="k1") for _ in range(2))
    assert first.id == second.id
    monkeypatch.setattr(stage.queue, "step_s", 60)
    job = client.jobs.submit("segment", pictures={"image": PICTURE})
    assert client.jobs.cancel(job.id).status == "cancelled"
    assert [event.status for event in client.jobs.events(job.id)] == ["cancelled"]


JOB = {"id": "1", "service": "s", "path": "/", "created": "2026-01-01T00:00:00Z"}
EVENT_STREAM = {"content-type": "text/event-stream"}
AWAY = httpx2.ConnectError("refused")
CUT = httpx2.RemoteProtocolError("peer closed connection without sending complete message body")


class Events(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """One event for each state; an error cuts the stream."""

    def __init__(self, *told: str | Exception) -> None:
        self.told = told

    def __iter__(self) -> Iterator[bytes]:
        for each in self.told:
            if isinstance(each, Exception):
                raise each
            yield b"data: %b\n\n" % json.dumps({**JOB, "status": each}).encode()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for each in self:
            yield each


class Scripted(httpx2.MockTransport):
    """A gateway that gives these answers to what it is asked of a job, one after the other."""

    def __init__(self, *steps: httpx2.Response | Exception) -> None:
        super().__init__(self.answer)
        self.steps = list(steps)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        assert request.url.path.startswith("/v1/jobs/1")
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


def stream(*told: str | Exception) -> httpx2.Response:
    return httpx2.Response(200, stream=Events(*told), headers=EVENT_STREAM)


@pytest.mark.parametrize("lost", [(), (CUT, AWAY, AWAY, AWAY)], ids=["ended", "restarted"])
async def test_events_that_end_early_go_on_also_over_a_restart_of_the_gateway(monkeypatch, lost):
    for kind in ("client", "async_client"):
        monkeypatch.setattr(f"fovea.{kind}.STREAM_RESUME_S", 0)

    def gateway() -> Scripted:
        return Scripted(stream("running", *lost[:1]), *lost[1:], stream("succeeded"))

    with Client(transport=gateway()) as client:
        assert [seen.status for seen in client.jobs.events("1")] == ["running", "succeeded"]
    async with AsyncClient(transport=gateway()) as aclient:
        assert [seen.status async for seen in aclient.jobs.events("1")] == ["running", "succeeded"]


def test_events_of_a_gateway_that_was_never_there_or_stays_away_do_not_go_on_for_ever(monkeypatch):
    monkeypatch.setattr("fovea.client.STREAM_RESUME_S", 0)
    with Client(transport=Scripted(AWAY)) as client, pytest.raises(errors.NotReady):
        next(client.jobs.events("1"))
    monkeypatch.setattr("fovea.retry.AWAY_S", 0)
    gateway = Scripted(stream("running", CUT), AWAY, AWAY)
    with Client(transport=gateway) as client, pytest.raises(errors.NotReady):
        list(client.jobs.events("1"))


async def test_waiting_outlasts_a_restart_of_the_gateway_and_a_rate_that_is_used_up():
    heard: list[str] = []

    def gateway() -> Scripted:
        running, succeeded = (httpx2.Response(200, json={**JOB, "status": each}) for each in ("running", "succeeded"))
        return Scripted(running, AWAY, httpx2.Response(429, headers={"retry-after": "50"}), succeeded)

    with Client(transport=gateway()) as client:
        client.jobs.wait("1", on_change=lambda job: heard.append(job.status))
    async with AsyncClient(transport=gateway()) as aclient:
        await aclient.jobs.wait("1", on_change=lambda job: heard.append(job.status))
    assert heard == ["running", "succeeded"] * 2
    with Client(transport=Scripted(AWAY)) as client, pytest.raises(errors.NotReady):
        client.jobs.wait("1")


async def test_all_attempts_at_a_call_have_its_idempotency_key():
    keys: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers["idempotency-key"])
        status, headers = (503, {"retry-after": "0"}) if len(keys) % 2 else (202, {})
        return httpx2.Response(status, headers=headers, json={**JOB, "status": "queued"})

    for key in (None, None, "mine"):
        with Client(transport=httpx2.MockTransport(answer)) as client:
            client.jobs.submit("judge", idempotency_key=key)
        async with AsyncClient(transport=httpx2.MockTransport(answer)) as aclient:
            await aclient.jobs.submit("judge", idempotency_key=key)
    assert (keys[::2], len(set(keys)), keys[-1]) == (keys[1::2], 5, "mine")


async def test_an_answer_that_nobody_reads_on_is_closed_at_once():
    class Stream(httpx2.AsyncByteStream):
        is_closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            chunk = {"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}]}
            while True:
                yield b"data: %b\n\n" % json.dumps(chunk).encode()

        async def aclose(self) -> None:
            self.is_closed = True

    body = Stream()
    reply = httpx2.Response(200, stream=body, headers=EVENT_STREAM)
    async with AsyncClient(transport=httpx2.MockTransport(lambda _: reply)) as client:
        pieces = client.chat_stream("hi")
        assert (await anext(pieces)).text == "a"
        await pieces.aclose()
        assert body.is_closed


async def test_an_event_without_data_is_skipped_and_one_may_be_large():
    first = b'data: {"id": "1", "created": 1, "model": "m%b", "choices": []}\n\n' % (b"x" * 2**20)
    sent = b"retry: 5\n\nevent: ping\n\n%bid: 7\n\ndata:\n\ndata: [DONE]\n\n" % first
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=sent, headers=EVENT_STREAM))
    with Client(transport=transport) as client:
        assert len(list(client.chat_stream("hi"))) == 1
    async with AsyncClient(transport=transport) as aclient:
        assert len([piece async for piece in aclient.chat_stream("hi")]) == 1


async def test_a_stream_that_ends_without_its_mark_is_no_whole_answer():
    for sent in (b'data: {"id": "1", "created": 1, "model": "m", "choices": []}\n\n', b""):
        transport = httpx2.MockTransport(lambda _, s=sent: httpx2.Response(200, content=s, headers=EVENT_STREAM))
        with Client(transport=transport) as client, pytest.raises(errors.NotReady, match="broke off"):
            list(client.chat_stream("hi"))
        async with AsyncClient(transport=transport) as aclient:
            with pytest.raises(errors.NotReady, match="broke off"):
                [piece async for piece in aclient.chat_stream("hi")]


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Jobs, AsyncJobs)])
def test_both_clients_offer_the_same_with_the_same_parameters(one, other):
    def deeds(kind):
        names = [name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))]
        signatures = {name: inspect.signature(getattr(kind, name)).parameters.values() for name in names}
        return {name: [(p.name, p.kind, p.default) for p in found] for name, found in signatures.items()}

    assert deeds(one) == deeds(other)


async def test_the_async_client_segments_runs_anything_also_what_a_service_makes_a_job_of_and_chats(aclient, stage):
    assert (await aclient.segment(PICTURE, model="disc", threshold=0.4, include=("mask",))).contours is None
    assert (await aclient.run("classify", pictures={"image": PICTURE}))["model"] == "patches/tiny"
    assert (await aclient.model("disc")).task == "segment"
    assert (await aclient.example("parrot"))["messages"]
    assert (await aclient.default_model("chat"), (await aclient.chat("hi")).text) == ("parrot", "You said: hi")
    assert "".join([piece.text async for piece in aclient.chat_stream("hi")]) == "You said: hi"
    with pytest.raises(errors.BadInput):
        await anext(aclient.chat_stream("hi", temperature=9))
    stage.stub.long = 1
    assert (await aclient.run("judge", {"query": "q", "passage": "p"}))["asked"] == {"query": "q", "passage": "p"}
    assert [(job.path, job.status) for job in await aclient.jobs.list(1)] == [("/v1/judge", "succeeded")]


async def test_async_client_reads_files_in_a_thread(aclient, tmp_path):
    (tmp_path / "p.jpg").write_bytes(PICTURE)
    readers: list[bool] = []

    class File(io.BytesIO):
        def read(self, *size: int) -> bytes:
            readers.append(threading.current_thread() is threading.main_thread())
            return super().read(*size)

    await aclient.segment(File(PICTURE))
    await aclient.run("segment", pictures={"image": File(PICTURE)})
    await aclient.jobs.submit("segment", pictures={"image": File(PICTURE)})
    assert readers == [False] * 3
    with pytest.raises(errors.NotFound):
        await aclient.segment(tmp_path / "none.jpg")


async def test_async_client_follows_jobs(aclient, stage, monkeypatch):
    job = await aclient.jobs.submit("segment", pictures={"image": PICTURE}, idempotency_key="async")
    assert [event.status async for event in aclient.jobs.events(job.id)][-1] == "succeeded"
    assert (await aclient.jobs.wait(job.id, timeout=5)).status == "succeeded"
    assert (await aclient.jobs.result(job.id)).parse(SegmentOut).width == 320
    assert (await aclient.jobs.get(job.id)).id in {kept.id for kept in await aclient.jobs.list(5)}
    bad = await aclient.jobs.submit("segment", pictures={"image": b"no"})
    await aclient.jobs.wait(bad.id, timeout=20)
    monkeypatch.setattr(stage.queue, "step_s", 60)
    assert (await aclient.jobs.retry(bad.id)).status == "queued"
    assert (await aclient.jobs.cancel(bad.id)).status == "cancelled"
