"""A remote Open Inference server is an engine like any other, and its errors become ours."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from fovea.errors import BadInput, DeadlineExceeded, Fault, NotFound, NotReady, RateLimited, TooLarge, Unauthenticated
from shared.engines import ModelArtifacts, open_engine
from shared.engines.triton import TritonEngine, _to_fovea_error
from shared.engines.triton_connections import is_this_host
from shared.registry import LoadContext
from shared.rpc.oip import InferAnswer
from shared.rpc.oip_json import decode_request, encode_answer
from shared.rpc.tensors import DTYPES
from tests.harness.waiting import free_port, wait_until


def region_file(key):
    return Path("/dev/shm", key.lstrip("/"))  # noqa: S108  # where Linux keeps them


def inline(body, length, regions):
    """A request whose inputs lie in shared memory, as one that carries them: what Triton does on its side."""
    header = json.loads(body[: length or len(body)])
    datas = []
    for tensor in header["inputs"]:
        stated = tensor.pop("parameters", {})
        size, offset = stated["shared_memory_byte_size"], stated.get("shared_memory_offset", 0)
        datas.append(region_file(regions[stated["shared_memory_region"]]).read_bytes()[offset : offset + size])
        tensor["parameters"] = {"binary_data_size": size}
    head = json.dumps(header).encode()
    return head + b"".join(datas), str(len(head))


class Stub(BaseHTTPRequestHandler):
    """Answers metadata of `echo-<DATATYPE>` models, echoes x as y, and fails as its model's name says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def answer(self, status, body, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if length is not None:
            self.send_header("Inference-Header-Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    @property
    def model(self):
        return self.path.split("/")[3]

    def do_GET(self):
        if self.model == "absent":
            return self.answer(404, b'{"error": "there is no model absent"}')
        kind = self.model.removeprefix("echo-") if self.model.startswith("echo-") else "FP32"
        tensors = [[{"name": n, "datatype": kind, "shape": [-1, 3]}] for n in "xy"]
        facts = {"name": self.model, "platform": "stub", "inputs": tensors[0], "outputs": tensors[1]}
        return self.answer(200, json.dumps(facts).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        if self.path.startswith("/v2/systemsharedmemory/region/"):
            return self.share(body)
        return self.infer(body)

    def share(self, body):
        """Know a region of shared memory, or forget it; unless this server is on another host."""
        name, verb = self.path.split("/")[4:]
        if self.server.is_elsewhere:
            return self.answer(400, b'{"error": "Unable to open shared memory region"}')
        if verb == "unregister":
            self.server.regions.pop(name, None)
        else:
            self.server.regions[name] = json.loads(body)["key"]
        return self.answer(200, b"{}")

    def linger(self):
        """Compute for half a second; not counted while it answers, because its reader sends the next call at once."""
        with self.server.lock:
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        time.sleep(0.5)
        with self.server.lock:
            self.server.busy -= 1

    def infer(self, body):
        if self.model.startswith("status-"):
            return self.answer(int(self.model.removeprefix("status-")), b'{"error": "because"}')
        if self.model == "slow":
            self.linger()
        if self.model == "garbage":
            return self.answer(200, b"<html>")
        if self.model == "hang-up" or (self.model == "hang-up-once" and self.server.paths.count(self.path) == 1):
            self.close_connection = True
            return None
        length = self.headers.get("Inference-Header-Content-Length")
        self.server.shared.append(b"shared_memory_region" in body)
        if self.server.shared[-1] and not self.server.regions:
            return self.answer(404, b'{"error": "Unable to find shared memory region: \'fovea-1\'"}')
        if self.server.shared[-1]:
            body, length = inline(body, length and int(length), self.server.regions)
        call = decode_request(self.model, "", body, None if length is None else int(length))
        self.server.binary.append(length is not None)
        outputs = {"z" if self.model == "other-output" else "y": call.feeds["x"]}
        if self.model == "other-dtype":
            outputs = {"y": call.feeds["x"].astype(np.float64)}
        reply = encode_answer(InferAnswer(self.model, "1", outputs), call)
        return self.answer(200, reply.join(), reply.header_length)


@pytest.fixture(scope="module")
def server():
    stub = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    stub.daemon_threads = True
    stub.paths, stub.binary, stub.shared, stub.regions = [], [], [], {}
    stub.lock, stub.busy, stub.most_busy, stub.is_elsewhere = threading.Lock(), 0, 0, False
    thread = threading.Thread(target=stub.serve_forever)
    thread.start()
    yield stub
    stub.shutdown()
    stub.server_close()
    thread.join()


@pytest.fixture
def opened(server):
    engines = []

    def connect(model, **more):
        engines.append(TritonEngine(f"127.0.0.1:{server.server_port}", model, **more))
        return engines[-1]

    yield connect
    for engine in engines:
        engine.close()


X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_goes_out_and_comes_back(opened, server, datatype):
    x = X.astype(np.uint8).astype(DTYPES[datatype]) if datatype != "BYTES" else np.array([[b"a", b"\xff", b""]], object)
    engine = opened(f"echo-{datatype}")
    assert engine.inputs[0].model_dump() == {"name": "x", "datatype": datatype, "shape": (-1, 3)}
    y = engine.run({"x": x})["y"]
    assert y.dtype == DTYPES[datatype]
    assert (y == x).all()
    assert server.binary[-1]  # tensors travel as bytes, not as JSON lists


@pytest.mark.parametrize(("status", "kind"), [
    (400, BadInput), (401, Unauthenticated), (404, NotFound), (413, TooLarge), (429, RateLimited),
    (500, Fault), (503, NotReady), (504, DeadlineExceeded),
])  # fmt: skip
def test_status_of_the_server_becomes_our_error(opened, status, kind):
    with pytest.raises(kind, check=lambda e: (e.status, "because" in e.detail) == (status, kind is not Fault)):
        opened(f"status-{status}").run({"x": X})


@pytest.mark.parametrize(("code", "status"), [
    ("INVALID_ARGUMENT", 400), ("NOT_FOUND", 404), ("UNAVAILABLE", 503), ("DEADLINE_EXCEEDED", 504),
    ("RESOURCE_EXHAUSTED", 429), ("INTERNAL", 500), ("UNKNOWN", 500),
])  # fmt: skip
def test_grpc_code_becomes_our_error(code, status):
    assert _to_fovea_error(InferenceServerException("why", status=f"StatusCode.{code}")).status == status


def test_server_that_is_not_there_is_not_ready_and_an_answer_that_is_none_its_fault(opened):
    for scheme in ("", "grpc://"):
        with pytest.raises(NotReady):
            TritonEngine(f"{scheme}127.0.0.1:{free_port()}", "net", timeout=2)
    for model in ("garbage", "other-output", "other-dtype"):
        with pytest.raises(Fault):
            opened(model).run({"x": X})


def test_a_version_is_asked_for_and_a_lost_connection_tried_once_more_but_an_unknown_model_not_found(opened, server):
    opened("echo-FP32", version="7").run({"x": X})
    assert "/versions/7/" in server.paths[-1]
    with pytest.raises(NotFound, match="there is no model absent"):
        opened("absent")
    assert (opened("hang-up-once").run({"x": X})["y"] == X).all()
    with pytest.raises(NotReady, match="can't be reached"):
        opened("hang-up").run({"x": X})


def test_calls_are_under_way_at_once_up_to_the_number_of_connections(opened, server):
    wait_until(lambda: not server.busy)  # a call that an earlier test gave up
    server.most_busy = 0
    engine = opened("slow", connections=3)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(engine.run, [{"x": X}] * 6))
    assert server.most_busy == 3


LARGE = np.arange(3 * 20_000, dtype=np.float32).reshape(-1, 3)


def test_large_tensors_go_through_shared_memory_whose_regions_threads_do_not_share(opened, server):
    engine = opened("echo-FP32")
    for x in (LARGE, X, LARGE[::-1], np.concatenate([LARGE] * 8)):
        assert (engine.run({"x": x})["y"] == x).all()
        assert server.shared[-1] == (x.nbytes > 2**16)
    server.regions.clear()  # it restarts
    assert (engine.run({"x": x})["y"] == x).all()
    assert server.shared[-1]
    (key,) = server.regions.values()
    engine.close()
    assert not server.regions
    assert not region_file(key).exists()
    engine = opened("echo-FP32", connections=4)
    jobs = [LARGE + number for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: engine.run({"x": x})["y"], jobs))
    assert all((a == b).all() for a, b in zip(jobs, found, strict=True))


def test_a_server_that_can_not_see_our_memory_is_sent_the_bytes(opened, server):
    server.is_elsewhere = True
    try:
        engine = opened("echo-FP32")
        for _ in range(2):
            assert (engine.run({"x": LARGE})["y"] == LARGE).all()
    finally:
        server.is_elsewhere = False
    assert not any(server.shared[-2:])
    assert sum(path.endswith("/register") for path in server.paths[-5:]) == 1
    addresses = ("127.0.0.1:8000", "localhost:1", "[::1]:8001", "triton:8000", "10.0.0.7:1")
    assert [is_this_host(address) for address in addresses] == [True, True, True, False, False]


def test_timeout_and_connections_are_settings(server):
    options = {"triton_url": f"127.0.0.1:{server.server_port}", "triton_timeout_s": "0.2", "triton_connections": "2"}
    engine = open_engine(LoadContext(engine="triton", options=options), ModelArtifacts("slow"))
    with pytest.raises(DeadlineExceeded, match=r"took over 0\.2 s"):
        engine.run({"x": X})
    engine.close()
