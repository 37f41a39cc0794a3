"""Records requests to a running platform and their answers as the examples of the API reference."""

import importlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import jsonschema

from fovea import plugins
from fovea.api.examples import FILE, read_examples
from services.gateway.app import build_gateway
from services.gateway.http.openapi import join_documents
from shared.registry.discovery import services_with_models
from shared.settings import Settings

SHOWN = 3  # entries that are kept of a list in an answer

MAX_TEXT = 300  # characters that are kept of a text in an answer

SINGLE = {"file", "image", "segmentation", "video", "gpx"}  # fields of forms that take one file

Json = Any


def build_apps() -> dict[str, Any]:
    """Build the apps of the gateway and all services, by service, without loading a model."""
    names = services_with_models()
    return {name: importlib.import_module(f"services.{name.replace('-', '_')}.app").app for name in names}


def build_document(apps: Mapping[str, Any]) -> dict[str, Any]:
    """Build the joined document of the whole product, with keys."""
    own = build_gateway(Settings(_env_file=None)).openapi()
    return join_documents(own, {name: app.openapi() for name, app in apps.items()}, keys=True)


def check_value(document: Mapping[str, Any], schema: Mapping[str, Any], value: Json) -> None:
    """Check a value against a schema of the document; raises `jsonschema.ValidationError`."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def list_operations(document: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """List the operations of a document as (`POST /v1/segment`, operation)."""
    items = [(path, method, one) for path, item in document["paths"].items() for method, one in item.items()]
    return [(f"{m.upper()} {path}", one) for path, m, one in items if isinstance(one, dict) and "responses" in one]


class Recorder:
    """Asks a platform and keeps what was asked and answered."""

    def __init__(self, url: str) -> None:
        self.apps = build_apps()
        self.document = build_document(self.apps)
        self.client = httpx2.Client(base_url=url, timeout=600)
        self.examples: dict[str, dict[str, Json]] = {}

    def ask(
        self,
        label: str,
        body: Json = None,
        *,
        query: Mapping[str, Json] | None = None,
        files: Sequence[tuple[str, tuple[str, bytes]]] | None = None,
        raw: tuple[str, str, bytes] | None = None,
        accept: str = "*/*",
        **path: str,
    ) -> Json:
        """Ask one operation (`POST /v1/segment`) and record it; return the answer, parsed where it is JSON.

        With files the body has a form's other fields; `raw` is media type, file name and content of any other body.
        """
        method, template = label.split(" ")
        sent: dict[str, Any] = {"json": body} if body is not None else {}
        example: dict[str, Json] = {"type": "application/json", "request": body} if body is not None else {}
        if files is not None:
            sent = {"data": body or {}, "files": list(files)}
            names = [(field, f"@{given[0]}") for field, given in files]
            form = {**(body or {}), **{f: n if f in SINGLE else [m for g, m in names if g == f] for f, n in names}}
            example = {"type": "multipart/form-data", "request": form}
        if raw is not None:
            sent = {"content": raw[2], "headers": {"content-type": raw[0]}}
            example = {"type": raw[0].partition(";")[0], "request": f"@{raw[1]}"}
        sent.setdefault("headers", {})["accept"] = accept
        answer = self.client.request(method, template.format(**path), params=query, **sent)
        if answer.status_code >= 400:
            raise RuntimeError(f"{label}: {answer.status_code} {answer.text[:500]}")
        self._keep(label, {**path, **(query or {})}, example, answer)
        return answer.json() if _is_json(answer) else answer.content

    def example(self, model: str) -> dict[str, Json]:
        """Return a model's own example request, without the options that are at their defaults."""
        request = self.client.get(f"/v1/models/{model}/example").raise_for_status().json()
        defaults = self.client.get(f"/v1/models/{model}").json()["schema"]["properties"]
        return {k: v for k, v in request.items() if v is not None and k in defaults and v != defaults[k].get("default")}

    def write_down(self, label: str, example: dict[str, Json]) -> None:
        """Keep an example that was not asked, because what it needs does not run here."""
        self.examples[label] = {"answer_type": "application/json", **example}

    def list_missing(self) -> list[str]:
        """List the operations that were not asked."""
        return [label for label, _ in list_operations(self.document) if label not in self.examples]

    def write(self) -> list[Path]:
        """Write the examples to the packages that own their routes; return the files."""
        files: dict[Path, dict[str, Json]] = defaultdict(dict)
        known = {label for label, _ in list_operations(self.document)}
        packages = [one for app in self.apps.values() for one in app.state.packages]
        for package in ("services.gateway", *plugins.packages("gateway"), *packages):
            self.examples = {k: v for k, v in read_examples(package).items() if k in known} | self.examples
        for label, example in sorted(self.examples.items()):
            package = importlib.import_module(self._find_owner(label, example))
            files[Path(str(package.__file__)).parent / FILE][label] = example
        for file, found in files.items():
            lines = (f"{json.dumps(label)}: {json.dumps(one, ensure_ascii=False)}" for label, one in found.items())
            file.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf8")
        return list(files)

    def _keep(self, label: str, parameters: dict[str, Json], example: dict[str, Json], answer: httpx2.Response) -> None:
        kind = answer.headers.get("content-type", "").partition(";")[0]
        status, schema = self._find_answer(label, str(answer.status_code), kind)
        if _is_json(answer):
            shown = self._shorten(answer.json(), schema)
        else:
            shown = answer.text[:600] if kind.startswith(("text/", "application/x-ndjson")) else f"@answer.{kind[-3:]}"
        answered = {"answer": shown, "answer_type": kind} if answer.content else {}
        self.examples[label] = {"parameters": parameters, **example, "status": status, **answered}

    def _find_answer(self, label: str, status: str, kind: str) -> tuple[str, dict[str, Json]]:
        method, path = label.split(" ")
        responses = self.document["paths"][path][method.lower()]["responses"]
        status = next(s for s in (status, f"{status[0]}XX", "200", "2XX", *responses) if s in responses)
        return status, responses[status].get("content", {}).get(kind, {}).get("schema", {})

    def _shorten(self, value: Json, schema: Mapping[str, Json]) -> Json:
        """Cut long lists, unless the schema asks for them."""
        short = _cut(value)
        try:
            check_value(self.document, schema, short)
        except jsonschema.ValidationError:
            return value
        return short

    def _find_owner(self, label: str, example: Mapping[str, Json]) -> str:
        """The package that holds an operation: that of the model it names, else that of the route's function."""
        method, path = label.split(" ")
        for app in (build_gateway(Settings(_env_file=None)), *self.apps.values()):
            for place, route in _list_routes(app.routes):
                if place == path and method in (route.methods or ()):
                    return _name_package(self._find_definition(app, route, path).__module__)
        raise LookupError(label)

    @staticmethod
    def _find_definition(app: Any, route: Any, path: str) -> Any:
        """The class of the model behind a route of a task or an experiment, else the route's function."""
        host = getattr(app.state, "host", None)
        if host is None:
            return route.endpoint
        names = [route.name] if route.name in host.names() else host.tasks().get(path.removeprefix("/v1/"), ())
        return host.servable_type(names[0]) if names else route.endpoint


def _list_routes(routes: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The routes of an app with their paths, those of included routers, too."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from _list_routes(router.routes, prefix + route.include_context.prefix)
        elif hasattr(route, "endpoint"):
            yield (prefix + route.path).replace(":path}", "}"), route


def _name_package(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in {"services", "shared"} else parts[0]


def _is_json(answer: httpx2.Response) -> bool:
    kind = answer.headers.get("content-type", "")
    return bool(answer.content) and "json" in kind and "ndjson" not in kind


def _cut(value: Json) -> Json:
    """Cut long lists and texts of an answer, and hide keys."""
    if isinstance(value, dict):
        return {name: "fovea_EXAMPLE" if name == "key" else _cut(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_cut(part) for part in value[:SHOWN]]
    return f"{value[:MAX_TEXT]}…" if isinstance(value, str) and len(value) > MAX_TEXT else value
