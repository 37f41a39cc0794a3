"""The committed stubs are what `proto/` says and `tritonclient` sends; servers send an answer in one packet."""

import asyncio
import inspect
import json
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from shared.rpc import open_inference_pb2 as pb
from shared.rpc.generate import PROTOS, STUBS, generate_stubs
from shared.rpc.joined_writes import JoinedTransport, JoinedWritesProtocol
from tests.harness.serving import serve_in_thread


def describe(files, methods):
    """Names, numbers and types of messages, enumerations and methods."""

    def fields(message):
        found = {
            f.name: [f.number, f.type, bool(f.is_repeated), getattr(f.containing_oneof, "name", None)]
            for f in message.fields
        }
        return {"fields": found, "nested": {nested.name: fields(nested) for nested in message.nested_types}}

    enums = {name: enum for file in files for name, enum in file.enum_types_by_name.items()}
    kinds = {m.name: [m.input_type.name, m.output_type.name, m.client_streaming, m.server_streaming] for m in methods}
    return {
        "messages": {name: fields(one) for file in files for name, one in file.message_types_by_name.items()},
        "enums": {name: {value.name: value.number for value in enum.values} for name, enum in enums.items()},
        "methods": kinds,
    }


OURS = describe([pb.DESCRIPTOR], pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods)

# Runs where tritonclient has the package `inference` to itself.
TRITON = f"""
import json
from tritonclient.grpc import model_config_pb2, service_pb2
{inspect.getsource(describe)}
methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
print(json.dumps(describe([service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR], methods)))
import shared.rpc.open_inference_pb2  # both live in one process
"""

# Left out of tritonclient's messages: parts of the configuration and statistics that no caller of ours can use.
LEFT_OUT = {"ModelConfig", "ModelInput", "ModelOutput", "InferStatistics", "ModelStatistics"}


@pytest.fixture(scope="module")
def theirs():
    run = subprocess.run([sys.executable, "-c", TRITON], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", sorted(OURS["messages"]))
def test_message_has_the_names_numbers_and_types_of_tritonclient(name, theirs):
    mine, other = OURS["messages"][name], theirs["messages"][name]
    if name in LEFT_OUT:
        other = {"fields": {n: f for n, f in other["fields"].items() if n in mine["fields"]}, "nested": {}}
    assert mine == other


def test_the_enum_has_the_values_and_the_service_the_methods_of_tritonclient_but_those_into_the_machine(theirs):
    assert OURS["enums"]["DataType"] == theirs["enums"]["DataType"]
    mine = OURS["methods"]
    assert mine.items() <= theirs["methods"].items()
    refused = theirs["methods"].keys() - mine.keys()
    assert all("SharedMemory" in name or name in {"TraceSetting", "LogSettings"} for name in refused)


def test_tritonclient_is_loaded_after_our_stubs_too():
    code = "import shared.rpc.open_inference_pb2, tritonclient.grpc, shared.rpc.oip_proto"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stubs_are_those_of_their_protos_and_a_broken_proto_is_said_so(tmp_path, monkeypatch):
    for path, text in generate_stubs():
        assert path.read_text("utf8") == text, f"{path.name}: run `python -m shared.rpc.generate`"
    assert {p.stem for p in PROTOS.glob("*.proto")} == {p.name.removesuffix("_pb2.py") for p in STUBS.glob("*_pb2.py")}
    (tmp_path / "broken.proto").write_text('syntax = "proto3"; message {')
    monkeypatch.setattr("shared.rpc.generate.PROTOS", tmp_path)
    with pytest.raises(RuntimeError, match=r"broken\.proto"):
        list(generate_stubs())


def test_proto_passes_buf_lint():
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed (dev extra)")
    run = subprocess.run([buf, "lint", PROTOS], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


class _Wire(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.packets.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


async def test_writes_of_one_turn_are_one_packet_and_close_sends_what_was_written():
    wire = _Wire()
    joined = JoinedTransport(wire, asyncio.get_running_loop())
    joined.write(b"head ")
    joined.write(b"body")
    assert wire.packets == []
    await asyncio.sleep(0)
    joined.write(b"next")
    await asyncio.sleep(0)
    joined.write(b"last words")
    joined.close()
    assert wire.packets == [b"head body", b"next", b"last words"]
    assert joined.is_closing()
    joined.write(b"too late")
    await asyncio.sleep(0)
    assert wire.packets[-1] == b"last words"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_small_answers_come_whole_and_the_first_part_of_a_stream_before_the_second_is_made(loop):
    seen = threading.Event()

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        is_stream = scope["path"] == "/stream"
        size = [] if is_stream else [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": size})
        if is_stream:
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await asyncio.to_thread(seen.wait, 30)
        await send({"type": "http.response.body", "body": b"two" if is_stream else b"whole"})

    with serve_in_thread(app, http=JoinedWritesProtocol, lifespan="off", loop=loop) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 30) as link, link.makefile("rb") as answers:
            for _ in range(3):
                link.sendall(b"GET /whole HTTP/1.1\r\nhost: a\r\n\r\n")
                assert answers.read1().endswith(b"\r\n\r\nwhole")
            link.sendall(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
            for part in (b"one", b"two"):
                while part not in (came := answers.read1()):
                    assert b"two" not in came
                seen.set()
