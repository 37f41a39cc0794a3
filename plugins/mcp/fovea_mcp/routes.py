"""MCP server over Streamable HTTP, without sessions: JSON-RPC in, JSON out. Tools run through the gateway itself.

So a tool may do what its caller's key may do, and no more. Knows the protocol; knows nothing about models.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from fovea_mcp.tool_list import JOB, list_tools
from services.gateway.http.in_process import send_in_process
from services.gateway.http.openapi import PROBLEMS
from services.gateway.proxy.proxy import DisconnectGuard
from services.gateway.routes.dependencies import get_context, read_json

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Versions of the protocol that are spoken, the newest first."""

_BATCHING = "2025-03-26"
"""The version that has batches, and whose clients send no header."""

MAX_BATCH = 64

_NO_METHOD, _BAD_PARAMS, _BAD_REQUEST = -32601, -32602, -32600


class _Tools:
    """The tools of these tasks, and their listing as JSON: both take long to make."""

    def __init__(self, document: Mapping[str, Any], tasks: Sequence[str]) -> None:
        self.tools = list_tools(document, tasks)
        self.listing = _encode({"tools": [tool.describe() for tool in self.tools]})


router = APIRouter(tags=["mcp"], responses=PROBLEMS)

_BODY = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}


class _RpcError(Exception):
    """A JSON-RPC error: its code and text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@router.post("/v1/mcp", openapi_extra=_BODY)
async def call_mcp(request: Request) -> Response:
    """Model Context Protocol (Streamable HTTP): the platform's tasks as tools."""
    message, ctx = await read_json(request), get_context(request)
    spoken = request.headers.get("mcp-protocol-version", _BATCHING)
    is_batch = isinstance(message, list) and spoken == _BATCHING and 1 <= len(message) <= MAX_BATCH
    messages = message if is_batch else [message]
    if not all(isinstance(one, dict) and one.get("jsonrpc") == "2.0" for one in messages):
        detail = f"A message is a JSON-RPC 2.0 object; in version {_BATCHING} also a list of 1 to {MAX_BATCH}."
        return Response(_answer(None, error=_RpcError(_BAD_REQUEST, detail)), 400, media_type="application/json")
    if spoken not in VERSIONS and message.get("method") != "initialize":
        refused = _RpcError(_BAD_REQUEST, f"MCP-Protocol-Version {spoken[:40]!r} is none of {', '.join(VERSIONS)}.")
        return Response(_answer(message.get("id"), error=refused), 400, media_type="application/json")
    if is_batch:
        await request.app.state.gateway.limits.count_many(ctx.caller, len(messages) - 1)
    async with DisconnectGuard(ctx):  # an assistant that hangs up stops its tool
        # A message without an id is a notification, or an answer to nothing that was asked.
        answers = [await _answer_message(one, request) for one in messages if "id" in one]
    body = b"[%b]" % b",".join(answers) if is_batch else b"".join(answers)
    return Response(body, media_type="application/json") if answers else Response(status_code=202)


async def _answer_message(message: Mapping[str, Any], request: Request) -> bytes:
    try:
        return _answer(message["id"], await _dispatch(str(message.get("method")), message.get("params") or {}, request))
    except _RpcError as error:
        return _answer(message["id"], error=error)


@router.get("/v1/mcp", status_code=405, response_class=Response, include_in_schema=False)
@router.delete("/v1/mcp", status_code=405, response_class=Response, include_in_schema=False)
async def refuse_stream() -> Response:
    """There are no sessions, so there is nothing to listen to and nothing to end."""
    return Response(status_code=405, headers={"allow": "POST"})


async def _dispatch(method: str, params: Any, request: Request) -> bytes:
    """Run a method; returns its result as JSON."""
    if not isinstance(params, dict):
        raise _RpcError(_BAD_PARAMS, "params is an object.")
    match method:
        case "initialize":
            return _encode(_initialize(params))
        case "ping":
            return b"{}"
        case "tools/list":
            return (await _find_tools(request)).listing
        case "tools/call":
            return _encode(await _call_tool(params, request))
    raise _RpcError(_NO_METHOD, f"There is no method {method[:80]!r}.")


def _initialize(params: Mapping[str, Any]) -> dict[str, Any]:
    asked = params.get("protocolVersion")
    return {
        "protocolVersion": asked if asked in VERSIONS else VERSIONS[0],
        "capabilities": {"tools": {"listChanged": False}},
        "serverInfo": {"name": "fovea", "version": metadata.version("fovea-platform")},
        "instructions": "Attention-based research models as tools. `model` is optional: each task has a default.",
    }


async def _find_tools(request: Request) -> _Tools:
    gateway = request.app.state.gateway
    tasks = sorted({str(entry["task"]) for entry in await gateway.models.list_models()})
    name = f"tools of {', '.join(tasks)}"
    made: _Tools = await gateway.document.derive(request.app.openapi(), name, lambda document: _Tools(document, tasks))
    return made


async def _call_tool(params: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Run a tool; what goes wrong in it is its answer, so that the assistant can read it."""
    tools = (await _find_tools(request)).tools
    tool = next((one for one in tools if one.name == params.get("name")), None)
    if tool is None:
        raise _RpcError(_BAD_PARAMS, f"There is no tool {str(params.get('name'))[:80]!r}.")
    arguments = params.get("arguments") or {}
    if not isinstance(arguments, dict):
        raise _RpcError(_BAD_PARAMS, "arguments is an object.")
    path: str = tool.path
    body: dict[str, Any] | None = {**arguments, "stream": False} if tool.name == "chat" else arguments
    if tool is JOB:
        path, body = f"{path}/{quote(str(arguments.get('id')), safe='', errors='replace')}/result", None
    ctx = get_context(request)
    await request.app.state.gateway.limits.count_many(ctx.caller, -1)  # the tool's own request is counted instead
    answer = await send_in_process(request, path, body, deadline_s=max(ctx.left_s, 0.001))
    return {"content": [{"type": "text", "text": answer.text}], "isError": answer.is_error}


def _answer(message_id: Any, result: bytes = b"", *, error: _RpcError | None = None) -> bytes:
    member = b'"result":' + result
    if error is not None:
        member = b'"error":' + _encode({"code": error.code, "message": str(error)})
    return b'{"jsonrpc":"2.0","id":%b,%b}' % (json.dumps(message_id).encode(), member)


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
