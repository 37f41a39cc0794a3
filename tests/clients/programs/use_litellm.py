"""litellm: chats, streams, tools, structured output, embeddings, responses, and Anthropic's protocol."""

import json
import sys

import litellm

url, model, embedder = sys.argv[1:]
ASK = [{"role": "user", "content": "On or off?"}]
SCHEMA = {
    "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "switch", "description": "Turn it.", "parameters": SCHEMA}}
V1 = {"api_base": f"{url}/v1", "api_key": "none"}
options = {"model": f"openai/{model}", "max_tokens": 300, "messages": ASK, **V1}

for own in (options, options | {"model": f"anthropic/{model}", "api_base": url}):
    answer = litellm.completion(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **own)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, answer.choices[0].finish_reason) == ("switch", "tool_calls")
    assert set(json.loads(call.function.arguments)) == {"on"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **own))
form = {"type": "json_schema", "json_schema": {"name": "switch", "schema": SCHEMA, "strict": True}}
told = list(litellm.completion(response_format=form, stream=True, stream_options={"include_usage": True}, **options))
assert set(json.loads("".join(one.choices[0].delta.content or "" for one in told if one.choices))) == {"on"}
assert told[-1].usage.completion_tokens > 0
scored = litellm.completion(logprobs=True, top_logprobs=2, **options).choices[0].logprobs.content
assert [len(one.top_logprobs) for one in scored] == [2] * len(scored)
guided = litellm.completion(**options | {"model": f"hosted_vllm/{model}"}, extra_body={"guided_choice": ["yes", "no"]})
assert guided.choices[0].message.content in {"yes", "no"}
rows = litellm.embedding(model=f"openai/{embedder}", input=["a", "b"], encoding_format="float", **V1).data
assert [len(row["embedding"]) for row in rows] == [384, 384]
assert litellm.responses(model=f"openai/{model}", input="Hello", max_output_tokens=8, **V1).output
texts = ["the moon", "tides rise"]
ranked = litellm.rerank(model="cohere/bm25", query="tides", documents=texts, api_base=url, api_key="n")
assert ranked.results[0]["index"] == 1
