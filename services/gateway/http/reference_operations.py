"""Operations of the API reference: what the page shows of each, read from the OpenAPI document. Knows no HTML page."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

MAX_TEXT = 80
"""Characters that are shown of a text in an example: longer ones are mostly pictures in base64."""

_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "default": "="}


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
    errors: list[str]
    curl: str
    request: str
    answer: str

    @property
    def anchor(self) -> str:
        """Its fragment identifier on the page."""
        return f"{self.method}{self.path}".translate(str.maketrans("/{}:", "----"))

    @property
    def words(self) -> str:
        """Lower-case text that the search matches."""
        names = " ".join(parameter["name"] for parameter in self.parameters)
        return f"{self.method} {self.path} {self.summary} {self.text} {names}".lower()


@dataclass(frozen=True, slots=True)
class OperationGroup:
    """Operations with one purpose."""

    title: str
    about: str
    operations: list[Operation]


def group_operations(document: Json) -> list[OperationGroup]:
    """Group operations by their first tag, in the order of the document's list of tags; unknown tags come last."""
    found: dict[str, OperationGroup] = {
        tag["name"]: OperationGroup(tag["name"], tag.get("description", ""), []) for tag in document.get("tags", [])
    }
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if isinstance(operation, dict) and "responses" in operation:
                tag = next(iter(operation.get("tags", [])), "gateway")
                group = found.setdefault(tag, OperationGroup(tag, "", []))
                group.operations.append(_build_operation(document, method, path, operation))
    return [group for group in found.values() if group.operations]


def _build_operation(document: Json, method: str, path: str, raw: Json) -> Operation:
    body = raw.get("requestBody", {}).get("content", {})
    parameters = [p for p in raw.get("parameters", []) if "name" in p]
    kind, request = next(((k, m["example"]) for k, m in body.items() if "example" in m), ("", None))
    answers = {status: answer for status, answer in raw["responses"].items() if not status.startswith(("4", "5"))}
    shown = (m["example"] for a in raw["responses"].values() for m in a.get("content", {}).values() if "example" in m)
    files = _find_files(document, body)
    return Operation(
        method=method.upper(),
        path=path,
        summary=raw.get("summary", ""),
        text=raw.get("description", ""),
        parameters=[{**p, "type": _describe_type(document, p.get("schema", {}))} for p in parameters],
        bodies=_describe_media(document, body),
        responses=[
            (status, answer.get("description", ""), "\n".join(text for _, text in described if text))
            for status, answer in answers.items()
            for described in [_describe_media(document, answer.get("content", {}))]
        ],
        errors=[status for status in raw["responses"] if status not in answers],
        curl=_write_curl(method.upper(), path, parameters, kind, request, files=files, keyed="security" in document),
        request=_show(request) if kind == "application/json" else "",
        answer=next(map(_show, shown), ""),
    )


def _write_curl(
    method: str, path: str, parameters: list[Any], kind: str, request: Any, *, files: set[str], keyed: bool
) -> str:
    """Write the example as a curl command; pictures are files where the operation takes a form."""
    values = {p["name"]: (p["in"], p["example"]) for p in parameters if "example" in p}
    for name, (_, value) in values.items():
        path = path.replace(f"{{{name}}}", str(value))
    query = "&".join(f"{name}={value}" for name, (place, value) in values.items() if place == "query")
    lines = [f'curl "$FOVEA_URL{path}{"?" + query if query else ""}"']
    if keyed:
        lines.append('-H "authorization: Bearer $FOVEA_API_KEY"')
    if method not in {"GET", "POST"} or (method == "POST" and request is None):
        lines.append(f"-X {method}")
    if kind == "application/json" and isinstance(request, dict) and files & request.keys():
        kind, request = "multipart/form-data", {k: "@image.jpg" if k in files else v for k, v in request.items()}
    if kind == "multipart/form-data":
        parts = (
            (name, one) for name, value in request.items() for one in (value if isinstance(value, list) else [value])
        )
        lines += [f"-F {name}={one if isinstance(one, str) else json.dumps(one)}" for name, one in parts]
    elif request is not None:
        text = request if kind != "application/json" else json.dumps(request, ensure_ascii=False)
        data = f"'{text}'" if kind == "application/json" and len(text) < 400 and "'" not in text else "@request.json"
        lines += [f"-H 'content-type: {kind}'", f"-d {data}" if kind == "application/json" else f"--data-binary {text}"]
    return " \\\n  ".join(lines)


def _find_files(document: Json, body: Json) -> set[str]:
    schema = _resolve(document, body.get("multipart/form-data", {}).get("schema", {}))
    kinds = [_resolve(document, one) for one in schema.get("anyOf", [schema])]
    return {
        name for one in kinds for name, field in one.get("properties", {}).items() if field.get("format") == "binary"
    }


def _show(example: Any) -> str:
    if isinstance(example, str):
        return example
    text = json.dumps(_shorten(example), indent=2, ensure_ascii=False)
    # A list of numbers is one line.
    return re.sub(r"\[\s+([-\d.e,\s]+?)\s+\]", lambda found: f"[{' '.join(found.group(1).split())}]", text)


def _shorten(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shorten(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shorten(part) for part in value[:8]]
    return f"{value[:MAX_TEXT]}…" if isinstance(value, str) and len(value) > MAX_TEXT else value


def _describe_media(document: Json, content: Json) -> list[tuple[str, str]]:
    schemas = [(kind, media.get("schema")) for kind, media in content.items()]
    return [(kind, "\n".join(_iterate_fields(document, schema, depth=0)) if schema else "") for kind, schema in schemas]


def _iterate_fields(document: Json, schema: Json, depth: int) -> Iterator[str]:
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


def _describe_type(document: Json, raw: Json) -> str:
    schema = _resolve(document, raw)
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(v) for v in schema.get("enum", [schema.get("const")]))
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " | ".join(dict.fromkeys(_describe_type(document, choice) for choice in choices))
    if schema.get("type") == "array":
        return f"[{_describe_type(document, schema.get('items', {}))}]"
    kind = schema.get("title", "object") if schema.get("type") == "object" else schema.get("type", "any")
    limits = [f"{word} {json.dumps(schema[key])}" for key, word in _LIMITS.items() if key in schema]
    return " ".join([str(kind), *limits])


def _resolve(document: Json, schema: Json) -> Json:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    found: Any = document.get("components", {}).get("schemas", {}).get(reference.rpartition("/")[2], {})
    return found if isinstance(found, dict) else {}
