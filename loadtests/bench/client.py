"""A closed-loop HTTP load that costs next to nothing: prepared bytes over keep-alive sockets, answers counted."""

import asyncio
import json
import time

import numpy as np


def request_bytes(port: int, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """One HTTP/1.1 POST, ready to be written again and again."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def infer_request(name: str, tensor: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an Open Inference v2 request with one float32 tensor as bytes, answered in bytes."""
    told = {"name": name, "shape": tensor.shape, "datatype": "FP32"}
    inputs = [{**told, "parameters": {"binary_data_size": tensor.nbytes}}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return head + tensor.tobytes(), headers


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read one answer whole; its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, length, chunked = int(head[9:12]), 0, False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
        chunked = chunked or line.startswith(b"transfer-encoding: chunked")
    if not chunked:
        await reader.readexactly(length)
        return status
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
    await reader.readline()
    return status


async def drive(port: int, request: bytes, count: int, concurrency: int = 4) -> float:
    """Send `count` requests, `concurrency` at a time; return the seconds it took.

    Raises:
        RuntimeError: An answer was not 200.
    """
    left = iter(range(count))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(request)
            if (status := await read_answer(reader)) != 200:
                raise RuntimeError(f"port {port} answered {status}")
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(concurrency)))
    return time.perf_counter() - begun
