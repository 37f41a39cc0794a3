"""Fuzz harnesses: each decoder of bytes from outside, its seeds, and the call that ends well or with our error."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from services.gateway.grpc.protobuf_peek import read_text_field
from services.gateway.routing.json_peek import read_json_field
from shared.api.usage import UsageScanner
from shared.errors import FoveaError, Malformed
from shared.lm.gguf_file import unpack
from shared.rpc import oip_json, oip_proto
from shared.rpc import open_inference_pb2 as pb
from shared.rpc.oip import InferCall
from shared.rpc.protobuf_fields import iterate_fields
from shared.training.safe_unpickler import read_unpickled
from shared.vision.decode import DecodeBounds, decode
from shared.vision.mask_regions import decode_run_lengths

__all__ = ["HARNESSES", "Harness"]


@dataclass(frozen=True)
class Harness:
    """One decoder: what it is fed, and files to begin with."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]

    def check(self, data: bytes) -> None:
        """Decode; an error that callers may see, and is theirs, is a good end."""
        try:
            self.run(data)
        except FoveaError as error:
            if error.status >= 500:
                raise


_CALL = InferCall("m", {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "t": np.array([b"a", b"bc"], object)})
_MESSAGE = oip_proto.encode_request(_CALL)


def _oip(binary: bool) -> tuple[bytes, int | None]:
    encoded = oip_json.encode_request(InferCall("m", _CALL.feeds, binary=binary))
    return encoded.join(), encoded.header_length


def _decode_oip(data: bytes) -> object:
    head = data.find(b"]}") + 2
    for length in (None, head if 2 <= head <= len(data) else None):
        body = oip_json.align([data], length)
        try:
            oip_json.decode_request("m", "", body, length)
        except FoveaError:
            continue
    return None


def _decode_protobuf(data: bytes) -> object:
    from google.protobuf.message import DecodeError

    read_text_field(data, 1)
    list(iterate_fields(data))
    try:
        message = pb.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise Malformed("no message") from error
    return oip_proto.decode_request(message)


def _pictures() -> tuple[bytes, ...]:
    page, found = Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)), []
    for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        out = io.BytesIO()
        page.save(out, form)
        found.append(out.getvalue())
    return tuple(found)


def _with_file(read: Callable[[Path], object], suffix: str) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"x{suffix}"
            file.write_bytes(data)
            return read(file)

    return run


def _gguf() -> bytes:
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.gguf"
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_context_length(16)
        writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def _checkpoint() -> bytes:
    import torch

    out = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3)}, out)
    return out.getvalue()


def _scan_usage(data: bytes) -> object:
    scanner = UsageScanner(is_stream=True)
    for start in range(0, len(data), 7):
        scanner.feed(data[start : start + 7])
    return scanner.sum_up(1.0)


def _run_lengths(data: bytes) -> object:
    try:
        return decode_run_lengths(data.decode("latin-1"), 3, 5)
    except ValueError as error:
        raise Malformed("no run lengths") from error


HARNESSES: dict[str, Harness] = {
    "oip-json": Harness(_decode_oip, (_oip(False)[0], _oip(True)[0])),
    "oip-protobuf": Harness(_decode_protobuf, (_MESSAGE.SerializeToString(), b"\0" * 20)),
    "json-field": Harness(
        lambda data: read_json_field(data, "model"), (b'{"a": {"model": 1}, "model": "x"}', b'["\\"", {}]')
    ),
    "usage": Harness(_scan_usage, (b'data: {"model":"m","choices":[{}],"usage":{"prompt_tokens":1}}\n\n',)),
    "picture": Harness(lambda data: decode(data, DecodeBounds(pixels=10_000, max_side=500)), _pictures()),
    "run-lengths": Harness(_run_lengths, (b"632NO010O0124", b"?")),
    "gguf": Harness(_with_file(lambda file: unpack(file, file.parent / "cache"), ".gguf"), (_gguf(),)),
    "checkpoint": Harness(_with_file(read_unpickled, ".pth"), (_checkpoint(), pickle.dumps({"a": [1, "b"]}))),
    "json": Harness(lambda data: json.dumps(UsageScanner(is_stream=False).feed(data)), (b'{"usage": {}}',)),
}
"""Name → harness; a new decoder of bytes from outside gets a line here."""
