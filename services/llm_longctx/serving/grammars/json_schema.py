"""JSON Schema checks before a schema is compiled: how large it is, and whether any finite value meets it.

Knows the keywords that nest schemas; what each keyword allows, the compiler knows.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from fovea.errors import InvalidOption

MAX_PROPERTIES = 1000
"""Properties in all objects together."""

MAX_ENUM = 1000
"""Values in all enums together."""

MAX_DEPTH = 32
"""Schemas inside each other, as written."""

_KNOWN = frozenset(
    """
    $anchor $comment $defs $dynamicAnchor $dynamicRef $id $ref $schema $vocabulary additionalItems additionalProperties
    allOf anyOf const contains contentEncoding contentMediaType contentSchema default definitions dependencies
    dependentRequired dependentSchemas deprecated description discriminator else enum example examples exclusiveMaximum
    exclusiveMinimum format id if items maxContains maxItems maxLength maxProperties maximum minContains minItems
    minLength minProperties minimum multipleOf not nullable oneOf pattern patternProperties prefixItems properties
    propertyNames readOnly required then title type unevaluatedItems unevaluatedProperties uniqueItems writeOnly
    """.split()  # noqa: SIM905  # a list of as many literals is three times as long
)
"""Keywords of JSON Schema, drafts 4 to 2020-12, and three of OpenAPI's that generators of schemas add."""

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LARGEST, _EXACT = 2**63, 2**63 - 1024
"""Beyond 64 bits, and the largest number that a float holds exactly below it: llguidance overflows behind that."""

_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "not", "contains", "if", "then", "else", "propertyNames")
_OPENING = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "$ref"})
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


def check_schema(schema: Mapping[str, Any] | bool, field: str) -> None:
    """Refuse a schema that is too large to compile in time, or that no finite value meets.

    Raises InvalidOption: It is one; the text says what is too much of.
    """
    properties = enums = 0
    for part, depth in _walk(schema, 0):
        _check_numbers(part, field)
        properties += len(_dict(part.get("properties")))
        enums += len(part["enum"]) if isinstance(part.get("enum"), list) else 0
        if properties > MAX_PROPERTIES or enums > MAX_ENUM or depth > MAX_DEPTH:
            detail = (
                f"The schema is too large: {MAX_PROPERTIES} properties, {MAX_ENUM} values in enums and "
                f"{MAX_DEPTH} levels are taken."
            )
            raise InvalidOption(detail, hint="Describe less, or check the rest yourself.", field=field)
    if isinstance(schema, Mapping) and not _is_finite(schema):
        detail = "The schema refers to itself without an end: no finite value meets it."
        raise InvalidOption(detail, hint="Let the reference be optional, or null.", field=field)


def _check_numbers(part: Mapping[str, Any], field: str) -> None:
    """Refuse numbers that the compiler would replace by others, or that end the process: it computes in 64 bits."""
    values = [part.get(name) for name in (*_BOUNDS, "const")]
    values += part["enum"] if isinstance(part.get("enum"), list) else ()
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, int | float) and (abs(value) > _EXACT or float(value) != value) and value != _LARGEST - 1:
            detail = f"The schema holds {str(value)[:40]}; numbers in it must fit 64 bits, beyond 2^53 as floats do."
            raise InvalidOption(detail, hint="Use smaller numbers, or describe them as strings.", field=field)


def check_keywords(schema: Mapping[str, Any] | bool, field: str) -> None:
    """Refuse a schema with words that no draft of JSON Schema has: they would say nothing.

    Raises InvalidOption: It has one.
    """
    if unknown := find_unknown(schema):
        detail = f"The schema has the unknown keyword {unknown[0][:80]!r}."
        raise InvalidOption(detail, hint="Leave it out, or leave out strict.", field=field)


def find_unknown(schema: Mapping[str, Any] | bool) -> list[str]:
    """The words in a schema that no draft of JSON Schema has."""
    parts = _walk(schema, 0)
    return list(dict.fromkeys(n for part, _ in parts for n in part if n not in _KNOWN and not n.startswith("x-")))


