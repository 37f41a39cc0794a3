"""The SDK of the Model Context Protocol: the list of tools, and a call of one."""

import asyncio
import json
import sys

import mcp
from mcp.client import streamable_http

url = sys.argv[1]
open_client = getattr(streamable_http, "streamable_http_client", None) or streamable_http.streamablehttp_client


async def main():
    async with open_client(f"{url}/v1/mcp") as streams, mcp.ClientSession(streams[0], streams[1]) as session:
        started = await session.initialize()
        tools = await session.list_tools()
        arguments = {"model": "bm25", "query": "tides", "documents": ["Tides rise.", "Bread is baked."]}
        answer = await session.call_tool("rerank", arguments)
    assert (getattr(started, "serverInfo", None) or started.server_info).name == "fovea"
    assert {"chat", "embeddings", "rerank"} <= {tool.name for tool in tools.tools}
    assert not (answer.isError if hasattr(answer, "isError") else answer.is_error), answer
    assert json.loads(answer.content[0].text)["results"][0]["index"] == 0


asyncio.run(main())
