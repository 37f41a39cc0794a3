"""OpenAPI of the task routes, from the schemas of the Servables behind them."""

from collections.abc import Mapping
from typing import Any

from fovea.api.problem import Problem
from shared.registry import Servable
from shared.serving import servable_schema
from shared.serving.host import Host

_SCALARS = {"string", "number", "integer", "boolean"}

Kind = type[Servable[Any, Any]]


def describe_task(host: Host, task: str) -> str:
    """Describe the route: its models, the default first."""
    kinds = _kinds(host, task)
    lines = [f"* `{name}`: {kind.card.summary}" for name, kind in kinds.items()]
    return "\n".join([f"Run a model of the task `{task}`.", "", "Models, the default first:", "", *lines])


def describe_operation(host: Host, task: str) -> dict[str, Any]:
    """Request body in all its forms, and the options that may go into the query."""
    kinds = _kinds(host, task)
    bodies = [_body(name, kind, host.settings.max_images) for name, kind in kinds.items()]
    content: dict[str, Any] = {"application/json": {"schema": _any_of(bodies)}}
    blobs = [media for kind in kinds.values() for media in list(servable_schema.blob_fields(kind.In).values())[:1]]
    if blobs:
        content["multipart/form-data"] = {"schema": _any_of([_form(name, kind) for name, kind in kinds.items()])}
        content |= {media: {"schema": {"type": "string", "format": "binary"}} for media in blobs}
    return {"parameters": _parameters(kinds), "requestBody": {"required": True, "content": content}}


def describe_responses(host: Host, task: str) -> dict[int | str, dict[str, Any]]:
    """The answer in all its forms, and the problems."""
    kinds = _kinds(host, task).values()
    outs = [servable_schema.inline_refs(kind.Out, "serialization") for kind in kinds]
    several = {"type": "object", "properties": {"results": {"type": "array", "items": {}}}, "required": ["results"]}
    content: dict[str, Any] = {"application/json": {"schema": _any_of([*outs, several])}}
    content |= {media: {"schema": {"format": "binary"}} for kind in kinds for media in kind.media_types()}
    return {200: {"description": "The answer.", "content": content}, **problems(*_PROBLEMS)}


def problems(*codes: int, is_openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """The problems that a route answers with, by status; on OpenAI's paths also in its form."""
    content: dict[str, Any] = {"application/problem+json": {"schema": servable_schema.inline_refs(Problem)}}
    content |= {"application/json": {"schema": {"type": "object", "required": ["error"]}}} if is_openai else {}
    return {code: {"description": _PROBLEMS[code], "content": content} for code in codes}


_PROBLEMS: Mapping[int, str] = {
    400: "Malformed body or picture.",
    404: "Unknown model.",
    406: "Nothing fits the Accept header.",
    408: "The body stopped arriving.",
    409: "The state forbids it; the detail says what is missing.",
    413: "Too large; the detail names the limit.",
    415: "Not a picture, or an unknown content type.",
    422: "An option is out of range; `field` names it.",
    429: "The queue is full; Retry-After says when to come back.",
    503: "The model is not ready.",
    504: "The deadline passed.",
}


def _kinds(host: Host, task: str) -> dict[str, Kind]:
    return {name: host.servable_type(name) for name in host.tasks()[task]}


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    distinct = [schema for place, schema in enumerate(schemas) if schema not in schemas[:place]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _model(name: str) -> dict[str, Any]:
    return {"type": "string", "enum": [name], "description": "Name of the model; left out, the default one."}


def _body(name: str, kind: Kind, max_images: int) -> dict[str, Any]:
    """JSON schema of one model's requests, with one picture or a list of them."""
    schema = dict(servable_schema.inline_refs(kind.In))
    fields = {"model": _model(name), **schema.get("properties", {})}
    one = {**schema, "properties": fields, "additionalProperties": False}
    main = next(iter(servable_schema.blob_fields(kind.In)), None)
    if main is None or "images" in fields:
        return one
    many = dict(fields)
    picture = many.pop(main)
    many["images"] = {"type": "array", "items": picture, "minItems": 1, "maxItems": max_images}
    required = [field if field != main else "images" for field in (*schema.get("required", ()),)]
    return {"anyOf": [one, {**one, "properties": many, "required": sorted({*required, "images"})}]}


def _form(name: str, kind: Kind) -> dict[str, Any]:
    schema = dict(servable_schema.inline_refs(kind.In))
    binary = {"type": "string", "format": "binary"}
    fields = {
        key: binary if servable_schema.media_of(prop) else prop for key, prop in schema.get("properties", {}).items()
    }
    return {**schema, "properties": {"model": _model(name), **fields}, "additionalProperties": False}


def _parameters(kinds: dict[str, Kind]) -> list[dict[str, Any]]:
    """Scalar options: with a raw body, they go into the query."""
    about = "Name of the model; left out, the first."
    found: dict[str, dict[str, Any]] = {"model": {"type": "string", "enum": list(kinds), "description": about}}
    for kind in kinds.values():
        for name, prop in servable_schema.properties(kind.In).items():
            if prop.get("type") in _SCALARS and not servable_schema.media_of(prop) and name not in found:
                found[name] = dict(prop)
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in found.items()]
