"""Requests of the SDK and its reading of answers, without a socket; its errors and its import."""

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import grpc
import httpcore2
import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fovea import AsyncClient, Client, endpoints, errors, sessions_documents, steering
from fovea.api.job import Job
from fovea.api.mask import SegmentIn, SegmentOut
from fovea.api.model import ModelEntry
from fovea.api.problem import oip_error, openai_error, problem
from fovea.api.sweeps import SweepRequest
from fovea.api.text import ChatMessage, ChatRequest
from fovea.call import Call, StreamCall, read_json
from fovea.chat import ChatOptions, build_messages
from fovea.error_responses import parse_error, parse_stream_error, read_retry_after, translate_errors
from fovea.errors import InvalidOption, by_status
from fovea.lora import add_adapter, delete_adapter
from fovea.picture import detect_media_type, read_picture
from fovea.results import JobResult, ModelCard, SegmentOptions, SweepOptions
from fovea.retry import RetryPolicy, iterate_pauses
from fovea.transport import build_client_options

KINDS = [errors.by_status(status) for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 499, 500, 503, 504, 507)]


def sent(call: Call[Any]) -> httpx2.Request:
    return call.build_request(httpx2.Client(base_url="http://gateway"))


def answer(status: int, body: Any = None, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.Response(status, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_unset_options_stay_behind_turns_of_a_chat_may_be_mixed_and_a_text_alone_is_one_entry_and_not_its_letters():
    request = sent(endpoints.chat_stream("Hi", system="Be brief.", temperature=0, seed=None).call)
    assert request.url.path == "/v1/chat/completions"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    assert json.loads(request.content) == {"messages": turns, "temperature": 0, **stream}
    turns = [ChatMessage(role="user", content="a"), {"role": "assistant", "content": "b"}]
    assert build_messages(turns) == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    events = httpx2.Response(200, content=b"data: {}\n\n")
    assert endpoints.allow_job(endpoints.task("chat", {"stream": True}, {})).parse(events) == events.content
    assert endpoints.sweep("a b", " Mary").json["tokens"] == [" Mary"]
    made = steering.create_vector("calm", "a quiet text", ["a", "b"]).json
    assert (made["positive"], made["negative"]) == (["a quiet text"], ["a", "b"])


@pytest.mark.parametrize(("options", "request_type", "own"), [
    (SegmentOptions, SegmentIn, {"image", "model"}), (SweepOptions, SweepRequest, {"prompt", "tokens"}),
    (ChatOptions, ChatRequest, {"messages", "model", "stream", "stream_options"}),
])  # fmt: skip
def test_the_options_of_a_method_are_those_of_its_request(options, request_type, own):
    assert options.__annotations__.keys() == request_type.model_fields.keys() - own


TYPED = """
import asyncio
from fovea import AsyncClient, ChatPiece, Client

async def main(client: AsyncClient) -> str:
    asked = asyncio.create_task(client.chat("a", max_completion_tokens=4, min_tokens=1))
    async with asyncio.TaskGroup() as group:
        listed = group.create_task(client.jobs.list())
    pieces = client.chat_stream("b")
    first: ChatPiece = await anext(pieces)
    await pieces.aclose()
    await client.jobs.events(listed.result()[0].id).aclose()
    return first.text + (await asked).text

def both(client: Client) -> None:
    client.chat_stream("a").close()
    client.jobs.events("1").close()
    print(asyncio.run(main(AsyncClient())))
"""


@pytest.mark.release  # it reads the types of every library that the client imports
def test_tasks_groups_and_closed_streams_pass_a_strict_type_check(tmp_path):
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\nfollow_imports = silent\n")
    (tmp_path / "user.py").write_text(TYPED)
    command = (sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py")
    search = {**os.environ, "MYPYPATH": str(Path(__file__).parents[2])}
    checked = subprocess.run(command, cwd=tmp_path, env=search, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_picture_goes_out_with_its_type_and_bytes_also_as_a_job_and_one_that_is_none_says_so(tmp_path):
    png = b"\x89PNG\r\n\x1a\n\x00\xff"
    request = sent(endpoints.as_job(endpoints.segment(png), "once"))
    assert (request.headers["prefer"], request.headers["idempotency-key"]) == ("respond-async", "once")
    assert b"Content-Type: image/png\r\n\r\n" + png in request.read()
    assert sent(endpoints.model("patches/a b")).url.raw_path == b"/v1/models/patches/a%20b"
    assert sent(endpoints.job("a/\udce9?")).url.raw_path == b"/v1/jobs/a%2F%E9%3F"
    for build in (
        endpoints.job, endpoints.model, endpoints.example, sessions_documents.session, sessions_documents.document,
        steering.get_vector, steering.delete_vector, steering.get_capture, delete_adapter,
        lambda name: endpoints.report(name, "svg"), lambda name: endpoints.task(name, {}, {}),
    ):  # fmt: skip
        for name in ("", ".", "..", "a/.."):
            with pytest.raises(errors.BadInput, match=r"''|'[a/.]*' can't be"):
                build(name)
    (tmp_path / "caf\udce9.png").write_bytes(b"x")
    assert b'filename="caf?.png"' in sent(endpoints.segment(tmp_path / "caf\udce9.png")).read()
    kinds = {
        b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff\xe0": "image/jpeg", b"II*\x00": "image/tiff",
        b"MM\x00*": "image/tiff", b"BM": "image/bmp", b"RIFF....WEBP": "image/webp",
        b"RIFF....WAVE": "application/octet-stream", b"": "application/octet-stream",
    }  # fmt: skip
    assert {start: detect_media_type(start) for start in kinds} == kinds
    for source, kind, told in (
        (tmp_path / "none.png", errors.NotFound, "no file"), (tmp_path, errors.NotFound, "can't be read"),
        (io.StringIO("x"), errors.UnsupportedMedia, "it is 'str'"),
        (np.zeros((8, 8, 3), np.uint8), errors.UnsupportedMedia, "it is 'ndarray'"),
    ):  # fmt: skip
        with pytest.raises(kind, match=told):
            read_picture(source)  # type: ignore[arg-type]
    (tmp_path / "adapter_config.json").write_text("{")
    for path in (tmp_path, tmp_path / "none", tmp_path / "adapter_config.json"):
        with pytest.raises(errors.NotFound, match="no folder of an adapter"):
            add_adapter(path)


def test_keys_are_bearer_tokens_and_this_machine_has_no_proxy_and_an_authority(monkeypatch, tmp_path):
    options = build_client_options("http://gateway:1", "fovea_secret")
    assert options["headers"]["authorization"] == "Bearer fovea_secret"
    assert "authorization" not in build_client_options("http://gateway:1")["headers"]
    monkeypatch.setenv("ALL_PROXY", "http://proxy:1")
    ours = [f"{scheme}://{host}" for scheme in ("http", "https") for host in ("127.0.0.1:8080", "localhost", "[::1]")]
    for url in (*ours, "https://fovea.example"):
        client = httpx2.Client(**build_client_options(url))
        assert (client._transport_for_url(httpx2.URL(url)) is client._transport) is (url in ours)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    httpcore2.default_ssl_context.cache_clear()
    httpx2.Client(**build_client_options("http://127.0.0.1"))
    with pytest.raises(FileNotFoundError):  # it is read, also for an authority of this machine
        httpx2.Client(**build_client_options("https://127.0.0.1"))
    for none in ("", None, "nonsense", "ftp://host", "http://", "127.0.0.1:8080"):
        with pytest.raises(errors.Malformed, match="not the address"):
            build_client_options(none)


def test_each_class_has_a_status_and_a_code_of_grpc_and_is_read_again_from_a_problem_and_the_forms_of_others():
    for kind in KINDS:
        error = parse_error(answer(kind.status, problem(kind("why", hint="try", field="threshold")).model_dump()))
        assert (error.status, error.detail, error.hint, error.field) == (kind.status, "why", "try", "threshold")
    told = errors.NotFound("no such model", field="model")
    openai, oip = (parse_error(answer(404, form(told))) for form in (openai_error, oip_error))
    assert (type(openai), openai.detail, openai.field) == (errors.NotFound, "no such model", "model")
    assert (type(oip), oip.detail) == (errors.NotFound, "no such model")
    for body in (b"", b"<html>", b"[]", b'{"error": 3}', b"\xff\xfe", b'{"detail": {"a": 1}}'):
        error = parse_error(answer(502, body))
        assert (type(error), "502" in error.detail) == (errors.Fault, True), body
    for cls in [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.FoveaError)]:
        assert (400 <= cls.status < 600, cls.grpc in grpc.StatusCode.__members__) == (True, True), cls
    body = openai_error(InvalidOption("top_p is 3.", hint="Use 0 to 1.", field="top_p"), "r1")["error"]
    assert (body["param"], body["message"]) == ("top_p", "top_p is 3. Use 0 to 1.")
    assert (body["type"], oip_error(InvalidOption("bad shape."))) == ("invalid_request_error", {"error": "bad shape."})
    assert (by_status(418).status, by_status(599).status) == (400, 500)


def test_nonsense_is_a_fault_a_gateway_that_moved_names_its_address_and_unnamed_facts_ride_along():
    with pytest.raises(errors.BadInput, match="308", check=lambda told: "https://gateway/v1" in told.hint):
        endpoints.report("k", "svg").parse(answer(308, b"", location="https://gateway/v1"))
    for call, body in ((endpoints.models(), {"data": "x"}), (Call("GET", "/", read_json), b"<html>")):
        with pytest.raises(errors.Fault, match="can't be read"):
            call.parse(answer(200, body))
    facts = {"id": "m", "created": 1, "task": "t", "service": "s", "ready": True, "paper": {"year": 2020}}
    card = ModelCard.model_validate({**facts, "schema": {"a": 1}})
    assert (card.request_schema, card.model_extra) == ({"a": 1}, {"paper": {"year": 2020}})
    for written in (card.model_dump_json(), card.model_dump_json(by_alias=True)):
        assert ModelCard.model_validate_json(written) == card


@given(st.binary(max_size=60), st.integers(300, 599))
def test_no_error_body_breaks_the_reader(body, status):
    assert isinstance(parse_error(httpx2.Response(status, content=body)), errors.FoveaError)


def event(data: str) -> httpx2.ServerSentEvent:
    return httpx2.ServerSentEvent(data=data)


def chunk(**fields: Any) -> str:
    return json.dumps({"id": "1", "created": 1, "model": "m", "choices": [], **fields})


def test_an_event_that_says_the_answer_broke_off_is_raised_and_a_failed_job_is_one_like_any_other():
    lost = {"detail": "lost", "status": 503}
    bodies = ({"message": "lost", "code": "fault"}, lost, "lost")
    for told in (*({"error": body} for body in bodies), {"problem": lost}):
        with pytest.raises(errors.FoveaError, match="lost"):
            StreamCall(endpoints.job("1"), Job.model_validate_json).parse_event(event(json.dumps(told)))
    job = Job(id="1", service="s", path="/", status="failed", error={"detail": "x"}, created=datetime.now(UTC))
    assert parse_stream_error(json.loads(job.model_dump_json())) is None
    assert StreamCall(endpoints.job("1"), Job.model_validate_json).parse_event(event(job.model_dump_json())) == job
    found = endpoints.result("1").parse(answer(200, {"id": "x"}, content_type="application/json"))
    assert (type(found), found.content_type, found.json()) == (JobResult, "application/json", {"id": "x"})
    with pytest.raises(ValueError, match="model"):
        found.parse(SegmentOut)
    assert "newer" in Job.model_validate({**job.model_dump(), "newer": 1}).model_dump()
    stream = endpoints.chat_stream([])
    both = [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": {"content": "yes"}}]
    assert (stream.parse_event(event(chunk(choices=both))).text, stream.parse_event(event(chunk())).text) == ("yes", "")
    assert stream.is_end(event("[DONE]"))


def test_only_busy_and_not_ready_are_waited_for_as_seconds_or_a_date_say_and_given_up_after_some_tries():
    assert read_retry_after(answer(429, retry_after="2.5")) == 2.5
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert read_retry_after(answer(429, retry_after=soon)) == pytest.approx(60, abs=2)
    assert (read_retry_after(answer(429, retry_after="soon")), read_retry_after(answer(429))) == (None, None)
    assert (read_retry_after(answer(429, retry_after="-3")), next(iterate_pauses(None))) == (0, 0.05)
    with pytest.raises(errors.DeadlineExceeded, match="0 s"):
        next(iterate_pauses(0))
    others = (200, 400, 401, 404, 409, 422, 500, 502, 504)
    assert {RetryPolicy().wait_s(1, answer(other)) for other in others} == {None}
    policy = RetryPolicy(tries=3, longest=10)
    for status in (429, 503):
        asked = ((1, "7"), (2, "11"), (3, "1"))
        assert [policy.wait_s(n, answer(status, retry_after=text)) for n, text in asked] == [7, None, None]


@given(st.integers(1, 20))
def test_waits_of_its_own_grow_and_stay_bounded(attempt):
    wait = RetryPolicy(tries=99, longest=5, first=0.2).wait_s(attempt, answer(503))
    assert min(5, 0.2 * 2 ** (attempt - 1)) / 2 <= wait <= min(5, 0.2 * 2 ** (attempt - 1))


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_key_from_a_file_has_a_line_break_and_what_can_not_be_a_key_is_not_shown(client):
    assert client(key="fovea_1_s3cret\n")._http.headers["authorization"] == "Bearer fovea_1_s3cret"
    for key in ("fovea_1_s3cret\nX: 1", "fovea_1_s3cret\u2026"):
        with pytest.raises(errors.Unauthenticated, check=lambda told: "s3cret" not in str(told)):
            client(key=key)


def test_a_broken_connection_is_an_error_of_ours():
    for raised, kind, words in (
        (httpx2.ConnectError("refused"), errors.NotReady, "No gateway answers at http://gateway: refused. Start"),
        (httpx2.ConnectError("[SSL: VERIFY_FAILED] x"), errors.NotReady, "VERIFY_FAILED] x. Set SSL_CERT_FILE"),
        (httpx2.ConnectTimeout(""), errors.NotReady, "No gateway answers at http://gateway: ConnectTimeout"),
        (httpx2.ReadTimeout("slow"), errors.DeadlineExceeded, "in time"),
        (httpx2.ReadError(""), errors.NotReady, "broke: ReadError"),
        (httpx2.RemoteProtocolError("cut"), errors.NotReady, "broke: cut"),
        (httpx2.DecodingError("no gzip"), errors.NotReady, "broke: no gzip"),
    ):
        with pytest.raises(kind) as caught, translate_errors("http://gateway"):
            raise raised
        assert words in f"{caught.value.detail} {caught.value.hint}"


def test_a_text_in_another_encoding_and_a_number_that_json_lacks_are_refused_before_they_are_sent():
    for pictures in ({}, {"image": b"x"}):
        with pytest.raises(errors.Malformed, match="not JSON serializable"), Client() as client:
            client.run("classify", {"top_k": np.int64(3)}, pictures=pictures)
        with pytest.raises(errors.Malformed, match="JSON compliant"), Client() as client:
            client.run("classify", {"threshold": float("nan")}, pictures=pictures)
    with pytest.raises(errors.Malformed, match="udce9"), translate_errors("http://gateway"):
        sent(endpoints.chat("caf\udce9"))
    with pytest.raises(errors.Malformed, match="JSON"), Client() as client:
        client.chat("Hi", temperature=float("nan"))
    with pytest.raises(errors.Malformed, match="PosixPath") as caught, Client() as client:
        client.run("segment", {"image": Path("frame.png")})
    assert caught.value.hint == "Give pictures as `pictures`."


def test_the_default_of_a_task_is_the_first_that_is_ready_or_loading():
    states = "segment failed", "segment ready", "chat failed", "detect loading", "detect ready"
    served, entries = dict(zip("abcde", states, strict=True)), []
    for name, (task, state) in ((name, text.split()) for name, text in served.items()):
        facts = {"task": task, "ready": state == "ready", "state": state}
        entries.append(ModelEntry(id=name, created=1, service="s", **facts))
    assert [endpoints.pick_default_model(task, entries) for task in ("segment", "chat", "detect")] == ["b", "c", "d"]
    with pytest.raises(errors.NotFound, match="paint", check=lambda told: "chat, segment" in told.hint):
        endpoints.pick_default_model("paint", entries)


HEAVY = (
    "torch", "numpy", "onnxruntime", "transformers", "ray", "fastapi", "starlette", "aiohttp", "redis", "grpc",
    "PIL", "jinja2", "prometheus_client", "structlog", "shared.settings", "shared.telemetry", "shared.registry",
)  # fmt: skip

PROBE = """
import sys, time
begun = time.perf_counter()
import {module}
print(time.perf_counter() - begun)
print(",".join(name for name in {heavy!r} if name in sys.modules))
"""


def probe(module: str) -> tuple[float, str]:
    code = PROBE.format(module=module, heavy=HEAVY)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    seconds, loaded = ran.stdout.splitlines()
    return float(seconds), loaded


def test_the_client_and_the_command_load_nothing_heavy():
    assert {probe(module)[1] for module in ("fovea", "fovea.cli.main")} == {""}
    # One of three, for a busy machine; a torch import alone takes longer.
    assert any(probe("fovea")[0] < 1.0 for _ in range(3))
