"""Bodies of several parts."""

import asyncio
import io
import zipfile
from types import SimpleNamespace
from typing import Any

from starlette.requests import Request

from fovea.api.mask import SegmentIn
from services.gateway.routes.files import parse_upload
from services.gateway.routing.model_routing import _read_model
from shared.serving.http.request_parsing import build_requests, parse_request
from tests.fuzz.harness import Harness, ask

_FORM = (
    b"multipart/form-data; boundary=x\n"
    b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\ncontent-type: image/png\r\n\r\nabc\r\n'
    b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\npranet\r\n'
    b'--x\r\ncontent-disposition: form-data; name="threshold"\r\n\r\n0.5\r\n--x--\r\n'
)
_UPLOAD = (
    b"multipart/form-data; boundary=x\n"
    b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\n\r\n--x--\r\n'
)


def _request(data: bytes) -> tuple[Request, bytes]:
    media, _, body = data.partition(b"\n")
    sent = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, object]:
        return sent.pop() if sent else {"type": "http.disconnect"}

    scope = {"type": "http", "app": None, "method": "POST", "path": "/", "query_string": b"", "client": ("c", 1)}
    return Request({**scope, "headers": [(b"content-type", media)]}, receive), body


async def _read_form(data: bytes) -> object:
    request, _ = _request(data)
    return build_requests(await parse_request(request), SegmentIn, 3)


async def _read_file(data: bytes) -> object:
    request, body = _request(data)
    return await parse_upload(request.headers, body)


def _multipart(data: bytes) -> object:
    request, body = _request(data)
    headers = {b"content-type": request.headers["content-type"].encode("latin-1")}
    context: Any = SimpleNamespace(scope=request.scope, headers=headers)
    calls = (lambda: asyncio.run(_read_form(data)), lambda: asyncio.run(_read_file(data)))
    return [*map(ask, calls), ask(_read_model, context, body)]


def make_zip(kind: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        archive.writestr("a/b.dcm", b"abc" * 9)
        archive.writestr("ö.txt", b"")
    return out.getvalue()


HARNESSES: dict[str, Harness] = {
    "multipart": Harness(
        _multipart,
        (_FORM, _UPLOAD, b"application/x-www-form-urlencoded\nmodel=a&threshold=%zz&images=b"),
        words=(
            b"--x\r\n", b"\r\n\r\n", b"--x--", b'; filename=""', b"; filename*=utf-8''%ff", b'; name="images"',
            b"; charset=utf-7", b"; charset=none", b"; charset=undefined", b"; charset=idna",
            b"content-transfer-encoding: base64\r\n", b"boundary=", b'"', b";",
        ),
    ),
}  # fmt: skip
