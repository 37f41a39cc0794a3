"""MCP server over Streamable HTTP, without sessions: JSON-RPC in, JSON out. Tools run through the gateway itself.

So a tool may do what its caller's key may do, and no more. Knows the protocol; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from services.gateway.http.in_process import send_in_process
from services.gateway.http.openapi import PROBLEMS
from services.gateway.mcp.tool_list import McpTool, list_tools
from services.gateway.routes.body_reading import read_json

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Versions of the protocol that are spoken, the newest first."""

_NO_METHOD, _BAD_PARAMS, _BAD_REQUEST = -32601, -32602, -32600

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
    message = await read_json(request)
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        return _answer(None, error=_RpcError(_BAD_REQUEST, "A message is a JSON-RPC 2.0 object."), status=400)
    if "id" not in message:
        return Response(status_code=202)  # a notification, or an answer to nothing that was asked
    params = message.get("params") or {}
    if not isinstance(params, dict):
        return _answer(message["id"], error=_RpcError(_BAD_PARAMS, "params is an object."))
    try:
        return _answer(message["id"], await _dispatch(str(message.get("method")), params, request))
    except _RpcError as error:
        return _answer(message["id"], error=error)


@router.get("/v1/mcp", status_code=405, response_class=Response)
@router.delete("/v1/mcp", status_code=405, response_class=Response)
async def refuse_stream() -> Response:
    """There are no sessions, so there is nothing to listen to and nothing to end."""
    return Response(status_code=405, headers={"allow": "POST"})


async def _dispatch(method: str, params: Mapping[str, Any], request: Request) -> dict[str, Any]:
    match method:
        case "initialize":
            return _initialize(params)
        case "ping":
            return {}
        case "tools/list":
            return {"tools": [tool.describe() for tool in await _find_tools(request)]}
        case "tools/call":
            return await _call_tool(params, request)
    raise _RpcError(_NO_METHOD, f"There is no method {method[:80]!r}.")


def _initialize(params: Mapping[str, Any]) -> dict[str, Any]:
    asked = params.get("protocolVersion")
    return {
        "protocolVersion": asked if asked in VERSIONS else VERSIONS[0],
        "capabilities": {"tools": {"listChanged": False}},
        "serverInfo": {"name": "fovea", "version": metadata.version("fovea")},
        "instructions": "Attention-based research models as tools. `model` is optional: each task has a default.",
    }


async def _find_tools(request: Request) -> list[McpTool]:
    gateway = request.app.state.gateway
    document = await gateway.document.get(request.app.openapi())
    tasks = {str(entry["task"]) for entry in await gateway.models.list_models()}
    return list_tools(document, sorted(tasks))


async def _call_tool(params: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Run a tool; what goes wrong in it is its answer, so that the assistant can read it."""
    tool = next((one for one in await _find_tools(request) if one.name == params.get("name")), None)
    if tool is None:
        raise _RpcError(_BAD_PARAMS, f"There is no tool {str(params.get('name'))[:80]!r}.")
    arguments = params.get("arguments") or {}
    if not isinstance(arguments, dict):
        raise _RpcError(_BAD_PARAMS, "arguments is an object.")
    body = {**arguments, "stream": False} if tool.name == "chat" else arguments
    answer = await send_in_process(request, tool.path, body)
    return {"content": [{"type": "text", "text": answer.text}], "isError": answer.is_error}


def _answer(
    message_id: Any, result: Mapping[str, Any] | None = None, *, error: _RpcError | None = None, status: int = 200
) -> Response:
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": message_id}
    body |= {"result": result} if error is None else {"error": {"code": error.code, "message": str(error)}}
    return JSONResponse(body, status)
