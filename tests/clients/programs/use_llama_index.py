"""llama-index: chats, streams and tools."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

url, model, _ = sys.argv[1:]
facts = {"is_chat_model": True, "is_function_calling_model": True, "max_tokens": 300, "context_window": 4096}
llm = OpenAILike(model=model, api_base=f"{url}/v1", api_key="none", **facts)
hello = [ChatMessage(role="user", content="Hello")]
assert llm.chat(hello).message.content
assert "".join(piece.delta or "" for piece in llm.stream_chat(hello))


def switch(on: bool) -> str:
    return str(on)


answer = llm.chat_with_tools([FunctionTool.from_defaults(switch)], user_msg="On?", tool_required=True)
assert llm.get_tool_calls_from_response(answer)[0].tool_name == "switch"
