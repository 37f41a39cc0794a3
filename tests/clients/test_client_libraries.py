"""Conformance with client libraries; one that is not installed is skipped, and the summary lists it."""

import asyncio
import json

import numpy as np
import pytest

from services.llm_longctx.tests.conftest import MODEL
from shared.lm.bundled_models import MINILM

openai = pytest.importorskip("openai")
from pydantic import BaseModel  # noqa: E402

WHY = "is not installed; tests/clients/requirements.txt lists it"
ASK = [{"role": "user", "content": "On or off?"}]
TEXTS = ["The moon causes tides.", "Tides are caused by the moon.", "Bread is baked."]


class Switch(BaseModel):
    """Whether something is on."""

    on: bool


SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "switch", "description": "Turn it.", "parameters": SCHEMA}}


def test_openai(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    parsed = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Switch, max_tokens=300)
    assert isinstance(parsed.choices[0].message.parsed, Switch)
    with client.chat.completions.stream(model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required",
                                        parallel_tool_calls=False, max_tokens=300) as stream:  # fmt: skip
        kinds = {event.type for event in stream}
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert "tool_calls.function.arguments.delta" in kinds
    assert set(json.loads(calls[0].function.arguments)) == {"on"}
    assert client.models.retrieve(MODEL).id == MODEL
    assert len(client.embeddings.create(model=MINILM, input="a", dimensions=16).data[0].embedding) == 16
    assert client.responses.parse(model=MODEL, input="On?", text_format=Switch).output_parsed is not None
    with pytest.raises(openai.NotFoundError) as caught:
        client.moderations.create(input="a")
    assert len(caught.value.message) < 200


@pytest.mark.release
def test_litellm(url):
    litellm = pytest.importorskip("litellm", reason=f"litellm {WHY}")
    options = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none", "max_tokens": 300}
    answer = litellm.completion(
        messages=ASK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **options
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "switch"
    assert answer.choices[0].finish_reason == "tool_calls"
    form = {"type": "json_schema", "json_schema": {"name": "switch", "schema": SCHEMA, "strict": True}}
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in litellm.completion(messages=ASK, response_format=form, stream=True, **options)
    )
    assert set(json.loads(text)) == {"on"}
    rows = litellm.embedding(
        model=f"openai/{MINILM}", input=TEXTS, api_base=f"{url}/v1", api_key="none", encoding_format="float"
    ).data
    a, b, c = (np.array(row["embedding"]) for row in rows)
    assert a @ b > a @ c


@pytest.mark.release
def test_langchain(url):
    langchain = pytest.importorskip("langchain_openai", reason=f"langchain-openai {WHY}")
    chat = langchain.ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", max_tokens=300)
    assert isinstance(chat.with_structured_output(Switch, method="json_schema").invoke("On?"), Switch)
    assert isinstance(chat.with_structured_output(Switch, method="function_calling").invoke("On?"), Switch)
    message = chat.bind_tools([TOOL], tool_choice="any", parallel_tool_calls=False).invoke("On?")
    assert message.tool_calls[0]["name"] == "switch"
    assert message.usage_metadata["input_tokens"] > message.usage_metadata["input_token_details"]["cache_read"]
    assert "".join(piece.content for piece in chat.stream("Hello"))
    embedder = langchain.OpenAIEmbeddings(
        model=MINILM, base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    a, b, c = map(np.array, embedder.embed_documents(TEXTS))
    assert a @ b > a @ c


@pytest.mark.release
@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(url, mode):
    instructor = pytest.importorskip("instructor", reason=f"instructor {WHY}")
    raw = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    client = instructor.from_openai(raw, mode=instructor.Mode[mode])
    found = client.chat.completions.create(
        model=MODEL, messages=ASK, response_model=Switch, max_tokens=300, max_retries=0
    )
    assert isinstance(found, Switch)


@pytest.mark.release
def test_llama_index(url):
    llms = pytest.importorskip("llama_index.llms.openai_like", reason=f"llama-index-llms-openai-like {WHY}")
    core = pytest.importorskip("llama_index.core.llms", reason=f"llama-index {WHY}")
    llm = llms.OpenAILike(
        model=MODEL, api_base=f"{url}/v1", api_key="none", is_chat_model=True, is_function_calling_model=True,
        max_tokens=300, context_window=4096,
    )  # fmt: skip
    assert llm.chat([core.ChatMessage(role="user", content="Hello")]).message.content
    assert "".join(piece.delta or "" for piece in llm.stream_chat([core.ChatMessage(role="user", content="Hello")]))
    tools = pytest.importorskip("llama_index.core.tools", reason=f"llama-index {WHY}")

    def switch(on: bool) -> str:
        return str(on)

    answer = llm.chat_with_tools([tools.FunctionTool.from_defaults(switch)], user_msg="On?", tool_required=True)
    (call, *_) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "switch"


@pytest.mark.release
def test_cohere(url):
    cohere = pytest.importorskip("cohere", reason=f"cohere {WHY}")
    client = cohere.ClientV2(api_key="none", base_url=url)
    ranked = client.rerank(model="bm25", query="what causes tides", documents=TEXTS, top_n=2)
    assert [one.index for one in ranked.results] == [0, 1]
    assert cohere.Client(api_key="none", base_url=url).rerank(model=MINILM, query="tides", documents=TEXTS).results


@pytest.mark.release
def test_mcp(url):
    mcp = pytest.importorskip("mcp", reason=f"mcp {WHY}")
    http = pytest.importorskip("mcp.client.streamable_http")
    open_client = getattr(http, "streamable_http_client", None) or http.streamablehttp_client

    async def run():
        async with open_client(f"{url}/v1/mcp") as streams, mcp.ClientSession(streams[0], streams[1]) as session:
            started = await session.initialize()
            tools = await session.list_tools()
            arguments = {"model": "bm25", "query": "tides", "documents": TEXTS}
            return started, tools.tools, await session.call_tool("rerank", arguments)

    started, tools, answer = asyncio.run(run())
    names = getattr(started, "serverInfo", None) or started.server_info
    assert names.name == "fovea"
    assert {"chat", "embeddings", "rerank"} <= {tool.name for tool in tools}
    is_error = answer.isError if hasattr(answer, "isError") else answer.is_error
    assert not is_error, answer
    assert json.loads(answer.content[0].text)["results"][0]["index"] in {0, 1}
