"""The gateway as a process: it starts, stops when told, and answers `/livez` within 200 ms whatever one client sends.

The measure is how long it holds its event loop, which no load of the machine makes longer; see `loop_watch`.
"""

import asyncio
import contextlib
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import grpc
import httpx2
import pytest
import uvicorn

from fovea.errors import Malformed
from services.gateway.__main__ import CannotListen, open_listener, require_safe_address, serve
from services.gateway.grpc.server import SERVICE
from services.gateway.policy.auth import KeyRing
from services.gateway.routing.json_peek import MAX_TOKENS, has_json_field, read_json_field
from services.gateway.tests.loop_watch import LoopWatch
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.joined_writes import JoinedWritesProtocol
from shared.settings import Settings
from tests.harness.waiting import free_port, wait_until

LONGEST_S = 0.2
GRPC_REFUSALS = {grpc.StatusCode[name] for name in ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "UNAVAILABLE")}
HTTP_REFUSALS = {400, 404, 405, 413, 415, 422, 503}
MANY = 20_000_000
"""Bytes of a large input. Inputs are made when they are asked for: together they have half a gigabyte."""

JSON, FORM = {"content-type": "application/json"}, {"content-type": "multipart/form-data; boundary=x"}
BY_NAME = "/v1/models-by-name"
_BOUNDARY = b"--x\r\n"
_FILE = b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n'


