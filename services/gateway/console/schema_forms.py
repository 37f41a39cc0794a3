"""A request's JSON Schema as form fields. Pure data in, pure data out: knows no HTML and no model.

Every served model describes its request; the console draws that description, so a new model needs no new page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Field", "Kind", "build_fields"]

Kind = Literal[
    "picture", "pictures", "file", "choice", "choices", "number", "integer", "switch", "text", "prose", "list", "json"
]
"""How a value is asked for: `choices` takes several, `list` holds scalars with commas between, `file` is a
file of another kind than a picture, `json` is the rest."""

Schema = Mapping[str, Any]

_PROSE = frozenset({"prompt", "text", "query", "passage", "document", "system", "input", "template"})
"""Names of text options that deserve more than one line."""


@dataclass(frozen=True, slots=True)
class Field:
    """One option of a request, ready to be drawn.

    Attributes:
        name: Key in the request.
        kind: How it is asked for.
        label: The name in words.
        help: What it means; empty when the schema does not say.
        default: The value used when the caller says nothing, or None.
        required: Whether the request is refused without it.
        choices: Allowed values of a `choice`, or entries of `choices`.
        low, high: Bounds of a number, inclusive, where there are some.
        step: Distance between two useful values of a number, or None for any.
        items: JSON type of the entries of a `list`.
    """

    name: str
    kind: Kind
    label: str
    help: str = ""
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    items: str = "string"

    @property
    def shown(self) -> str:
        """The default as the text of an input."""
        if self.default is None:
            return ""
        if self.kind in {"list", "choices"}:
            return ", ".join(str(entry) for entry in self.default)
        return self.default if isinstance(self.default, str) else json.dumps(self.default, indent=2)

    @property
    def slider(self) -> bool:
        """Whether a number is best chosen on a scale: both bounds known and close together."""
        return self.kind == "number" and self.low is not None and self.high is not None and self.high - self.low <= 10


def build_fields(schema: Schema, *, without: frozenset[str] = frozenset(), values: Schema | None = None) -> list[Field]:
    """The fields of an object schema, in its order; required ones first.

    Args:
        schema: JSON Schema of the request; `$ref` into its own `$defs` is followed.
        without: Names that the page asks for in a way of its own.
        values: Values that stand for the schema's defaults, for example a model's example.
    """
    needed = frozenset(schema.get("required", ()))
    found = [
        _field(name, part, schema, required=name in needed, value=(values or {}).get(name))
        for name, part in schema.get("properties", {}).items()
        if name not in without
    ]
    return sorted(found, key=lambda field: not field.required)


def _field(name: str, part: Schema, root: Schema, *, required: bool, value: Any) -> Field:
    outer, inner = _resolved(part, root), _essence(part, root)
    kind = _kind(name, inner, root)
    low, high = _bounds(inner)
    return Field(
        name=name,
        kind=kind,
        label=_label(name, str(part.get("title", ""))),
        help=str(outer.get("description") or inner.get("description") or ""),
        default=outer.get("default") if value is None else value,
        required=required,
        choices=_choices(inner) or _choices(_essence(inner.get("items", {}), root)),
        low=low,
        high=high,
        step=_step(kind, inner, low, high),
        items=str(_essence(inner.get("items", {}), root).get("type", "string")),
    )


def _label(name: str, title: str) -> str:
    """The title that was given to an option; pydantic makes one of every name, which says no more than the name."""
    words = name.replace("_", " ")
    return title if title not in {"", words.title()} else words.capitalize()


def _resolved(part: Schema, root: Schema) -> Schema:
    """The part itself, with a `$ref` replaced by what it names (siblings of the `$ref` win)."""
    name = part.get("$ref", "")
    if not name.startswith("#/$defs/"):
        return part
    target = root.get("$defs", {}).get(name.removeprefix("#/$defs/"), {})
    return {**target, **{key: value for key, value in part.items() if key != "$ref"}}


def _essence(part: Schema, root: Schema) -> Schema:
    """What is left of a part without its `null` branch; of several others a text, which can be typed, is taken."""
    part = _resolved(part, root)
    branches = [b for b in (_resolved(b, root) for b in _branches(part)) if b.get("type") != "null"]
    typed = branches if len(branches) == 1 else [b for b in branches if b.get("type") == "string"]
    return {**typed[0], **_without_branches(part)} if typed else part


def _branches(part: Schema) -> Iterator[Schema]:
    for key in ("anyOf", "oneOf", "allOf"):
        yield from part.get(key, ())


def _without_branches(part: Schema) -> Schema:
    return {key: value for key, value in part.items() if key in {"description", "default", "title"}}


def _kind(name: str, part: Schema, root: Schema) -> Kind:
    if _is_picture(part):
        return "picture"
    if part.get("contentEncoding") == "base64":
        return "file"
    if _choices(part):
        return "choice"
    simple: dict[Any, Kind] = {"number": "number", "integer": "integer", "boolean": "switch"}
    match part.get("type"):
        case "string":
            return "prose" if name in _PROSE or part.get("maxLength", 0) > 400 else "text"
        case "array":
            return _list_kind(_essence(part.get("items", {}), root))
        case kind:
            return simple.get(kind, "json")


def _list_kind(entry: Schema) -> Kind:
    if _is_picture(entry):
        return "pictures"
    if _choices(entry):
        return "choices"
    return "list" if entry.get("type") in {"string", "number", "integer"} else "json"


def _is_picture(part: Schema) -> bool:
    return str(part.get("contentMediaType", "")).startswith("image/")


def _choices(part: Schema) -> tuple[Any, ...]:
    return (part["const"],) if "const" in part else tuple(part.get("enum", ()))


def _bounds(part: Schema) -> tuple[float | None, float | None]:
    low = part.get("minimum", part.get("exclusiveMinimum"))
    high = part.get("maximum", part.get("exclusiveMaximum"))
    return low, high


def _step(kind: Kind, part: Schema, low: float | None, high: float | None) -> float | None:
    if "multipleOf" in part:
        return float(part["multipleOf"])
    if kind == "integer":
        return 1
    return 0.01 if kind == "number" and low is not None and high is not None else None
