"""MCP over Streamable HTTP: handshake, tools from the joined document, calls with the caller's key, and refusals."""

import asyncio
import json

import httpx2
import jsonschema
import pytest

from fovea_mcp import routes
from fovea_mcp.tool_list import list_tools
from services.gateway.tests.test_gateway_jobs import HeldQueue
from shared.jobs.queue import Result


def call(url, method, params=None, message_id=1, **headers):
    body = {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params})
    body |= {} if message_id is None else {"id": message_id}
    return httpx2.post(f"{url}/v1/mcp", json=body, headers={"accept": "application/json, text/event-stream", **headers})


def test_the_handshake_speaks_the_clients_version(stage):
    for asked, spoken in (("2025-06-18", "2025-06-18"), ("1999-01-01", "2025-11-25")):
        result = call(stage.url, "initialize", {"protocolVersion": asked}).json()["result"]
        assert (result["protocolVersion"], result["serverInfo"]["name"]) == (spoken, "fovea")
        assert "tools" in result["capabilities"]
    assert call(stage.url, "notifications/initialized", message_id=None).status_code == 202
    assert call(stage.url, "ping").json()["result"] == {}
    for spoken, status in (("2025-06-18", 200), ("2099-01-01", 400), ("", 400)):
        told = {"mcp-protocol-version": spoken}
        assert call(stage.url, "ping", **told).status_code == status
        assert call(stage.url, "initialize", {}, **told).status_code == 200
    assert call(stage.url, "notifications/initialized", message_id=None, **told).status_code == 400
    odd = {
        "content": r'{"jsonrpc": "2.0", "id": "\ud800", "method": "ping"}',
        "headers": {"content-type": "application/json"},
    }
    assert httpx2.post(f"{stage.url}/v1/mcp", **odd).json() == {"jsonrpc": "2.0", "id": "\ud800", "result": {}}
    assert httpx2.get(f"{stage.url}/v1/mcp").status_code == 405


PAIR = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Pair"}}}
MODELS = [
    {"id": name, "object": "model", "created": 1, "owned_by": "fovea", "task": task, "service": "svc", "ready": True}
    for name, task in (("smollm2", "chat"), ("pranet", "segment"))
]


def operation(name):
    body = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
    return {"post": {"summary": f"Run {name}.", "requestBody": body, "responses": {"200": {"description": "Done"}}}}


DOCUMENT = {
    "openapi": "3.1.0",
    "paths": {"/v1/chat/completions": operation("In"), "/v1/segment": operation("Pair")},
    "components": {"schemas": {"In": {"properties": {"p": {"$ref": "#/components/schemas/Pair"}}}, "Pair": PAIR}},
}


async def open_scene(gateway, toy, **facts):
    upstream, scene = await toy(documents={"models": {"data": MODELS}, "openapi": DOCUMENT}), await gateway(**facts)
    scene.announce(upstream.url, models=("smollm2", "pranet"), routes=tuple(DOCUMENT["paths"]))
    scene.upstream = upstream
    return scene


@pytest.fixture
async def scene(gateway, toy):
    scene = await open_scene(gateway, toy)

    async def ask(method, params, **headers):
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return (await scene.client.post("/v1/mcp", json=body, headers=headers)).json()

    scene.ask = ask
    return scene


async def test_tasks_are_tools_with_whole_schemas_which_are_run_and_whose_errors_are_their_answer(scene, monkeypatch):
    made = []
    monkeypatch.setattr(routes, "list_tools", lambda *given: made.append(0) or list_tools(*given))
    tools = {tool["name"]: tool for tool in (await scene.ask("tools/list", {}))["result"]["tools"]}
    assert set(tools) == {"chat", "segment", "job"}
    for tool in (tools["chat"], tools["segment"]):
        jsonschema.Draft202012Validator.check_schema(tool["inputSchema"])
        assert tool["inputSchema"]["type"] == "object"
        assert tool["inputSchema"]["$defs"]["Pair"]["properties"]["next"] == {"$ref": "#/$defs/Pair"}
    params = {"name": "chat", "arguments": {"messages": "hi", "stream": True}}
    told = {"x-fovea-deadline-ms": "5000", "x-request-id": b"\xe9"}
    result = (await scene.ask("tools/call", params, **told))["result"]
    assert result["isError"] is False
    assert 0 < int(scene.upstream.seen[-1]["headers"]["x-fovea-deadline-ms"]) <= 5000
    assert json.loads(result["content"][0]["text"]) == {"messages": "hi", "stream": False}
    assert scene.upstream.seen[-1]["path"] == "/v1/chat/completions"
    assert (await scene.ask("tools/list", {}))["result"]["tools"] == list(tools.values())
    assert len(made) == 1, "the tools are made once"
    scene.upstream.status = 400
    assert (await scene.ask("tools/call", params))["result"]["isError"] is True
    assert (await scene.ask("tools/call", {"name": "chat", "arguments": [1]}))["error"]["code"] == -32602


