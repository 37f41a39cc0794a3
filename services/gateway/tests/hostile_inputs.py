"""Hostile inputs, by name: what a caller with a good key may send to hold up the gateway.

A name leads to a method and its messages, or to a path, headers and a body. A found attack is added here. They are made
when they are asked for: together they have half a gigabyte.
"""

import gzip
import json

from shared.rpc import open_inference_pb2 as pb

MANY = 20_000_000
"""Bytes of a large input."""

JSON, FORM = {"content-type": "application/json"}, {"content-type": "multipart/form-data; boundary=x"}
BY_NAME = "/v1/models-by-name"
_BOUNDARY = b"--x\r\n"


def make_grpc_inputs() -> dict[str, tuple[str, list[bytes]]]:
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


def make_http_inputs() -> dict[str, tuple[str, dict[str, str], bytes]]:
    return {
        "deep brackets": (BY_NAME, JSON, b"[" * MANY),
        "many brackets": (BY_NAME, JSON, b'{"a":' + b"[]," * (MANY // 3)),
        "many small fields": (BY_NAME, JSON, b"{" + b'"a":1,' * (MANY // 6) + b'"b":1}'),
        "name at the end": (BY_NAME, JSON, b'{"image":"' + b"A" * MANY + b'","model":"nobody"}'),
        "a name of megabytes": (BY_NAME, JSON, b'{"model":"' + b"x" * MANY + b'"}'),
        "form of beginnings": (BY_NAME, FORM, _BOUNDARY + b'name="model"\r\n' * (MANY // 14)),
        "deep jobs": ("/v1/jobs", JSON, json.dumps({"a": "b" * MANY}).encode()),
        "brackets for a tool": ("/v1/mcp", JSON, b"[" + b"[]," * (MANY // 3) + b"[]]"),
        "numbers for a tool": ("/v1/mcp", JSON, b"[" + b"1," * (MANY // 2) + b"1]"),
        "objects for the index": ("/v2/repository/index", JSON, b"[" + b"{}," * (MANY // 3) + b"{}]"),
        "escapes for a tool": ("/v1/mcp", JSON, b'"' + b"\\u00e9" * (MANY // 6) + b'"'),
        "a form of line ends": (
            "/v1/files",
            FORM,
            _BOUNDARY + b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"\r\n-" * (MANY // 3),
        ),
        "a form of headers": ("/v1/files", FORM, _BOUNDARY + b"a: b\r\n" * (MANY // 6)),
        "zeros that were inflated": (
            "/v1/mcp", {**JSON, "content-encoding": "gzip"}, gzip.compress(b" " * (3 * MANY), 1),
        ),
        "bad utf-8": (BY_NAME, JSON, b'{"\xff":"' + b"\xfe" * MANY),
    }  # fmt: skip
