"""Requests that differ from an example in what they are about, or in one option. Made from schemas, for any plug-in."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from fovea.errors import FoveaError
from shared.vision.decode import decode
from shared.vision.draw import encode
from tests.contract.checks.loaded import Loaded
from tests.contract.sameness import differences

MOST = 3
"""Requests about different things that are looked for."""

SHORT = {"max_tokens": 6, "samples": 3, "hide_samples": 2, "controls": 10, "prompts": 4, "runs": 1, "passkeys": 1}
"""Lengths and counts that are enough to tell answers apart, and to have all parts of an example."""

SMALL = 16
"""Largest bound of an integer that is tried as it is: larger ones may be days of work."""


def updated(request: BaseModel, **changes: Any) -> BaseModel | None:
    """The request with other values, validated; None where they are not valid."""
    given = {name: getattr(request, name) for name in request.model_fields_set} | (request.model_extra or {})
    try:
        return type(request).model_validate({**given, **changes})
    except ValidationError:
        return None


def distinct_requests(loaded: Loaded, count: int = MOST) -> list[tuple[BaseModel, Any]]:
    """Requests about different things, each with its answer; no two answers are the same."""
    known: list[tuple[BaseModel, Any]] = loaded.known.setdefault("distinct", [])
    for request in () if known else _candidates(loaded):
        outcome = loaded.outcomes([request])[0]
        if not isinstance(outcome, FoveaError) and all(differences(outcome, other) for _, other in known):
            known.append((request, outcome))
        if len(known) == MOST:
            break
    return known[:count]


def _candidates(loaded: Loaded) -> Iterator[BaseModel]:
    example = brief(loaded.servable.example())
    yield example
    yield from about_other_things(example)
    for name, _ in options_of(loaded):
        for value in option_values(loaded, name, example):
            if (request := updated(example, **{name: value})) is not None:
                yield request


def about_other_things(example: BaseModel) -> Iterator[BaseModel]:
    """Requests with the options of an example, about other pictures, numbers or texts."""
    for turn in range(1, 6):
        changes = {name: _twisted(getattr(example, name), turn) for name in type(example).model_fields}
        changed = {name: value for name, value in changes.items() if value is not None}
        for names in ([*changed], *([name] for name in changed if len(changed) > 1)):
            request = updated(example, **{name: changed[name] for name in names}) if names else None
            if request is not None and request != example:
                yield request


def brief(request: BaseModel) -> BaseModel:
    """The request for a short answer from little work, where it says how long and how much, and a repeatable one."""
    if getattr(request, "seed", 1) is None:
        request = updated(request, seed=1) or request
    for name, most in SHORT.items():
        if (count := getattr(request, name, None)) and count > most:
            request = updated(request, **{name: most}) or request
    return request


def _twisted(value: Any, turn: int) -> Any:
    """The value about something else, of the same form; None for what is an option and not content."""
    if isinstance(value, bytes):
        return _twisted_picture(value, turn)
    if isinstance(value, str):
        return _twisted_text(value, turn)
    if isinstance(value, BaseModel):
        changes = {name: _twisted(getattr(value, name), turn) for name in type(value).model_fields}
        changed = {name: one for name, one in changes.items() if one is not None}
        return updated(value, **changed) if changed else None
    if isinstance(value, dict):
        changes = {name: _twisted(one, turn) for name, one in value.items()}
        return {**value, **{name: one for name, one in changes.items() if one is not None}}
    if isinstance(value, list | tuple) and value:
        return _twisted_rows(value, turn)
    return None


def _twisted_text(text: str, turn: int) -> str | None:
    """Its words in another order, or spelt backwards where that is the same; of JSON lines, the texts in them."""
    if text[:1] == "{":
        return "\n".join(json.dumps(_twisted(json.loads(line), turn)) for line in text.splitlines() if line.strip())
    if len(words := text.split(" ")) < 3:
        return None
    turned = " ".join([*words[turn % len(words) :], *words[: turn % len(words)]])
    return turned if turned != text else " ".join(word[::-1] for word in words)


def _twisted_rows(value: Any, turn: int) -> Any:
    try:
        array = np.array(value, float)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim == 2 and array.dtype == float and isinstance(value[0][0], float):
        rows = np.roll(array, turn * array.shape[1] // 5, axis=1) if array.shape[1] > 2 else np.roll(array, turn)
        return type(value)(map(tuple, rows.tolist()))
    found = [_twisted(one, turn) for one in value]
    return None if any(one is None for one in found) else type(value)(found)


def _twisted_picture(data: bytes, turn: int) -> bytes | None:
    try:
        pixels = decode(data).pixels
    except FoveaError:
        return None
    page = np.roll(pixels, turn * pixels.shape[1] // 5, axis=1)
    page = page[::-1] if turn % 2 else page[: -max(pixels.shape[0] // 4, 1)]
    return encode(np.ascontiguousarray(page))


def options_of(loaded: Loaded) -> list[tuple[str, dict[str, Any]]]:
    return list(loaded.servable.In.model_json_schema()["properties"].items())


def with_everything(loaded: Loaded, request: BaseModel) -> BaseModel:
    items = dict(options_of(loaded)).get("include", {}).get("items", {})
    every = list(_resolved(items, loaded.servable.In.model_json_schema()).get("enum", ()))
    return (updated(request, include=every) if every else None) or request


def option_values(loaded: Loaded, name: str, request: BaseModel) -> list[Any]:
    """Values to try for an option, none of them the one that the request has."""
    schema = loaded.servable.In.model_json_schema()
    now = getattr(request, name, None)
    kept: list[Any] = [now]
    for value in (*_values(schema["properties"][name], schema, now), _twisted(now, 1)):
        if value is not None and all(_plain(value) != _plain(one) for one in kept):
            kept.append(value)
    return kept[1:]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, bytes):
        return value
    return json.loads(json.dumps(value, default=lambda one: _plain(one) if isinstance(one, BaseModel) else str(one)))


def _resolved(prop: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in prop:
        prop = schema.get("$defs", {}).get(prop["$ref"].rpartition("/")[2], {})
    return prop


def _values(prop: dict[str, Any], schema: dict[str, Any], now: Any) -> list[Any]:
    prop = _resolved(prop, schema)
    found: list[Any] = []
    for part in prop.get("anyOf", ()):
        found += _values(part, schema, now)
    found += prop.get("enum", ())
    match prop.get("type"):
        case "boolean":
            found += [True, False]
        case "integer" | "number":
            found += _numbers(prop, now)
        case "array":
            found += _lists(prop, schema, now)
        case "string" if not found:
            found += ["nobody", "a", " the"]
    return found


def _numbers(prop: dict[str, Any], now: Any) -> list[float]:
    whole = prop["type"] == "integer"
    low = prop.get("minimum", prop.get("exclusiveMinimum"))
    high = prop.get("maximum", prop.get("exclusiveMaximum"))
    found: list[float] = []
    if isinstance(now, int | float) and not isinstance(now, bool):
        found += [now / 2, now * 2, now + 1, now - 1]  # less work first
    if low is not None:
        found += [low * 4, low * 2, low, low + 1]
    if high is not None and abs(high) <= SMALL:
        found += [high, (high + (low or 0)) / 2, 0.9 * high]
    found = found or [1, 2, 5]
    return [round(value) if whole else float(value) for value in found]


def _lists(prop: dict[str, Any], schema: dict[str, Any], now: Any) -> list[Any]:
    found: list[Any] = [[value] for value in _values(prop.get("items", {}), schema, None)]
    found += [[value, value] for (value,) in found[:2]]
    if now:
        found += [list(now)[: max(len(now) // 2, 1)], list(now)[:-1], [*now, *list(now)[:1]]]
    return [*found, []]