async def test_a_call_of_a_tool_counts_once_against_its_key_also_of_one_that_it_may_not_use(gateway, toy, ring):
    scene = await open_scene(gateway, toy, auth="keys")
    for params, is_error in (
        ({"name": "chat", "arguments": {"messages": "hi"}}, False), ({"name": "job", "arguments": {"id": "7"}}, True),
    ):  # fmt: skip
        headers = {"x-api-key": ring.add("ann", ("infer",), rate_per_minute=3)[1]}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        answers = [await scene.client.post("/v1/mcp", json=body, headers=headers) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        results = [answer.json()["result"] for answer in answers[:3]]
        assert [result["isError"] for result in results] == [is_error] * 3
        assert ("jobs" in results[0]["content"][0]["text"]) is is_error
        headers = {"x-api-key": ring.add("bob", ("infer",), rate_per_minute=3)[1]}
        batches = ([body] * 4, [body, {"jsonrpc": "2.0", "method": "notifications/x"}], [body])
        answers = [await scene.client.post("/v1/mcp", json=batch, headers=headers) for batch in batches]
        assert [answer.status_code for answer in answers] == [429, 200, 429], "a refused batch counts once"
        assert [each["result"]["isError"] for each in answers[1].json()] == [is_error]


async def test_a_job_that_a_tool_began_is_fetched_by_the_tool_job(gateway, toy):
    queue = HeldQueue(None)
    scene = await open_scene(gateway, toy, queue=queue)
    job = (await scene.client.post("/v1/segment", json={"a": 1}, headers={"prefer": "respond-async"})).json()["id"]

    async def fetch(name):
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "job", "arguments": {"id": name}}}
        sent = {"content": json.dumps(body), "headers": {"content-type": "application/json"}}  # escapes half a pair
        result = (await scene.client.post("/v1/mcp", **sent)).json()["result"]
        return result["isError"], result["content"][0]["text"]

    for unknown in ("../../models", "\ud800", "Zoë 日本"):
        assert (await fetch(unknown))[0]
    failed, text = await fetch(job)
    assert failed
    assert "queued" in text
    queue.finish(job, Result(200, "application/json", b'{"area": 7}'))
    assert await fetch(job) == (False, '{"area": 7}')


async def test_a_caller_that_leaves_stops_its_tool(gateway, toy):
    models, document = [{**MODELS[0], "task": "slow"}], {**DOCUMENT, "paths": {"/v1/slow": operation("In")}}
    upstream, scene = await toy(documents={"models": {"data": models}, "openapi": document}), await gateway()
    scene.announce(upstream.url, models=("smollm2",), routes=("/v1/slow",))
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "slow", "arguments": {}}}
    with pytest.raises(httpx2.ReadTimeout):
        await scene.client.post("/v1/mcp", json=body, timeout=0.5)
    await asyncio.wait_for(upstream.gone.wait(), 3)


def test_what_is_not_there_is_a_json_rpc_error_and_what_is_no_message_400(stage):
    wrong = (("tools/call", {"name": "nothing"}), ("resources/list", {}), ("tools/list", [1]))
    assert [call(stage.url, *each).json()["error"]["code"] for each in wrong] == [-32602, -32601, -32602]
    ping = {"jsonrpc": "2.0", "method": "ping"}
    for headers, status in (({}, 202), ({"mcp-protocol-version": "2025-06-18"}, 400)):
        assert httpx2.post(f"{stage.url}/v1/mcp", json=[ping], headers=headers).status_code == status
    for content in (b"", b"{", b"[]", b"[1]", b'{"jsonrpc": "1.0"}'):
        answer = httpx2.post(f"{stage.url}/v1/mcp", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, content