def make_grpc_inputs():
    """Method and messages of each input that may hold up the gateway; a found attack is added here."""
    return {
        "zeros": ("ModelInfer", [b"\0" * MANY]),
        "ones": ("ModelInfer", [b"\xff" * MANY]),
        "numbers for the name": ("ModelInfer", [b"\x08\x00" * (MANY // 2)]),
        "empty names": ("ModelInfer", [b"\x0a\x00" * (MANY // 2)]),
        "unknown fields": ("ModelInfer", [b"\x98\x06\x01" * (MANY // 3)]),
        "long numbers": ("ModelInfer", [(b"\x08" + b"\x80" * 9 + b"\x01") * (MANY // 11)]),
        "huge length": ("ModelInfer", [b"\x0a\xff\xff\xff\xff\x7f" + b"x" * 1000]),
        "a name of megabytes": ("ModelInfer", [pb.ModelInferRequest(model_name="x" * MANY).SerializeToString()]),
        "index with ballast": ("RepositoryIndex", [b"\x98\x06\x01" * (MANY // 3)]),
        "metadata with ballast": ("ServerMetadata", [b"\0" * MANY]),
        "statistics of zeros": ("ModelStatistics", [b"\0" * MANY]),
        "not offered": ("TraceSetting", [b"\0" * MANY]),
        "stream of zeros": ("ModelStreamInfer", [b"\0" * 100_000] * 50),
        "no message": ("ModelInfer", []),
    }


def make_http_inputs():
    """Path, headers and body of each input, likewise."""
    return {
        "deep brackets": (BY_NAME, JSON, b"[" * MANY),
        "many brackets": (BY_NAME, JSON, b'{"a":' + b"[]," * (MANY // 3)),
        "many small fields": (BY_NAME, JSON, b"{" + b'"a":1,' * (MANY // 6) + b'"b":1}'),
        "name at the end": (BY_NAME, JSON, b'{"image":"' + b"A" * MANY + b'","model":"nobody"}'),
        "a name of megabytes": (BY_NAME, JSON, b'{"model":"' + b"x" * MANY + b'"}'),
        "form of beginnings": (BY_NAME, FORM, _BOUNDARY + b'name="model"\r\n' * (MANY // 14)),
        "deep jobs": ("/v1/jobs", JSON, json.dumps({"a": "b" * MANY}).encode()),
        "brackets for a batch": ("/v1/batches", JSON, b"[" + b"[]," * (MANY // 3) + b"[]]"),
        "numbers for a batch": ("/v1/batches", JSON, b"[" + b"1," * (MANY // 2) + b"1]"),
        "objects for the index": ("/v2/repository/index", JSON, b"[" + b"{}," * (MANY // 3) + b"{}]"),
        "escapes for a batch": ("/v1/batches", JSON, b'"' + b"\\u00e9" * (MANY // 6) + b'"'),
        "a form of line ends": ("/v1/files", FORM, _BOUNDARY + _FILE + b"\r\n-" * (MANY // 3)),
        "a form of headers": ("/v1/files", FORM, _BOUNDARY + b"a: b\r\n" * (MANY // 6)),
        "zeros that were inflated": ("/v1/mcp", JSON | {"content-encoding": "gzip"}, gzip.compress(b" " * 3 * MANY, 1)),
        "bad utf-8": (BY_NAME, JSON, b'{"\xff":"' + b"\xfe" * MANY),
    }


@dataclass
class Process:
    """A gateway with keys in a process of its own."""

    url: str
    grpc: str
    metrics: str
    key: str
    pid: int
    loop: Path
    """How long its event loop was held."""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("attacked"), free_port()
    _, key = KeyRing(folder / "keys.json").add("alice", ("infer", "jobs"), rate_per_minute=1_000_000)
    loop, settings = folder / "loop", {"FOVEA_AUTH": "keys", "FOVEA_METRICS_PORT": str(port)}
    made = start(folder, "-c", _START, str(loop), **settings)
    with made, made.stderr:
        yield Process(*listens_at(made.stderr), f"http://127.0.0.1:{port}", key, made.pid, loop)
        made.kill()


_START = """
import asyncio
import sys
from pathlib import Path
from services.gateway import __main__ as gateway
from services.gateway.routing.replica_registry import ReplicaRegistry
from services.gateway.routing.route_table import RouteTable
from services.gateway.tests.loop_watch import LoopWatch
from fovea.api.replica import ReplicaRecord

watch, start = LoopWatch(Path(sys.argv.pop())), ReplicaRegistry.start

async def start_watched(registry):
    registry.watching = asyncio.create_task(watch.run())
    await start(registry)

def two_services(registry):
    registry.routes = RouteTable.from_records([
        ReplicaRecord(id=n, service=n, http="http://127.0.0.1:9", pid=1, ready=True, models=(n,),
                      routes=("/v1/models-by-name",), seen=1.0)
        for n in ("a", "b")
    ])

ReplicaRegistry._update_routes = two_services
ReplicaRegistry.start = start_watched
sys.exit(gateway.main())
"""


async def live_through(url: str, attack: Callable[[], Any], refused: set[Any]) -> None:
    """Ask `/livez` while an attack runs, and for a moment after: it always answers, and the attack is refused."""
    attacking = asyncio.create_task(asyncio.to_thread(attack))
    async with httpx2.AsyncClient(timeout=30) as client:
        quiet = 0
        while quiet < 5:
            assert (await client.get(f"{url}/livez")).status_code == 200
            quiet += attacking.done()
            await asyncio.sleep(0.01)
    assert await attacking in refused


def send_grpc(address: str, key: str, method: str, messages: list[bytes]) -> grpc.StatusCode | None:
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{method}")
        try:
            list(call(iter(messages), metadata=(("x-api-key", key),), timeout=30))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
            return code
        return None


def send_http(url: str, key: str, path: str, headers: dict[str, str], body: bytes) -> int:
    return httpx2.post(url + path, headers={"x-api-key": key, **headers}, content=body, timeout=30).status_code


def test_metrics_have_a_port_of_their_own_that_wants_no_key(attacked):
    wait_until(lambda: httpx2.get(f"{attacked.metrics}/metrics").status_code == 200, 30)
    assert "python_info" in httpx2.get(f"{attacked.metrics}/metrics").text
    assert httpx2.get(f"{attacked.url}/metrics").status_code == 401
    assert httpx2.get(f"{attacked.metrics}/v1/models").status_code == 404


async def test_twenty_large_messages_without_a_key_take_no_memory(attacked):
    before, large = resident_megabytes(attacked.pid), [b"\x0a\x01x" + b"\0" * 60_000_000]
    sending = (asyncio.to_thread(send_grpc, attacked.grpc, "wrong", "ModelInfer", large) for _ in range(20))
    assert set(await asyncio.gather(*sending)) == {grpc.StatusCode.UNAUTHENTICATED}
    assert resident_megabytes(attacked.pid) - before < 100


def resident_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@pytest.mark.timed("how long the loop is held")
async def test_livez_waits_for_no_hostile_input(attacked):
    held, watch, grpc, http = {}, LoopWatch(attacked.loop), make_grpc_inputs(), make_http_inputs()
    by_grpc, by_http = partial(send_grpc, attacked.grpc, attacked.key), partial(send_http, attacked.url, attacked.key)
    attacks: dict[str, tuple[Callable[[], Any], set[Any]]] = {
        **{f"grpc {name}": (partial(by_grpc, *sent), GRPC_REFUSALS) for name, sent in grpc.items()},
        **{f"http {name}": (partial(by_http, *sent), HTTP_REFUSALS) for name, sent in http.items()},
    }
    for name, (attack, refusals) in attacks.items():
        watch.take()
        unread = {None} if "metadata" in name else set()  # answered without a look at its message
        await live_through(attacked.url, attack, refusals | unread)
        held[name] = watch.take()
    assert min(held.values()) > 0, "the loop was not watched"
    assert {name: seconds for name, seconds in held.items() if seconds > LONGEST_S} == {}


def test_a_field_is_there_however_it_is_written_and_very_many_parts_are_refused():
    there = [b'{"a": [], "store" : true}', b'{"st\\u006fre": {}}', b'{"store": "null"}', b'{"a":' + b"[]," * MAX_TOKENS]
    away = [b"", b"store", b'["store"]', b'{"store": false}', b'{"store":null}', b'{"a": {"store": 1}}', b'{"\\x": 1}']
    assert [has_json_field(body, {"store"}) for body in there + away] == [True] * len(there) + [False] * len(away)
    with pytest.raises(Malformed, match="too many parts"):
        read_json_field(b'{"a":' + b"[]," * MAX_TOKENS, "model")


def start(folder: Path, *program: str, **changed: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FOVEA_")}
    env = {**kept, "FOVEA_DATA_DIR": str(folder), "FOVEA_HTTP_PORT": "0", "FOVEA_GRPC_PORT": "0", **changed}
    words = program or ("-m", "services.gateway")
    return subprocess.Popen([sys.executable, *words], env=env, text=True, stderr=subprocess.PIPE)


def listens_at(stderr: IO[str]) -> tuple[str, str]:
    """URL and gRPC address of a gateway, once it has said them."""
    for line in stderr:
        if found := re.search(r"grpc=(\S+) http=(http://\S+)", line):
            return found[2], found[1]
    raise AssertionError("the gateway never said where it listens")


async def test_a_port_in_use_and_an_open_address_without_keys_are_one_clear_line(tmp_path):
    told = "The gateway can't listen on 127.0.0.1:{}: Address already in use. Set {} to a free port."
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(tmp_path, FOVEA_GRPC_PORT=str(port))
        _, lines = await asyncio.to_thread(process.communicate, timeout=20)
        with pytest.raises(CannotListen) as refused:
            await serve(Settings(http_port=port, data_dir=tmp_path))
    assert (process.returncode, "Traceback" in lines) == (2, False)
    assert lines.strip().splitlines()[-1] == told.format(port, "FOVEA_GRPC_PORT")
    assert str(refused.value) == told.format(port, "FOVEA_HTTP_PORT")
    with pytest.raises(CannotListen, match="FOVEA_AUTH=keys"):
        require_safe_address(Settings(host="0.0.0.0"))


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux alone")
async def test_a_caller_that_reads_nothing_of_its_answer_is_dropped():
    """Else each of many such answers, of up to 8 MB, stays in memory as long as its caller likes."""
    closed = asyncio.Event()

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * MANY})

    class Protocol(JoinedWritesProtocol):
        def connection_lost(self, exc):
            closed.set()
            super().connection_lost(exc)

    listener = open_listener("127.0.0.1", 0)
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    options = {"http": Protocol, "lifespan": "off", "log_config": None, "loop": "asyncio", "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    with socket.create_connection(listener.getsockname()) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(closed.wait(), 20)
    await server.shutdown(sockets=[listener])


DOCUMENT = {"paths": {path: {"post": {}} for path in ("/v1/stream", "/v1/echo")}}


@pytest.mark.parametrize(("grace_s", "is_whole"), [("20", True), ("1", False)])
async def test_both_fronts_stop_taking_calls_and_a_stream_ends_within_the_grace_and_is_cut_after_it(
    toy, tmp_path, grace_s, is_whole
):
    upstream, at = await toy(name="r", chunks=30, gap_s=0.1, documents={"openapi": DOCUMENT}), free_port()
    fixed = {"FOVEA_STATIC_UPSTREAMS": f"svc={upstream.url}", "FOVEA_GRPC_PORT": str(at)}
    process = start(tmp_path, FOVEA_SHUTDOWN_GRACE_S=grace_s, **fixed)
    with process, process.stderr:
        url, _ = await asyncio.to_thread(listens_at, process.stderr)
        channel, client = grpc.aio.insecure_channel(f"127.0.0.1:{at}"), httpx2.AsyncClient(base_url=url, timeout=30)
        async with channel, client:
            await asyncio.to_thread(wait_until, lambda: httpx2.get(f"{url}/readyz").status_code == 200, 30)
            live, events = channel.unary_unary("/inference.GRPCInferenceService/ServerLive"), 0
            with contextlib.suppress(httpx2.RemoteProtocolError):
                async with client.stream("POST", "/v1/stream", json={}) as answer:
                    async for line in answer.aiter_lines():
                        events += line.startswith("data: ") and line.removeprefix("data: ").isdecimal()
                        if line == "data: 0":
                            await asyncio.sleep(0.5)  # the chart's `preStop`
                            assert (await client.post("/v1/echo", content=b"x")).status_code == 200
                            await live(b"")
                            process.send_signal(signal.SIGTERM)
                        if line == "data: 20":
                            with pytest.raises(grpc.aio.AioRpcError):
                                await live(b"", timeout=5)
        process.send_signal(signal.SIGTERM)
        rest = await asyncio.to_thread(process.stderr.read)
        assert (events == 30) is is_whole, rest
        assert not is_whole or "Traceback" not in rest
        assert await asyncio.to_thread(process.wait, 20) in {0, -signal.SIGTERM}
