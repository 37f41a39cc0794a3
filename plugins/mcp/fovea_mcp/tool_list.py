"""MCP tools from the product's OpenAPI document: one for each task that has a route. Knows no HTTP."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAMED = {"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings", "rerank": "/v1/rerank"}
"""Tools whose route has another name than the task."""


@dataclass(frozen=True, slots=True)
class McpTool:
    """A tool: a route that takes JSON.

    Attributes:
        name: Its name for assistants.
        path: Its route.
        description: For assistants.
        schema: JSON Schema of its arguments, whole.
    """

    name: str
    path: str
    description: str
    schema: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """As `tools/list` shows it."""
        return {"name": self.name, "description": self.description, "inputSchema": self.schema}


JOB = McpTool(
    "job",
    "/v1/jobs",
    "Get the answer of a job that another tool has queued. It is an error as long as the job runs.",
    {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
)


def list_tools(document: Mapping[str, Any], tasks: Sequence[str]) -> list[McpTool]:
    """Tools of all served tasks, of the named routes, and of jobs."""
    paths = _NAMED | {task: f"/v1/{task}" for task in tasks if task not in _NAMED}
    made = (_build_tool(document, name, path) for name, path in sorted(paths.items()))
    return [*filter(None, made), JOB]


def _build_tool(document: Mapping[str, Any], name: str, path: str) -> McpTool | None:
    operation = document.get("paths", {}).get(path, {}).get("post")
    if operation is None:
        return None
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if not isinstance(schema, dict):
        return None
    known = document.get("components", {}).get("schemas", {})
    root = dict(schema)
    if isinstance(reference := schema.get("$ref"), str):
        root = dict(known.get(_last(reference), {}))
    needed = _collect(root, known, {})
    whole = {"type": "object", **_point_inside(root)}
    if needed:
        whole["$defs"] = {key: _point_inside(value) for key, value in needed.items()}
    description = str(operation.get("description") or operation.get("summary") or name)
    return McpTool(name, path, description, whole)


def _collect(part: Any, known: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """All schemas that a schema refers to, directly or not."""
    for name in re.findall(r'"\$ref": "[^"]*/([^"/]+)"', json.dumps(part)):
        if name not in found and name in known:
            found[name] = known[name]
            _collect(known[name], known, found)
    return found


def _point_inside(part: Any) -> Any:
    """The same schema, referring to `$defs`."""
    if isinstance(part, Mapping):
        return {
            key: f"#/$defs/{_last(value)}" if key == "$ref" and isinstance(value, str) else _point_inside(value)
            for key, value in part.items()
            if key != "discriminator"
        }
    return [_point_inside(value) for value in part] if isinstance(part, list) else part


def _last(reference: str) -> str:
    return reference.rpartition("/")[2]
