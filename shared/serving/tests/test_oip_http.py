"""Open Inference v2 over bare HTTP, without a client to be kind: errors, encodings, bombs, routes, tensors."""

import asyncio
import json
import threading
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient

from fovea.api.tensors import TensorSpec
from fovea.errors import InvalidOption
from shared import telemetry
from shared.registry import CallContext
from shared.rpc.oip_json import HEADER_LENGTH, EncodedBody
from shared.serving.build_app import build
from shared.serving.oip import body as oip_body
from shared.serving.oip import rest, tensors
from shared.serving.tests.oip_mirrors import MIRRORS, Gate, limited, serving
from shared.serving.tests.ready_client import ready_client

ONE = {"inputs": [{"name": "in", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
JSON = "application/json"


@pytest.fixture(scope="module")
def client():
    with ready_client(build("mirrors", servables=MIRRORS, settings=limited())) as running:
        yield running


def infer(client: TestClient, body: Any, model: str = "mirror/fp32", **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/v2/models/{model}/infer", content=content, headers=sent)


@pytest.mark.parametrize("datatype", ["BYTES", "\\u0042YTES"])
def test_many_text_elements_are_taken_apart_off_the_loop(datatype, client):
    raw = (b"\x05\0\0\0hello") * 10_000
    tensor = '{"name": "in", "shape": [1, 10000], "datatype": "%s", "parameters": {"binary_data_size": %d}}'
    text = ('{"inputs": [' + tensor % (datatype, len(raw)) + "]}").encode()
    threads: set[str] = set()
    decode = rest.decode_request

    def spy(*args: Any) -> Any:
        threads.add(threading.current_thread().name)
        return decode(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rest, "decode_request", spy)
        told = infer(client, text + raw, "mirror/bytes", inference_header_content_length=str(len(text)))
        infer(client, ONE)
    assert told.json()["outputs"][0]["data"] == ["hello"] * 10_000
    assert len(threads) == 2, "a large one on a worker thread, a small one on the loop"


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "", " ", "0x10", "١٢", "9" * 13, "1000000", "0"])
def test_a_header_length_that_is_none_is_refused(length, client):
    sent = [(HEADER_LENGTH.encode(), length.encode())]
    told = client.post("/v2/models/mirror/fp32/infer", content=b"{}", headers=sent)
    assert (told.status_code, told.json().keys()) == (400, {"error"})


def test_json_is_answered_as_json_and_what_is_wrong_in_the_protocols_form(client):
    told = infer(client, ONE)
    assert (told.status_code, told.headers["content-type"], HEADER_LENGTH in told.headers) == (200, JSON, False)
    assert told.json()["outputs"][0] == {"name": "out", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    # shared/rpc/tests/test_oip_malformed.py has all of the bad bodies.
    for body in (b"", b"[" * 10**5, json.dumps({**ONE, "outputs": [{"name": "heat"}]}).encode()):
        told = infer(client, body)
        assert (told.status_code, told.headers["content-type"]) == (400, JSON)
        assert (list(told.json()), told.json()["error"].endswith(".")) == (["error"], True)
    for told, status in (
        (infer(client, b"\xff" * 1000, "nobody"), 404), (client.post("/v2/health/live"), 405),
        (client.post("/v2/cudasharedmemory/region/a/register", json={}), 404),
        *((client.get(f"/v2/{path}"), 404) for path in ("nothing", "models/slow/infer", "systemsharedmemory/status")),
    ):  # fmt: skip
        assert (told.status_code, list(told.json())) == (status, ["error"])
    for body in ("[]", "7", '{"parameters": 7}', "{", "[" * 10_000):
        for path in ("index", "models/slow/load"):
            assert client.post(f"/v2/repository/{path}", content=body).status_code == 400


def test_the_index_leaves_out_what_is_not_ready_when_asked(client):
    client.post("/v2/repository/models/slow/unload")
    try:
        names = {model["name"]: model for model in client.post("/v2/repository/index").json()}
        assert names["slow"] == {"name": "slow", "version": "3", "state": "UNAVAILABLE", "reason": "unloaded"}
        assert "slow" not in {m["name"] for m in client.post("/v2/repository/index", json={"ready": True}).json()}
        assert (infer(client, ONE, "slow").status_code, client.get("/v2/models/slow/ready").status_code) == (503, 503)
    finally:
        client.post("/v2/repository/models/slow/load")
    assert client.get("/v2/models/slow/ready").status_code == 200


def test_stages_and_requests_are_counted_under_the_model_and_invented_names_are_not(client):
    mine = {"service": "mirrors", "model": "mirror/fp32"}
    stages = [(telemetry.LATENCY, "_count", {**mine, "stage": stage}) for stage in ("pre", "run", "post")]
    route = {**mine, "route": "/v2/models/{name:path}/infer", "status": "200"}
    counted = [*stages, (telemetry.QUEUE_TIME, "_count", mine), (telemetry.REQUESTS, "_total", route)]

    def count() -> list[float]:
        return [
            sum(one.value for family in metric.collect() for one in family.samples
                if one.name.endswith(suffix) and labels.items() <= one.labels.items())
            for metric, suffix, labels in counted
        ]  # fmt: skip

    before = count()
    infer(client, ONE)
    assert [after - b for after, b in zip(count(), before, strict=True)] == [1, 1, 1, 1, 1]
    infer(client, ONE, "invented-by-a-caller")
    assert b"invented-by-a-caller" not in telemetry.render_metrics()[0]


async def test_a_large_response_is_sent_in_its_parts_and_none_compressed_for_codings_listed_by_habit(client):
    for accepted in ("gzip, deflate, br", "identity", "*", "br", ""):
        assert "content-encoding" not in infer(client, ONE, accept_encoding=accepted).headers
    array, request = np.zeros(100_000, np.float32), Request({"type": "http", "headers": []})
    told = await oip_body.build_response(request, EncodedBody([b"{}", array.data.cast("B")], 2))
    sent: list[Any] = []
    await told({"type": "http"}, None, AsyncMock(side_effect=sent.append))  # type: ignore[arg-type]  # it asks for nothing
    assert (b"content-length", b"400002") in sent[0]["headers"]
    assert [message.get("more_body") for message in sent] == [None, True, False]
    assert np.shares_memory(np.frombuffer(sent[2]["body"], np.uint8), array)


async def test_a_caller_that_goes_away_is_not_served_when_its_turn_comes(monkeypatch):
    cancel, gone = CallContext.cancel, threading.Event()
    monkeypatch.setattr(CallContext, "cancel", lambda run: (cancel(run), gone.set()))
    with serving({"slow": MIRRORS["slow"]}, limited(max_batch_size=1)) as replica:
        gate, body = Gate(replica.host, "slow"), json.dumps(ONE).encode()
        head = b"POST /v2/models/slow/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        callers = []
        for waiting in (0, 1):
            callers.append(await asyncio.open_connection("127.0.0.1", int(replica.http.rpartition(":")[2])))
            callers[-1][1].write(head + body)
            await gate.holds(running=1, waiting=waiting)
        callers[1][1].close()
        assert await asyncio.to_thread(gone.wait, 10)
        gate.open()
        assert (await callers[0][0].readline()).startswith(b"HTTP/1.1 200")
        callers[0][1].close()
    assert gate.engine.runs == [(1, 2)]


SPECS = (TensorSpec(name="a", datatype="FP32", shape=(-1, 2)), TensorSpec(name="b", datatype="BYTES", shape=(-1,)))


def good():
    return {"a": np.zeros((2, 2), np.float32), "b": np.array([b"x", b"y"], object)}


def test_exactly_the_stated_tensors_pass_and_batch_sizes_that_differ_are_named():
    tensors.check_feeds(good(), SPECS)
    with pytest.raises(InvalidOption, match="a 2, b 1"):
        tensors.check_feeds({**good(), "b": np.array([b"x"], object)}, SPECS)


@pytest.mark.parametrize(("changes", "field"), [
    ({"a": None}, "a"), ({"z": np.zeros(1)}, "z"), ({"a": np.zeros((2, 2), np.float64)}, "a"),
    ({"a": np.zeros((2, 3), np.float32)}, "a"), ({"a": np.zeros(2, np.float32)}, "a"),
    ({"a": np.zeros((0, 2), np.float32)}, "a"),
])  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(changes, field):
    feeds = {name: array for name, array in {**good(), **changes}.items() if array is not None}
    with pytest.raises(InvalidOption, check=lambda e: e.field == field):
        tensors.check_feeds(feeds, SPECS)


def test_signature_ignores_the_batch_axis_and_the_order_of_names():
    one, many = np.zeros((1, 2), np.float32), np.zeros((5, 2), np.float32)
    assert tensors.signature({"a": one, "b": many}) == tensors.signature({"b": one, "a": many})
    assert tensors.signature({"a": one}) != tensors.signature({"a": one.astype(np.float64)})
    assert tensors.signature({"a": one}) != tensors.signature({"a": one[:, :1]})


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_split_undoes_join(sizes):
    requests = [{"a": np.full((size, 2), place, np.float32)} for place, size in enumerate(sizes)]
    parts = tensors.split_rows(tensors.join_rows(requests), [tensors.count_rows(feeds) for feeds in requests])
    for request, part in zip(requests, parts, strict=True):
        np.testing.assert_array_equal(part["a"], request["a"])


def test_output_without_one_row_per_input_row_can_t_be_split():
    with pytest.raises(ValueError, match="3 rows"):
        tensors.split_rows({"y": np.zeros((1, 2))}, [1, 2])
