"""Reference page at `/docs`: rendered from the OpenAPI document, without scripts and without other hosts.

Knows nothing about where the document comes from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.responses import FileResponse, Response

from services.gateway.http.static_document import StaticDocument

_FOLDER = Path(__file__).parent / "reference"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as the page shows it."""

    method: str
    path: str
    summary: str
    text: str
    parameters: list[dict[str, Any]]
    bodies: list[tuple[str, str]]
    responses: list[tuple[str, str, str]]

    @property
    def anchor(self) -> str:
        """Its fragment identifier on the page."""
        return f"{self.method}{self.path}".translate(str.maketrans("/{}:", "----"))


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI document of the gateway and all services."""
    return await _serve(request, "json", _write_json)


@router.get("/docs")
async def page(request: Request) -> Response:
    """The reference page."""
    return await _serve(request, "page", _render_page)


@router.get("/docs/style.css")
async def style() -> FileResponse:
    """The page's style sheet."""
    return FileResponse(_FOLDER / "style.css", media_type="text/css")


async def _serve(request: Request, name: str, build: Callable[[dict[str, Any]], StaticDocument]) -> Response:
    """Answer with something made of the document: anybody may ask, so it is made once."""
    made: StaticDocument = await request.app.state.gateway.document.derive(request.app.openapi(), name, build)
    return made.respond(request.headers)


def _write_json(document: dict[str, Any]) -> StaticDocument:
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return StaticDocument.build(content, "application/json")


def _render_page(document: dict[str, Any]) -> StaticDocument:
    template = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")
    text = template.render(info=document["info"], groups=group_operations(document), keys="security" in document)
    return StaticDocument.build(text.encode(), "text/html; charset=utf-8")


def group_operations(document: Mapping[str, Any]) -> dict[str, list[Operation]]:
    """Group operations by tag, in the document's order."""
    found: dict[str, list[Operation]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if isinstance(operation, dict) and "responses" in operation:
                tag = next(iter(operation.get("tags", [])), "gateway")
                found.setdefault(tag, []).append(_build_operation(document, method, path, operation))
    return found


def _build_operation(document: Mapping[str, Any], method: str, path: str, raw: Mapping[str, Any]) -> Operation:
    body = raw.get("requestBody", {}).get("content", {})
    return Operation(
        method=method.upper(),
        path=path,
        summary=raw.get("summary", ""),
        text=raw.get("description", ""),
        parameters=[p for p in raw.get("parameters", []) if "name" in p],
        bodies=[(kind, _describe_schema(document, media)) for kind, media in body.items()],
        responses=[
            (status, a.get("description", ""), _describe_response(document, a))
            for status, a in raw["responses"].items()
        ],
    )


def _describe_response(document: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    return "\n".join(filter(None, (_describe_schema(document, media) for media in answer.get("content", {}).values())))


def _describe_schema(document: Mapping[str, Any], media: Mapping[str, Any]) -> str:
    schema = media.get("schema", {})
    return "\n".join(_iterate_fields(document, schema, depth=0)) if schema else ""


def _iterate_fields(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Describe a schema as an indented list of fields; what nests deeper than three levels is only named."""
    schema = _resolve(document, schema)
    required = schema.get("required", [])
    for name, raw in schema.get("properties", {}).items():
        field = _resolve(document, raw)
        facts = ", ".join([_describe_type(document, raw), *(["required"] if name in required else [])])
        about = field.get("description", raw.get("description", ""))
        yield f"{'  ' * depth}{name}: {facts}{'  – ' + about if about else ''}"
        inner = _resolve(document, field.get("items", field))
        if depth < 2 and inner.get("properties"):
            yield from _iterate_fields(document, inner, depth + 1)
    if depth == 0 and not schema.get("properties"):
        yield _describe_type(document, schema)


def _describe_type(document: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    schema = _resolve(document, raw)
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(v) for v in schema.get("enum", [schema.get("const")]))
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " | ".join(dict.fromkeys(_describe_type(document, choice) for choice in choices))
    if schema.get("type") == "array":
        return f"[{_describe_type(document, schema.get('items', {}))}]"
    kind = schema.get("title", "object") if schema.get("type") == "object" else schema.get("type", "any")
    limits = [f"{word} {schema[key]}" for key, word in _LIMITS.items() if key in schema]
    return " ".join([str(kind), *limits])


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "default": "="}


def _resolve(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    found: Any = document.get("components", {}).get("schemas", {}).get(reference.rpartition("/")[2], {})
    return found if isinstance(found, dict) else {}