def close_objects(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema in which objects that list properties, and say nothing about others, have no others.

    JSON Schema allows others then; models that are free to invent some do, and nobody who lists properties wants that.
    A schema that joins several by `allOf` is left as it is, since what one part closes another adds to.
    """
    if any(len(part["allOf"]) > 1 for part, _ in _walk(schema, 0) if isinstance(part.get("allOf"), list)):
        return dict(schema)

    def close(part: dict[str, Any]) -> dict[str, Any]:
        is_listed = isinstance(part.get("properties"), Mapping) and not _OPENING & part.keys()
        return {**part, "additionalProperties": False} if is_listed else part

    closed: dict[str, Any] = _map_parts(schema, close, ("items",))
    return closed


def remove_keywords(schema: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The schema without some keywords; alternatives of `oneOf` become those of `anyOf`."""

    def remove(part: dict[str, Any]) -> dict[str, Any]:
        alternatives = {"anyOf": part["oneOf"]} if "oneOf" in names and "oneOf" in part else {}
        return alternatives | {name: value for name, value in part.items() if name not in names}

    removed: dict[str, Any] = _map_parts(schema, remove, _ONE)
    return removed


def _map_parts(part: Any, change: Callable[[dict[str, Any]], dict[str, Any]], inside: Sequence[str]) -> Any:
    """A schema in which each part is changed; `inside` are the keywords with one schema that are followed."""
    if not isinstance(part, Mapping):
        return part
    found = dict(part)
    for name in (*_MANY, *_NAMED):
        if isinstance(part.get(name), list):
            found[name] = [_map_parts(one, change, inside) for one in part[name]]
        elif isinstance(part.get(name), Mapping):
            found[name] = {key: _map_parts(one, change, inside) for key, one in part[name].items()}
    for name in inside:
        if isinstance(part.get(name), Mapping):
            found[name] = _map_parts(part[name], change, inside)
    return change(found)


def _walk(schema: Any, depth: int) -> Iterator[tuple[Mapping[str, Any], int]]:
    """All schemas in a schema; what is too deep is not followed."""
    if not isinstance(schema, Mapping):
        return
    yield schema, depth
    if depth > MAX_DEPTH:
        return
    for part in _parts(schema):
        yield from _walk(part, depth + 1)


def _parts(schema: Mapping[str, Any]) -> Iterator[Any]:
    for name in _MANY:
        yield from schema[name] if isinstance(schema.get(name), list) else ()
    for name in _ONE:
        yield schema.get(name)
    for name in _NAMED:
        yield from _dict(schema.get(name)).values()


def _dict(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


def _is_finite(root: Mapping[str, Any]) -> bool:
    """Whether some finite value meets a schema.

    A schema depends on all of its parts, or on any one of them. Schemas without parts are finite; this fact passes from
    part to whole once per dependency, so the time is linear in the schema, whatever refers to what.
    """
    missing: dict[int, int] = {}
    wholes: dict[int, list[int]] = {}
    found, settled = [root], list[int]()
    while found:
        schema = found.pop()
        if id(schema) in missing:
            continue
        parts, needs_all = _dependencies(schema, root)
        open_parts = [part for part in parts if isinstance(part, Mapping)]
        is_met = not open_parts or (not needs_all and len(open_parts) < len(parts))
        missing[id(schema)] = 0 if is_met else len(open_parts) if needs_all else 1
        if is_met:
            settled.append(id(schema))
            continue
        for part in open_parts:
            wholes.setdefault(id(part), []).append(id(schema))
        found += open_parts
    while settled:
        for whole in wholes.get(settled.pop(), ()):
            missing[whole] -= 1
            if missing[whole] == 0:
                settled.append(whole)
    return missing[id(root)] <= 0


def _dependencies(schema: Mapping[str, Any], root: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """The schemas that a value of this one holds or meets, and whether it takes all of them or any."""
    if isinstance(reference := schema.get("$ref"), str):
        return [_resolve(reference, root)], True
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list) and schema[name]:
            return schema[name], False
    parts: list[Any] = list(schema["allOf"]) if isinstance(schema.get("allOf"), list) else []
    if schema.get("type", "object") == "object":
        properties, names = _dict(schema.get("properties")), schema.get("required")
        parts += [properties.get(str(name)) for name in (names if isinstance(names, list) else ())]
    if schema.get("type") == "array" and isinstance(least := schema.get("minItems"), int) and least > 0:
        parts.append(schema.get("items"))
    return parts, True


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for name in reference.removeprefix("#").strip("/").split("/") if reference.strip("#/") else ():
        found = _dict(found).get(name.replace("~1", "/").replace("~0", "~"))
    return found
