"""A request's JSON Schema on the command line: which options there are, and what a text means for each of them.

Knows no model: `segment` and `run` take whatever options the served model declares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from shared.errors import InvalidOption

__all__ = ["describe_options", "is_picture", "list_picture_fields", "parse_options", "split_arguments"]

Schema = Mapping[str, Any]

_OWN = frozenset({"model", "stream", "stream_options"})


def describe_options(schema: Schema) -> Iterator[tuple[str, str]]:
    """Options of a request with what they mean, pictures left out."""
    for name, part in _properties(schema).items():
        if name in _OWN or is_picture(part, schema):
            continue
        default = part.get("default")
        about = [str(part.get("description", "")), _choices(part, schema)]
        if default is not None:
            about.append(f"[{json.dumps(default)}]")
        yield name, " ".join(filter(None, about))


def list_picture_fields(schema: Schema) -> list[str]:
    """Fields that hold files, mostly pictures, in the schema's order."""
    return [name for name, part in _properties(schema).items() if is_picture(part, schema)]


def is_picture(part: Schema, root: Schema) -> bool:
    """Whether a part of a schema is a file: a picture, an array, or a list of them."""
    kinds = _kinds(part, root)
    inner = [kind for entry in kinds if "items" in entry for kind in _kinds(entry["items"], root)]
    media = (str(kind.get("contentMediaType", "")) for kind in (*kinds, *inner))
    return any(named.startswith("image/") or named == "application/octet-stream" for named in media)


def split_arguments(words: Sequence[str], schema: Schema) -> tuple[list[str], dict[str, str]]:
    """Take a command line apart into plain words and options with their texts.

    `--name value`, `--name=value`, and for yes-or-no options `--name` and `--no-name`.
    """
    plain: list[str] = []
    texts: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            plain.append(word)
            continue
        flag, equals, text = word.removeprefix("--").partition("=")
        name = flag.replace("-", "_")
        if equals:
            texts[name] = text
        elif name.startswith("no_") and _is_switch(name.removeprefix("no_"), schema):
            texts[name.removeprefix("no_")] = "false"
        else:
            takes = not _is_switch(name, schema) and rest
            texts[name] = rest.pop(0) if takes else "true"
    return plain, texts


def parse_options(texts: Mapping[str, str], schema: Schema) -> dict[str, Any]:
    """Texts as the values that the schema asks for.

    Raises:
        InvalidOption: There is no such option; the hint names those there are.
    """
    known = _properties(schema)
    found = {}
    for name, text in texts.items():
        if known and name not in known:
            near = get_close_matches(name, known, 1)
            options = ", ".join(f"--{option.replace('_', '-')}" for option, _ in describe_options(schema))
            hint = f"Did you mean --{near[0].replace('_', '-')}?" if near else f"There are {options or 'none'}."
            raise InvalidOption(f"The model has no option --{name.replace('_', '-')}.", hint=hint, field=name)
        found[name] = _value(text, _kinds(known.get(name, {}), schema))
    return found


def _value(text: str, kinds: Sequence[Schema]) -> Any:
    """A text stays text where text is wanted, and is read as JSON where it can be; the gateway checks the rest."""
    types = {kind.get("type") for kind in kinds}
    if "string" in types and not types & {"array", "object"}:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return [part.strip() for part in text.split(",")] if "array" in types else text
    # One entry of a list needs no brackets.
    alone = value is not None and not isinstance(value, list | dict)
    return [value] if alone and types <= {"array", "null", None} and "array" in types else value


def _is_switch(name: str, schema: Schema) -> bool:
    return any(kind.get("type") == "boolean" for kind in _kinds(_properties(schema).get(name, {}), schema))


def _properties(schema: Schema) -> dict[str, Schema]:
    found: dict[str, Schema] = schema.get("properties", {})
    return found


def _kinds(part: Schema, root: Schema) -> list[Schema]:
    """The part and its alternatives, references followed."""
    name = str(part.get("$ref", ""))
    if name.startswith("#/$defs/"):
        part = {**root.get("$defs", {}).get(name.removeprefix("#/$defs/"), {}), **part}
    inner = [kind for key in ("anyOf", "oneOf", "allOf") for entry in part.get(key, ()) for kind in _kinds(entry, root)]
    return [part, *inner]


def _choices(part: Schema, root: Schema) -> str:
    values = [value for kind in _kinds(part, root) for value in kind.get("enum", ())]
    return f"({' | '.join(map(str, values))})" if values else ""
