"""Servable schema: the JSON schema of a model's In, its fields of bytes, and what text values mean for a field."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

from fovea.errors import InvalidOption

Schema = Mapping[str, Any]


@cache
def inline_refs(model: type[BaseModel], mode: JsonSchemaMode = "validation") -> dict[str, Any]:
    """The JSON schema of a model with its `$defs` put where they are used (a recursive one becomes `{}`)."""
    schema = model.model_json_schema(mode=mode)
    inlined: dict[str, Any] = _inline(schema, schema.pop("$defs", {}), ())
    return inlined


def _inline(node: Any, defs: Schema, inside: tuple[str, ...]) -> Any:
    if isinstance(node, list):
        return [_inline(part, defs, inside) for part in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if isinstance(reference, str):
        name = reference.rpartition("/")[2]
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return {} if name in inside else {**_inline(defs[name], defs, (*inside, name)), **rest}
    return {key: _inline(value, defs, inside) for key, value in node.items() if key != "discriminator"}


def properties(model: type[BaseModel]) -> dict[str, Schema]:
    """Field name (as callers write it) → its schema."""
    found: dict[str, Schema] = inline_refs(model).get("properties", {})
    return found


def blob_fields(model: type[BaseModel]) -> dict[str, str]:
    """Fields that hold bytes (base64 in JSON) → their media type; the first is the one a bare body or file fills."""
    return {name: media for name, prop in properties(model).items() if (media := media_of(prop))}


def count_pictures(request: BaseModel) -> int:
    """Pictures in a request."""
    values = (getattr(request, name, None) for name, media in blob_fields(type(request)).items() if "image" in media)
    return sum(len(value) if isinstance(value, list | tuple) else value is not None for value in values)


def media_of(prop: Schema) -> str | None:
    """Media type of a field of bytes, or of a list of them; None for any other field."""
    if prop.get("contentEncoding") == "base64" or prop.get("format") in {"binary", "base64"}:
        return str(prop.get("contentMediaType", "application/octet-stream"))
    inner = (*prop.get("anyOf", ()), *([prop["items"]] if "items" in prop else []))
    return next((media for part in inner if (media := media_of(part))), None)


def is_list(prop: Schema) -> bool:
    """Whether a field holds a list."""
    return "array" in _types(prop)


def _types(prop: Schema) -> set[str]:
    found = {kind for part in (*prop.get("anyOf", ()), *prop.get("oneOf", ())) for kind in _types(part)}
    kind = prop.get("type")
    found |= {kind} if isinstance(kind, str) else set(kind or ())
    return found


def decode_text(field: str, prop: Schema, values: Sequence[str]) -> Any:
    """Meaning of text values (of a form or a query) for a field: JSON where its type asks for it, text otherwise.

    Raises InvalidOption: it should be JSON and is not.
    """
    kinds, value = _types(prop), values[-1]
    if "array" in kinds and not value.lstrip().startswith("["):
        return list(values)
    if "string" in kinds:
        return value
    if value == "null" and "null" in kinds:
        return None
    if not kinds & {"array", "object"}:
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise InvalidOption(f"{field} must be JSON: {error}.", field=field) from error
