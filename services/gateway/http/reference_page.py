"""API reference at `/docs`: a page rendered from the OpenAPI document, with search and without other hosts.

Knows nothing about where the document comes from.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup, escape
from starlette.responses import FileResponse, Response

from fovea.api.problem import problem
from fovea.errors import FoveaError, NotFound
from services.gateway.http.reference_operations import group_operations
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class StaticDocument:
    """A document as it goes over the wire."""

    content: bytes
    compressed: bytes
    etag: str
    media_type: str

    @classmethod
    def build(cls, content: bytes, media_type: str) -> Self:
        """Compress a document and name it by its hash."""
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, gzip.compress(content, 6, mtime=0), etag, media_type)

    def respond(self, headers: Mapping[str, str]) -> Response:
        """Answer a request with these headers: 304 where the caller has it, compressed where it takes that."""
        shared = {"etag": self.etag, "vary": "accept-encoding", "cache-control": "no-cache"}
        if self.etag in {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}:
            return Response(status_code=304, headers=shared)
        if _takes_gzip(headers.get("accept-encoding", "")):
            return Response(self.compressed, headers={**shared, "content-encoding": "gzip"}, media_type=self.media_type)
        return Response(self.content, headers=shared, media_type=self.media_type)


def _takes_gzip(accepted: str) -> bool:
    for each in accepted.split(","):
        name, _, weight = each.replace(" ", "").lower().partition(";q=")
        if name == "gzip":
            return weight not in {"0", "0.0", "0.00", "0.000"}
    return False


_FOLDER = Path(__file__).parent / "reference"
_GUIDE = {"authentication": "Authentication", "errors": "Errors", "limits": "Limits", "jobs": "Background jobs"}
_PROBLEM = NotFound("There is no model 'pranett'.", hint="Did you mean 'pranet'?", field="model")

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI document of the gateway and all services."""
    return await _serve(request, "json", _write_json)


@router.get("/docs")
async def page(request: Request) -> Response:
    """The reference page."""
    return await _serve(request, "page", partial(_render_page, settings=request.app.state.gateway.settings))


@router.get("/docs/style.css")
async def style() -> FileResponse:
    """The page's style sheet."""
    return FileResponse(_FOLDER / "style.css", media_type="text/css")


@router.get("/docs/search.js")
async def search() -> FileResponse:
    """The page's search."""
    return FileResponse(_FOLDER / "search.js", media_type="text/javascript")


async def _serve(request: Request, name: str, build: Callable[[dict[str, Any]], StaticDocument]) -> Response:
    """Answer with something made of the document: anybody may ask, so it is made once."""
    made: StaticDocument = await request.app.state.gateway.document.derive(request.app.openapi(), name, build)
    return made.respond(request.headers)


def _write_json(document: dict[str, Any]) -> StaticDocument:
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return StaticDocument.build(content, "application/json")


def _render_page(document: dict[str, Any], settings: Settings) -> StaticDocument:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["prose"] = render_prose
    text = environment.get_template("page.html").render(
        info=document["info"], guide=_GUIDE, groups=group_operations(document), keys="security" in document,
        errors=sorted(_list_errors(FoveaError)), limits=_list_limits(settings),
        problem=json.dumps(problem(_PROBLEM, "18aa831b4895662d").model_dump(exclude_none=True), indent=2),
    )  # fmt: skip
    return StaticDocument.build(text.encode(), "text/html; charset=utf-8")


def render_prose(text: str) -> Markup:
    """Render a description: backticks as code, lines that begin with `*` as a list, the rest as it is."""
    code = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    items = "".join(f"<li>{line[2:]}</li>" for line in lines if line.startswith("* "))
    words = " ".join(line for line in lines if not line.startswith("* "))
    return Markup(f"{words}<ul>{items}</ul>" if items else words)  # noqa: S704  # it was escaped


def _list_errors(kind: type[FoveaError]) -> Iterator[tuple[int, str, str]]:
    for one in kind.__subclasses__():
        if one.__module__ == FoveaError.__module__:
            yield one.status, one("").code, (one.__doc__ or "").partition("\n\n")[0]
            yield from _list_errors(one)


def _list_limits(settings: Settings) -> list[tuple[str, str, str]]:
    """List the limits of a request with their values here, and the settings that change them."""
    return [
        ("Body of a request", f"{settings.max_body_bytes:,} bytes", "FOVEA_MAX_BODY_BYTES"),
        ("Pixels of a picture", f"{settings.max_pixels:,}", "FOVEA_MAX_PIXELS"),
        ("Longest side of a picture", f"{settings.max_side:,} pixels", "FOVEA_MAX_SIDE"),
        ("Pictures in one request", f"{settings.max_images:,}", "FOVEA_MAX_IMAGES"),
        ("Time until an answer", f"{settings.request_timeout_s:g} s", "FOVEA_REQUEST_TIMEOUT_S"),
        ("Requests that wait for one model", f"{settings.max_queue_size:,}", "FOVEA_MAX_QUEUE_SIZE"),
    ]
