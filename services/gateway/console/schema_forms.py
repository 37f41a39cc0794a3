"""Form fields from a request's JSON Schema, so that a new model needs no new page. Renders no HTML."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal[
    "picture", "pictures", "file", "choice", "choices", "number", "integer", "switch", "text", "prose", "list", "json"
]
"""Kind of a form control: `choices` takes several, `list` is scalars separated by commas, `file` is any file but a
picture, `json` is the rest."""

Schema = Mapping[str, Any]

_LONG_TEXTS = frozenset({"prompt", "text", "query", "passage", "document", "system", "input", "template"})
"""Names of text options that get several lines."""

_LONG_JSON = 2000
"""Characters of a JSON default from which it has a line for each value."""


@dataclass(frozen=True, slots=True)
class Field:
    """One option of a request, ready to be rendered.

    Attributes:
        name: Key in the request.
        kind: Kind of its form control.
        label: The name as text.
        help: Its meaning; empty when the schema has none.
        default: The value that is used when the caller gives none, or None.
        required: Whether the request is an error without it.
        choices: Allowed values of a `choice`, or entries of `choices`.
        low, high: Bounds of a number, inclusive, where there are some.
        step: Distance between two useful values of a number, or None for any.
        items: JSON type of the entries of a `list`.
        fallback: Value that a model uses where a request leaves the option out and the schema has no default; or None.
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
    fallback: Any = None

    @property
    def placeholder(self) -> str:
        """Value that an empty control stands for."""
        return "Not set" if self.fallback is None else f"Default: {self.fallback}"

    @property
    def default_text(self) -> str:
        """The default as the text of an input."""
        if self.default is None:
            return ""
        if self.kind in {"list", "choices"}:
            return ", ".join(str(entry) for entry in self.default)
        if isinstance(self.default, str):
            return self.default
        text = json.dumps(self.default)
        return text if len(text) <= _LONG_JSON else json.dumps(self.default, indent=2)

    @property
    def is_slider(self) -> bool:
        """Whether a number is shown as a slider: both bounds are known and close together."""
        return self.kind == "number" and self.low is not None and self.high is not None and self.high - self.low <= 10


def build_fields(
    schema: Schema,
    *,
    without: frozenset[str] = frozenset(),
    values: Schema | None = None,
    fallbacks: Schema | None = None,
) -> list[Field]:
    """Build the fields of an object schema, in its order; required ones first. `$ref` into its own `$defs` is followed.

    The page has its own control for the names in `without`. `values` replace the schema's defaults, for example those
    of a permalink; `fallbacks` are what a model uses where a request leaves an option out.
    """
    needed = frozenset(schema.get("required", ()))
    found = [
        replace(
            _build_field(name, part, schema, required=name in needed, value=(values or {}).get(name)),
            fallback=(fallbacks or {}).get(name),
        )
        for name, part in schema.get("properties", {}).items()
        if name not in without
    ]
    return sorted(found, key=lambda field: not field.required)


def _build_field(name: str, part: Schema, root: Schema, *, required: bool, value: Any) -> Field:
    outer, inner = _resolve(part, root), _strip_null(part, root)
    default = outer.get("default") if value is None else value
    if inner.get("type") == "boolean" and default is None and not required:
        inner = {**inner, "enum": [True, False]}  # a switch is on or off, and can't be left out
    kind = _choose_kind(name, inner, root)
    if kind in {"list", "choices"} and default is not None and not isinstance(default, list):
        default = [default]  # anybody can write a permalink
    low = inner.get("minimum", inner.get("exclusiveMinimum"))
    high = inner.get("maximum", inner.get("exclusiveMaximum"))
    items = _strip_null(inner.get("items", {}), root)
    return Field(
        name=name, kind=kind, label=_build_label(name, str(part.get("title", ""))),
        help=str(outer.get("description") or inner.get("description") or ""), default=default, required=required,
        choices=_choices(inner) or _choices(items), low=low, high=high, step=_choose_step(kind, inner, low, high),
        items=str(items.get("type", "string")),
    )  # fmt: skip


def _build_label(name: str, title: str) -> str:
    """Label of an option: its own title, or its name; pydantic's automatic title says no more than the name."""
    words = name.replace("_", " ")
    return title if title not in {"", words.title()} else words.capitalize()


def _resolve(part: Schema, root: Schema) -> Schema:
    """Replace a `$ref` by what it names (siblings of the `$ref` win)."""
    name = part.get("$ref", "")
    if not name.startswith("#/$defs/"):
        return part
    target = root.get("$defs", {}).get(name.removeprefix("#/$defs/"), {})
    return {**target, **{key: value for key, value in part.items() if key != "$ref"}}


def _strip_null(part: Schema, root: Schema) -> Schema:
    """Drop the `null` branch of a part; of several others take text, which can be typed."""
    part = _resolve(part, root)
    found = [_resolve(branch, root) for key in ("anyOf", "oneOf", "allOf") for branch in part.get(key, ())]
    branches = [branch for branch in found if branch.get("type") != "null"]
    typed = branches if len(branches) == 1 else [b for b in branches if b.get("type") == "string"]
    kept = {key: part[key] for key in ("description", "default", "title") if key in part}
    return {**typed[0], **kept} if typed else part


def _choose_kind(name: str, part: Schema, root: Schema) -> Kind:
    if _is_picture(part):
        return "picture"
    if part.get("contentEncoding") == "base64":
        return "file"
    if _choices(part):
        return "choice"
    simple: dict[Any, Kind] = {"number": "number", "integer": "integer", "boolean": "switch"}
    match part.get("type"):
        case "string":
            return "prose" if name in _LONG_TEXTS or part.get("maxLength", 0) > 400 else "text"
        case "array":
            return _choose_list_kind(_strip_null(part.get("items", {}), root))
        case kind:
            return simple.get(kind, "json")


def _choose_list_kind(entry: Schema) -> Kind:
    if _is_picture(entry) or _choices(entry):
        return "pictures" if _is_picture(entry) else "choices"
    return "list" if entry.get("type") in {"string", "number", "integer"} else "json"


def _is_picture(part: Schema) -> bool:
    return str(part.get("contentMediaType", "")).startswith("image/")


def _choices(part: Schema) -> tuple[Any, ...]:
    return (part["const"],) if "const" in part else tuple(part.get("enum", ()))


def _choose_step(kind: Kind, part: Schema, low: float | None, high: float | None) -> float | None:
    if "multipleOf" in part:
        return float(part["multipleOf"])
    if kind == "integer":
        return 1
    return 0.01 if kind == "number" and low is not None and high is not None else None
