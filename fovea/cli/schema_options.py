"""Command-line options from a request's JSON Schema: lists them, and parses their texts into values.

`segment`, `run` and others take whatever options the schema of the served model declares.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fovea.errors import InvalidOption

Schema = Mapping[str, Any]

_HIDDEN = frozenset({"model", "stream", "stream_options"})


def describe_options(schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield the options of a request with their meaning, without pictures."""
    for name, part in _properties(schema).items():
        if name in _HIDDEN or is_picture(part, schema):
            continue
        default = part.get("default")
        about = [str(part.get("description", "")), _choices(part, schema)]
        if default is not None:
            about.append(f"[{json.dumps(default)}]")
        yield name, " ".join(filter(None, about))


def list_picture_fields(schema: Schema) -> list[str]:
    """List the fields that hold files, mostly pictures, in the schema's order."""
    return [name for name, part in _properties(schema).items() if is_picture(part, schema)]


def is_picture(part: Schema, root: Schema) -> bool:
    """Whether a part of a schema is a file: a picture, an array, or a list of them."""
    kinds = _kinds(part, root)
    inner = [kind for entry in kinds if "items" in entry for kind in _kinds(entry["items"], root)]
    media = (str(kind.get("contentMediaType", "")) for kind in (*kinds, *inner))
    return any(named.startswith("image/") or named == "application/octet-stream" for named in media)


def split_arguments(arguments: Sequence[str], schema: Schema) -> tuple[list[str], list[tuple[str, str]]]:
    """Split a command line into plain arguments and options with their texts.

    `--name value`, `--name=value`, and for booleans `--name` and `--no-name`. Raises InvalidOption: a value is missing.
    """
    plain: list[str] = []
    texts: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            plain.append(argument)
            continue
        flag, equals, text = argument.removeprefix("--").partition("=")
        name = flag.replace("-", "_")
        if equals:
            texts.append((name, text))
        elif name.startswith("no_") and _is_switch(name.removeprefix("no_"), schema):
            texts.append((name.removeprefix("no_"), "false"))
        elif _is_switch(name, schema):
            texts.append((name, "true"))
        elif not rest and name in _properties(schema):
            raise InvalidOption(f"--{flag} has no value.", hint=f"Write --{flag} VALUE.", field=name)
        else:
            texts.append((name, rest.pop(0) if rest else "true"))
    return plain, texts


def parse_options(texts: Iterable[tuple[str, str]], schema: Schema) -> dict[str, Any]:
    """Parse texts into the values that the schema wants; a list may be given entry by entry.

    Raises InvalidOption: there is no such option; the hint lists the known ones.
    """
    known = _properties(schema)
    values: dict[str, Any] = {}
    for name, text in texts:
        if known and name not in known:
            near = get_close_matches(name, known, 1)
            options = ", ".join(f"--{option.replace('_', '-')}" for option, _ in describe_options(schema))
            hint = f"Did you mean --{near[0].replace('_', '-')}?" if near else f"Options: {options or 'none'}."
            raise InvalidOption(f"The model has no option --{name.replace('_', '-')}.", hint=hint, field=name)
        value, before = _parse_value(text, _kinds(known.get(name, {}), schema)), values.get(name)
        values[name] = [*before, *value] if isinstance(value, list) and isinstance(before, list) else value
    return values


def parse_pair(text: str, option: str = "--option") -> tuple[str, str]:
    """Split `NAME=VALUE` into name and value; `option` is what it was given with.

    Raises InvalidOption: there is no equals sign in it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidOption(f"{option} {text!r} has no value.", hint=f"Write {option} name=value.")
    return name.replace("-", "_"), value


def _parse_value(text: str, kinds: Sequence[Schema]) -> Any:
    """Keep text where text is wanted, and parse JSON where that works; the gateway checks the rest."""
    types = {kind.get("type") for kind in kinds}
    is_text = any("items" in kind and kind["items"].get("type") == "string" for kind in kinds)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text if "string" in types or "array" not in types else [part.strip() for part in text.split(",")]
    form = "array" if isinstance(value, list) else "object" if isinstance(value, dict) else ""
    if "string" in types and form not in types:
        return [text] if is_text else text  # its commas are part of it
    # One entry of a list needs no brackets, and no quotes in a list of texts.
    alone = value is not None and not isinstance(value, list | dict)
    if not alone or not types <= {"array", "null", None} or "array" not in types:
        return value
    return [text if is_text and not isinstance(value, str) else value]


def _is_switch(name: str, schema: Schema) -> bool:
    return any(kind.get("type") == "boolean" for kind in _kinds(_properties(schema).get(name, {}), schema))


def _properties(schema: Schema) -> dict[str, Schema]:
    return dict(schema.get("properties", {}))


def _kinds(part: Schema, root: Schema) -> list[Schema]:
    """The part and its alternatives, with references resolved."""
    name = str(part.get("$ref", ""))
    if name.startswith("#/$defs/"):
        part = {**root.get("$defs", {}).get(name.removeprefix("#/$defs/"), {}), **part}
    inner = [kind for key in ("anyOf", "oneOf", "allOf") for entry in part.get(key, ()) for kind in _kinds(entry, root)]
    return [part, *inner]


def _choices(part: Schema, root: Schema) -> str:
    values = [value for kind in _kinds(part, root) for value in kind.get("enum", ())]
    return f"({' | '.join(map(str, values))})" if values else ""
