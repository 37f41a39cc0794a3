"""langchain: chats, responses and messages with tools and their results, structured output, embeddings."""

import sys

import numpy as np
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

url, model, embedder = sys.argv[1:]


class Switch(BaseModel):
    """Whether something is on."""

    on: bool


V1 = {"base_url": f"{url}/v1", "api_key": "none"}
chats = (
    ChatOpenAI(model=model, max_tokens=300, stream_usage=True, **V1),
    ChatOpenAI(model=model, max_tokens=300, use_responses_api=True, **V1),
    ChatAnthropic(model=model, max_tokens=300, base_url=url, api_key="none"),
)
for chat in chats:
    assert isinstance(chat.with_structured_output(Switch, method="json_schema").invoke("On?"), Switch)
    assert isinstance(chat.with_structured_output(Switch, method="function_calling").invoke("On?"), Switch)
    forced = chat.bind_tools([Switch], tool_choice="any", parallel_tool_calls=False)
    called = forced.invoke("On?")
    (call,) = called.tool_calls
    assert call["name"] == "Switch"
    back = [HumanMessage("On?"), called, ToolMessage("done", tool_call_id=call["id"])]
    assert chat.bind_tools([Switch]).invoke(back).usage_metadata["output_tokens"] > 0
    assert "".join(str(piece.text) for piece in chat.stream("Hello"))
assert len(chats[0].batch(["Hi", "Hello", "Hey"])) == 3
assert OpenAI(model=model, max_tokens=4, n=2, best_of=2, **V1).generate(["The sky", "My dog"]).generations[1][1].text
reader = OpenAIEmbeddings(model=embedder, check_embedding_ctx_length=False, **V1)
texts = ["The moon causes tides.", "Tides come of the moon.", "Bread is baked."]
a, b, c = map(np.array, reader.embed_documents(texts))
assert a @ b > a @ c
assert len(reader.embed_documents(["a"] * 1200)) == 1200
